"""FLContext: who is asking, for which job, and what may be shown to peers; and the context of one stream."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from .abort import AbortSignal

if TYPE_CHECKING:
    from .streaming import StreamableEngine

_log = logging.getLogger(__name__)

StreamContext = dict[str, Any]
"""One stream's own dict; the opener's entries travel with OPEN, and each receiver gets a private copy."""


class StreamContextKey:
    """Keys of a stream context that the engine writes."""

    CHANNEL: Final = "__channel__"
    TOPIC: Final = "__topic__"
    RC: Final = "__RC__"
    OPENER: Final = "__opener__"
    """The name of the site that opened the stream; on the receiver only."""
    STREAM_ID: Final = "__stream_id__"
    """The stream's id, as 32 hexadecimal digits; at the opener before anything is produced."""
    SEQ: Final = "__seq__"
    """The number of the object being consumed, from 0; on the receiver only.

    With the opener and the id it names one object for ever.
    """
    END_STREAM: Final = "__end_stream__"
    """A thread-safe ``(rc, fl_ctx=None)`` that ends the stream without waiting; on the receiver only, never sent."""
    OF_THE_RECEIVER: Final = frozenset((RC, OPENER, STREAM_ID, SEQ, END_STREAM))
    """Those that are never sent."""


@dataclass(slots=True)
class _Prop:
    value: Any = field(repr=False)  # threat T24
    private: bool
    sticky: bool


class FLContext:
    """Props of one piece of work, each private or public and sticky or not, with who is doing it.

    Private props stay at this site; public ones travel to the peer with each stream's OPEN. Sticky props are shared by
    all contexts cloned from one another, or made by one engine; the others belong to this context alone.

    Args:
        identity_name: the site's name.
        job_id: the job this work belongs to; empty when there is none.
        engine: the engine that made this context.
        abort_signal: the run's signal; a fresh one when None.
    """

    def __init__(
        self,
        identity_name: str = "",
        job_id: str = "",
        *,
        engine: StreamableEngine | None = None,
        abort_signal: AbortSignal | None = None,
        _sticky: dict[str, _Prop] | None = None,
    ) -> None:
        self._identity_name = identity_name
        self._job_id = job_id
        self._engine = engine
        self._abort_signal = abort_signal if abort_signal is not None else AbortSignal()
        self._peer_context: FLContext | None = None
        self._sticky: dict[str, _Prop] = {} if _sticky is None else _sticky
        self._props: dict[str, _Prop] = {}

    def _find(self, key: str) -> _Prop | None:
        return self._props.get(key) or self._sticky.get(key)

    def set_prop(self, key: str, value: Any, private: bool = True, sticky: bool = False) -> bool:
        """Set a prop.

        Returns:
            False, after a warning, when the prop exists with another kind of privacy or stickiness and was left as it
            is.

        Raises:
            TypeError: *key* is not a str.
        """
        if not isinstance(key, str):
            raise TypeError(f"key is {key!r} of type {type(key).__name__}, expected str")
        old = self._find(key)
        if old is not None and (old.private, old.sticky) != (private, sticky):
            _log.warning("prop %r is private=%s, sticky=%s: not set with another kind", key, old.private, old.sticky)
            return False
        self.put(key, value, private, sticky)
        return True

    def put(self, key: str, value: Any, private: bool, sticky: bool) -> None:
        """Set a prop whatever its kind was before."""
        self._props.pop(key, None)
        (self._sticky if sticky else self._props)[key] = _Prop(value, private, sticky)

    def get_prop(self, key: str, default: Any = None) -> Any:
        """Return a prop's value, or *default*."""
        found = self._find(key)
        return default if found is None else found.value

    def get_prop_detail(self, key: str) -> dict[str, Any] | None:
        """Return ``{"value", "private", "sticky"}`` of a prop, or None."""
        found = self._find(key)
        return None if found is None else {"value": found.value, "private": found.private, "sticky": found.sticky}

    def remove_prop(self, key: str) -> None:
        """Forget a prop; a sticky one for all contexts that share it."""
        self._props.pop(key, None)
        self._sticky.pop(key, None)

    def set_custom_prop(self, key: str, value: Any) -> None:
        """Set a private prop of this context alone, out of the way of the engine's own names."""
        self.put(f"__custom__.{key}", value, private=True, sticky=False)

    def get_custom_prop(self, key: str, default: Any = None) -> Any:
        """Return what ``set_custom_prop`` stored, or *default*."""
        return self.get_prop(f"__custom__.{key}", default)

    def _all(self) -> Iterator[tuple[str, _Prop]]:
        yield from {**self._sticky, **self._props}.items()  # a context's own prop hides a sticky one of its name

    def get_all_public_props(self) -> dict[str, Any]:
        """Return what peers may see."""
        return {key: prop.value for key, prop in self._all() if not prop.private}

    def public_key_exists(self, key: str) -> bool:
        """Whether *key* is a public prop."""
        found = self._find(key)
        return found is not None and not found.private

    def get_identity_name(self) -> str:
        """Return the site's name."""
        return self._identity_name

    def get_job_id(self) -> str:
        """Return the job's id; empty when there is none."""
        return self._job_id

    def get_engine(self) -> StreamableEngine | None:
        """Return the engine that made this context."""
        return self._engine

    def get_run_abort_signal(self) -> AbortSignal:
        """Return the run's signal; triggering it ends what runs under this context."""
        return self._abort_signal

    def set_peer_context(self, peer: FLContext) -> None:
        """Set the context of the site at the other end."""
        self._peer_context = peer

    def get_peer_context(self) -> FLContext | None:
        """Return the context of the site at the other end: its identity, its job, its public props."""
        return self._peer_context

    def clone(self) -> FLContext:
        """Make a context with the same identity and a copy of the props; sticky ones stay shared."""
        twin = FLContext(
            self._identity_name,
            self._job_id,
            engine=self._engine,
            abort_signal=self._abort_signal,
            _sticky=self._sticky,
        )
        twin._props = {key: _Prop(prop.value, prop.private, prop.sticky) for key, prop in self._props.items()}
        twin._peer_context = self._peer_context
        return twin

    def under(self, signal: AbortSignal) -> FLContext:
        """Return this context with another abort signal: the same props, shared, not copied."""
        twin = FLContext(
            self._identity_name, self._job_id, engine=self._engine, abort_signal=signal, _sticky=self._sticky
        )
        twin._props = self._props
        twin._peer_context = self._peer_context
        return twin

    def __repr__(self) -> str:
        return f"<FLContext {self._identity_name!r} job={self._job_id!r} props={[key for key, _ in self._all()]!r}>"
