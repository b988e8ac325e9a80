"""One end of one stream at one site: its state, and how it outlives its link. Its kinds: opener.py, receiver.py."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ..errors import LocalProtocolError, RemoteProtocolError
from . import bodies
from .events import Lost, Suspended
from .frames import FrameType, pack
from .inbound import Inbound
from .sending import Outbound

if TYPE_CHECKING:
    from .core import LinkCore


class LegState(Enum):
    """Where a leg is in its life."""

    OPEN = auto()
    """Objects and replies flow."""
    DRAINING = auto()
    """No further objects: the end, or an abort, was said; replies and the end's acknowledgement are still to come."""
    CLOSED = auto()
    """The link has forgotten it."""


OPEN: Final = LegState.OPEN
CLOSED: Final = LegState.CLOSED
"""Looking a member of an Enum up takes longer than all that is done with it for one object."""

Handler = Callable[[Any, int, int, bytes], None]
"""Takes a frame's flags, seq and body."""

Transitions = dict[LegState, dict[int, Handler]]
"""Which frames a leg takes in which state, and what they do."""


class Leg:
    """What both ends share.

    A leg outlives its link: while the way to the other end is broken it is detached, says nothing, and keeps what it
    will have to say. Another link attaches it anew.

    Attributes:
        site: the name of the site at the other end, never of a hub between.
        owner: whatever the shell wants to find again; the core never looks at it.
        attached: whether the other end can be told anything now.
        handlers: what the leg's state makes of each type of frame; all others are against the rules.
    """

    __slots__ = (
        "_core", "alias", "attached", "handlers", "inbound", "opening", "outbound", "owner", "site", "state", "target",
    )  # fmt: skip

    TRANSITIONS: ClassVar[Transitions] = {}
    SENDS: ClassVar[FrameType]

    def __init__(self, core: LinkCore, alias: int, opening: bodies.Opening, target: int, site: str) -> None:
        self._core = core
        self.site = site
        self.alias = alias
        self.opening = opening
        self.target = target
        self.attached = True
        self._enter(LegState.OPEN)
        self.owner: Any = None
        self.inbound: Inbound
        self.outbound: Outbound

    def __repr__(self) -> str:
        return f"{type(self).__name__} in state {self.state.name}"

    def _enter(self, state: LegState) -> None:
        self.state = state
        self.handlers = self.TRANSITIONS.get(state, {}) if self.attached else {}

    @property
    def closed(self) -> bool:
        """Whether it is of no more use."""
        return self.state is LegState.CLOSED

    def chunk(self, seq: int, buffer: int, offset: int, size: int) -> memoryview | None:
        """Say where a chunk's bytes are to land; None once they are of no use."""
        return self.inbound.chunk(seq, buffer, offset, size) if self.accepts_data else None

    def chunk_done(self, seq: int, size: int) -> None:
        """Take note that a chunk has landed."""
        self.inbound.chunk_done(seq, size)

    @property
    def accepts_data(self) -> bool:
        """Whether payloads are still taken."""
        return self.state is LegState.OPEN

    @property
    def progress(self) -> Hashable:
        """A mark that differs from what it was before whenever bytes have moved; None while it is up to this side."""
        inward = self.inbound.progress
        return None if inward is None else (self.outbound.progress, inward, self._core.landing(self.alias))

    def _on_grant(self, flags: int, seq: int, body: bytes) -> None:
        if not self.outbound.grant(seq):
            self._core.stray += 1

    def _discard(self, flags: int, seq: int, body: bytes) -> None:
        """Drop what was on its way when the stream was ended."""

    def _on_credit(self, flags: int, seq: int, body: bytes) -> None:
        self.outbound.add_credit(seq)

    @property
    def may_resume(self) -> bool:
        """Whether the stream survives a broken way."""
        return self.opening.resume > 0

    def lost(self, reason: str, *, for_good: bool = True) -> None:
        """The link, or the leg beyond the hub, is gone; unless *for_good*, it may come back."""
        if for_good or not self.may_resume:
            self._close()
            self._core.events.append(Lost(self, reason))  # type: ignore[arg-type]  # both kinds of leg may be lost
        else:
            self._suspend(reason)

    def _suspend(self, reason: str) -> None:
        self._detach()
        self._core.events.append(Suspended(self, reason))  # type: ignore[arg-type]  # both kinds
        self._core.keeper.suspended(self)  # type: ignore[arg-type]  # it is one of the two kinds

    def expire(self, reason: str) -> Lost | None:
        """The way has not come back in time; return what the owner is to hear, if it still waits for anything."""
        waited = self.state is not LegState.CLOSED
        self._close()
        return Lost(self, reason) if waited else None  # type: ignore[arg-type]  # both kinds of leg may be lost

    def _on_lost(self, flags: int, seq: int, body: bytes) -> None:
        self.lost(bodies.decode(bodies.Cause, body).reason)

    def _on_suspended(self, flags: int, seq: int, body: bytes) -> None:
        if self.site == self._core.peer:
            raise RemoteProtocolError(f"SUSPENDED from {self.site}, which is the other end itself")
        self.lost(bodies.decode(bodies.Cause, body).reason, for_good=False)

    def _detach(self) -> None:
        self.attached = False
        self.handlers = {}
        self.outbound.clear()
        self.inbound.suspend()
        self._core.forget(self.alias)

    def attach(self, core: LinkCore, alias: int) -> None:
        """Take a place on another link, over which nothing has been said yet."""
        self._core = core
        self.alias = alias
        core.legs[alias] = self  # type: ignore[assignment]  # it is one of the two kinds
        core.equip_anew(self)  # type: ignore[arg-type]  # the same
        self.inbound.rejoin(core.scheduler, alias, self.target)

    def _go_on(self) -> None:
        """Both ends know where to go on."""
        self.attached = True
        self._enter(self.state)
        self._core.keeper.resumed(self)  # type: ignore[arg-type]  # it is one of the two kinds

    def _close(self) -> None:
        self._enter(LegState.CLOSED)
        self.outbound.clear()
        self.inbound.clear()
        self._core.forget(self.alias)
        self._core.keeper.closed(self)  # type: ignore[arg-type]  # it is one of the two kinds

    def _control(self, kind: FrameType, *, seq: int = 0, flags: int = 0, body: bytes = b"") -> None:
        if self.attached:
            self._core.scheduler.control(pack(kind, self.alias, seq, body=body, flags=flags, target=self.target))

    def _require(self, *states: LegState) -> None:
        if self.state not in states:
            raise LocalProtocolError(f"{type(self).__name__} {self.alias} is {self.state.name}")
