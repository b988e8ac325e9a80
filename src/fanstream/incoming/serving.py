"""The streams that others open at this site: taken, run, and remembered, so that none is taken twice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from ..abort import AbortSignal
from ..arguments import OWN
from ..errors import SecurityError
from ..observe import Audit, AuditEvent, StreamEnded, StreamRefused
from ..protocol.bodies import Opening
from ..protocol.events import Opened
from ..protocol.receiver import ReceiverLeg
from ..protocol.surroundings import Refusal
from ..shareable import ReturnCode
from ..tasks import Tasks
from .stream import Host, IncomingStream

if TYPE_CHECKING:
    from ..journal import Journal, Record
    from ..sealing import Sealing, SiteSeal
    from ..store import Kept

_log = logging.getLogger(__name__)

_REMEMBERED: Final = 8192  # ids of ended streams that may not be opened again


class Serving:
    """An engine's incoming streams.

    Args:
        host: the engine.
        tasks: what runs them.
        signal: the engine's run signal.
        audit: hears how each has ended.
        journal: keeps them over a restart, if there is one.
        sealing: this site's keys, if it has an identity.
        on_ended: called when one is over.
    """

    def __init__(
        self,
        host: Host,
        tasks: Tasks,
        signal: AbortSignal,
        audit: Audit,
        journal: Journal | None,
        sealing: Sealing | None,
        on_ended: Callable[[], object],
    ) -> None:
        self._host = host
        self._tasks = tasks
        self._signal = signal
        self._audit = audit
        self._journal = journal
        self._sealing = sealing
        self._on_ended = on_ended
        self._streams: set[IncomingStream] = set()
        self._known: dict[bytes, None] = {}

    def __iter__(self) -> Iterator[IncomingStream]:
        return iter(self._streams)

    def __len__(self) -> int:
        return len(self._streams)

    def admit(self, opening: Opening) -> Refusal | None:
        """Say why a stream is not taken, if it is not."""
        if _key(opening) in self._known:
            return Refusal(ReturnCode.BAD_REQUEST_DATA, "a stream of this id was opened before")
        return None

    def opened(self, event: Opened) -> None:
        """A peer has opened a stream at this site."""
        opening = event.leg.opening
        seal = self._accept(opening, event.body) if opening.sealed else None
        record = None
        # The keys of a sealed stream are never written down.
        if self._journal is not None and not (opening.sealed or opening.channel.startswith(OWN)) and opening.resume:
            record = self._journal.begin(opening, event.body)
        self._begin(event.leg, event.body, seal, record)

    def restore(self, kept: Sequence[Kept], restore: Callable[[Sequence[Kept]], Sequence[ReceiverLeg]]) -> None:
        """Go on with what an earlier life has left, once its openers do; *restore* makes the legs."""
        if self._journal is None:
            return
        records = [self._journal.resume(stream) for stream in kept]
        for stream, record, leg in zip(kept, records, restore(kept), strict=True):
            if not leg.said_end:
                self._begin(leg, stream.body, None, record)

    def stop(self, rc: str, reason: str) -> None:
        """End all of them here."""
        for stream in list(self._streams):
            stream.stop(rc, reason)

    def _begin(
        self, leg: ReceiverLeg, body: bytes, seal: SiteSeal | SecurityError | None, record: Record | None
    ) -> None:
        self._known[_key(leg.opening)] = None
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        stream = IncomingStream(self._host, leg, body, self._signal.child(), seal, record)
        self._streams.add(stream)
        self._tasks.spawn(self._run, stream, name=f"incoming stream {stream.stream_id}")

    def _accept(self, opening: Opening, body: bytes) -> SiteSeal | SecurityError:
        """Return this site's keys of a sealed stream, or why it has none."""
        name = self._host.name
        try:
            if self._sealing is None:
                raise SecurityError(f"{name} has no identity, so nothing can be sealed for it")
            return self._sealing.accept(opening, body)
        except SecurityError as exc:
            _log.warning("engine %s: a sealed stream of %s is refused: %s", name, opening.opener, exc)
            return exc

    async def _run(self, stream: IncomingStream) -> None:
        name = self._host.name
        try:
            await stream.run()
        except Exception:  # noqa: BLE001 - a failing stream never cancels the body of the engine
            _log.exception("engine %s: incoming stream %s failed: a defect", name, stream.stream_id)
        finally:
            self._streams.discard(stream)
            self._on_ended()
            if self._audit.wanted:
                self._audit.tell(_ended(stream, name))


def _key(opening: Opening) -> bytes:
    """Return what no other opener's stream has, whatever id it chooses: one small value, for thousands are kept."""
    return opening.stream + opening.opener.encode()


def _ended(stream: IncomingStream, site: str) -> AuditEvent:
    """A stream is over that this engine has taken; or was refused once it was looked at."""
    opening = stream.opening
    if stream.refused is not None:
        rc, reason = stream.refused
        return StreamRefused(
            stream=stream.stream_id, opener=opening.opener, target=site, channel=opening.channel, topic=opening.topic,
            code=str(rc), reason=reason,
        )  # fmt: skip
    return StreamEnded(
        stream=stream.stream_id, opener=opening.opener, channel=opening.channel, topic=opening.topic,
        code=str(stream.rc or ReturnCode.TASK_ABORTED), objects=stream.consumed,
    )  # fmt: skip
