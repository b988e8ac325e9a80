"""The two ends of one stream at one site: a leg's state, and which frames it takes in which state."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ..errors import LocalProtocolError, RemoteProtocolError
from ..shareable import ReturnCode
from . import bodies
from .budget import LEAST_ASIDE
from .events import Aborted, EndAnnounced, Ended, EndingBegun, Lost, ObjectArrived, Refused, ReplyArrived
from .frames import SMALL_OBJECT, Flag, FrameType, pack
from .inbound import UNASKED_COST, UNCHARGED, Inbound
from .sending import Outbound, Payload

if TYPE_CHECKING:
    from .core import LinkCore

_FINAL: Final = int(Flag.FINAL)
_FREE: Final = int(Flag.FREE)


class LegState(Enum):
    """Where a leg is in its life."""

    OPEN = auto()
    """Objects and replies flow."""
    DRAINING = auto()
    """No further objects: the end, or an abort, was said; replies and the end's acknowledgement are still to come."""
    CLOSED = auto()
    """The link has forgotten it."""


Handler = Callable[[Any, int, int, memoryview], None]
"""Takes a frame's flags, seq and body."""

Transitions = dict[LegState, dict[int, Handler]]
"""Which frames a leg takes in which state, and what they do."""


class Leg:
    """What both ends share.

    Attributes:
        owner: whatever the shell wants to find again; the core never looks at it.
        handlers: what the leg's state makes of each type of frame; all others are against the rules.
    """

    __slots__ = ("_core", "alias", "handlers", "inbound", "opening", "outbound", "owner", "state", "target")

    TRANSITIONS: ClassVar[Transitions] = {}

    def __init__(self, core: LinkCore, alias: int, opening: bodies.Opening, target: int) -> None:
        self._core = core
        self.alias = alias
        self.opening = opening
        self.target = target
        self._enter(LegState.OPEN)
        self.owner: Any = None
        self.inbound: Inbound
        self.outbound: Outbound

    def __repr__(self) -> str:
        return f"{type(self).__name__} in state {self.state.name}"

    def _enter(self, state: LegState) -> None:
        self.state = state
        self.handlers = self.TRANSITIONS.get(state, {})

    @property
    def closed(self) -> bool:
        """Whether the link has forgotten it."""
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
        return None if inward is None else (self.outbound.progress, inward)

    def _on_grant(self, flags: int, seq: int, body: memoryview) -> None:
        if not self.outbound.grant(seq):
            self._core.stray += 1

    def _discard(self, flags: int, seq: int, body: memoryview) -> None:
        """Drop what was on its way when the stream was ended."""

    def _on_credit(self, flags: int, seq: int, body: memoryview) -> None:
        self.outbound.add_credit(seq)

    def lost(self, reason: str) -> None:
        """The link, or the leg beyond the hub, is gone."""
        self._close()
        self._core.events.append(Lost(self, reason))  # type: ignore[arg-type]  # both kinds of leg may be lost

    def _on_lost(self, flags: int, seq: int, body: memoryview) -> None:
        self.lost(bodies.decode(bodies.Cause, body).reason)

    def _close(self) -> None:
        self._enter(LegState.CLOSED)
        self.outbound.clear()
        self.inbound.clear()
        self._core.forget(self.alias)

    def _control(self, kind: FrameType, *, seq: int = 0, flags: int = 0, body: bytes = b"") -> None:
        self._core.scheduler.control(pack(kind, self.alias, seq, body=body, flags=flags, target=self.target))

    def _require(self, *states: LegState) -> None:
        if self.state not in states:
            raise LocalProtocolError(f"{type(self).__name__} {self.alias} is {self.state.name}")


class OpenerLeg(Leg):
    """The opener's end: sends objects, receives replies.

    Attributes:
        site: the target's name.
        sent: how many objects were sent.
        aborted: whether ABORT was said.
    """

    __slots__ = ("_ahead", "_ahead_bytes", "_allowance", "_ended", "aborted", "sent", "site")

    def __init__(self, core: LinkCore, alias: int, opening: bodies.Opening, target: int) -> None:
        super().__init__(core, alias, opening, target)
        self._ended: tuple[int, bodies.Ending] | None = None
        self._allowance = 0  # bytes of unanswered objects that the site lets come ahead
        self._ahead: deque[tuple[int, int]] = deque()  # those that did, by number and size
        self._ahead_bytes = 0
        self.site = opening.targets[target]
        self.sent = 0
        self.aborted = False

    @property
    def accepts_data(self) -> bool:
        """Whether payloads are still taken: until the end, but not after an abort."""
        return not self.aborted

    @property
    def ended(self) -> bool:
        """Whether the site has said that the stream ended there; replies may still be on their way."""
        return self._ended is not None

    def send(self, seq: int, payload: Payload, timeout_ms: int, *, final: bool = False) -> None:
        """Send the next object."""
        if self.state is not LegState.OPEN:
            raise LocalProtocolError(f"object {seq} for {self.site}: the stream is {self.state.name}")
        self.sent = seq + 1
        inbound = self.inbound
        acked = inbound.expected
        flags = _FINAL if final else 0
        if not inbound.held:
            flags |= _FREE
        ahead = False
        if payload.total and (size := payload.total + len(payload.envelope)) > SMALL_OBJECT:
            # A site ends an object's reservation before it answers: once it has answered all, it holds none.
            ahead = acked == seq or self._ahead_bytes + size <= self._allowance
            if ahead and self._allowance:
                self._ahead.append((seq, size))
                self._ahead_bytes += size
        self.outbound.send(seq, payload, flags=flags, timeout_ms=timeout_ms, acked=acked, ahead=ahead)
        if final:
            self._enter(LegState.DRAINING)

    def end(self, *, withdraw: bool) -> None:
        """Say that no object follows; *withdraw* takes back what has not been consumed."""
        self._require(LegState.OPEN, LegState.DRAINING)
        if withdraw:
            self.outbound.clear()
        self._enter(LegState.DRAINING)
        self._control(FrameType.END, seq=self.sent, flags=int(Flag.WITHDRAW) if withdraw else 0)

    def abort(self, rc: str, who: str, reason: str) -> None:
        """Abort the stream; nothing queued for it is sent any more."""
        if self.state is LegState.CLOSED or self.aborted:
            return
        self.outbound.clear()
        self.inbound.clear()
        self._enter(LegState.DRAINING)
        self.aborted = True
        self._control(FrameType.ABORT, body=bodies.encode(bodies.Cause(rc, who, reason)))

    def close(self) -> None:
        """Forget the leg, whatever may still come for it."""
        if self.state is not LegState.CLOSED:
            self._close()

    def _on_reply(self, flags: int, seq: int, body: memoryview) -> None:
        if self.aborted:
            return
        if seq < self.inbound.expected:
            self._core.duplicates += 1
            return
        if seq > self.inbound.expected or seq >= self.sent:  # threat T4
            self._core.stray += 1
            raise RemoteProtocolError(
                f"REPLY {seq} from {self.site}: {self.inbound.expected} was next, {self.sent} objects were sent"
            )
        self.inbound.payload(seq, flags, body)
        while self._ahead and self._ahead[0][0] <= seq:
            self._ahead_bytes -= self._ahead.popleft()[1]

    def _on_allow(self, flags: int, seq: int, body: memoryview) -> None:
        self._allowance = max(self._allowance, seq)

    def deliver(self, seq: int, flags: int, value: Any, size: int) -> None:
        """Pass on a whole reply; called by the inbound half."""
        if size <= SMALL_OBJECT:  # there are no more of them than objects under way
            self.inbound.unasked -= size + UNASKED_COST
        self._core.events.append(ReplyArrived(self, seq, value, size, flags & _FINAL != 0))
        if self._ended is not None:
            self._try_end()

    def _on_ending(self, flags: int, seq: int, body: memoryview) -> None:
        self._core.events.append(EndingBegun(self))

    def _on_ended(self, flags: int, seq: int, body: memoryview) -> None:
        # ENDED travels ahead of replies that wait for credit; its number says how many of them there are.
        if seq > self.sent:
            raise RemoteProtocolError(f"ENDED after {seq} replies from {self.site}: {self.sent} objects were sent")
        self._ended = (seq, bodies.decode(bodies.Ending, body))
        self._try_end()

    def _try_end(self) -> None:
        assert self._ended is not None
        count, ending = self._ended
        if not self.aborted and (self.inbound.expected < count or not self.inbound.complete):
            return
        self._close()
        self._core.events.append(Ended(self, ending.rc, ending.reason, ending.result))

    def _on_refused(self, flags: int, seq: int, body: memoryview) -> None:
        cause = bodies.decode(bodies.Cause, body)
        self._close()
        self._core.events.append(Refused(self, cause.rc, cause.reason))

    TRANSITIONS: ClassVar[Transitions] = {
        LegState.OPEN: {
            FrameType.REPLY: _on_reply,
            FrameType.GRANT: Leg._on_grant,
            FrameType.ALLOW: _on_allow,
            FrameType.CREDIT: Leg._on_credit,
            FrameType.ENDING: _on_ending,
            FrameType.ENDED: _on_ended,
            FrameType.REFUSED: _on_refused,
            FrameType.LOST: Leg._on_lost,
        },
        LegState.DRAINING: {
            FrameType.REPLY: _on_reply,
            FrameType.GRANT: Leg._on_grant,
            FrameType.ALLOW: _on_allow,
            FrameType.CREDIT: Leg._on_credit,
            FrameType.ENDING: _on_ending,
            FrameType.ENDED: _on_ended,
            FrameType.REFUSED: _on_refused,
            FrameType.LOST: Leg._on_lost,
        },
    }


class ReceiverLeg(Leg):
    """The receiving site's end: receives objects, sends replies."""

    __slots__ = ("_aborted", "_cache", "_free_reply", "_unreleased", "answered", "final", "said_end")

    def __init__(self, core: LinkCore, alias: int, opening: bodies.Opening, target: int) -> None:
        super().__init__(core, alias, opening, target)
        self._cache: dict[int, tuple[Payload, int]] = {}
        self.answered = 0
        self._unreleased: deque[int] = deque()  # numbers of objects passed on that hold room
        self._free_reply = 0  # the number of the reply that may come ahead: the opener holds none before it
        self.said_end = False
        self._aborted = False
        self.final: int | None = None
        """How many objects the stream has; None until the opener has said so."""

    @property
    def opener(self) -> str:
        """The name of the site that opened the stream."""
        return self.opening.opener

    def reply(self, seq: int, payload: Payload, *, final: bool = False) -> None:
        """Answer the next object; *final* says that this site wants no more of them."""
        self._require(LegState.OPEN, LegState.DRAINING)
        if seq != self.answered:
            raise LocalProtocolError(f"reply {seq} on leg {self.alias}: {self.answered} is next")
        self.answered = seq + 1
        flags = _FINAL if final else 0
        self._cache[seq] = (payload, flags)
        self.outbound.send(seq, payload, flags=flags, ahead=seq == self._free_reply)

    def release(self, size: int) -> None:
        """End the reservation of the oldest object that was not released: it has been consumed."""
        if size <= SMALL_OBJECT:
            self.inbound.unasked -= size + UNASKED_COST
        if size <= UNCHARGED or not self._unreleased:
            return
        seq = self._unreleased.popleft()
        if seq in self.inbound.backed:
            self.inbound.release_ahead(seq, size)
        else:
            self.inbound.release(size)

    def _allow(self) -> None:
        """Let objects come ahead of their grants, as many as the opener may have under way, while there is room."""
        inbound = self.inbound
        more = min(inbound.largest * self.opening.backlog, self._core.allowance) - inbound.aside
        # A few objects at least: room for fewer is worth more to objects that ask.
        if more >= LEAST_ASIDE * inbound.largest and inbound.allow(LEAST_ASIDE * inbound.largest, more):
            self._control(FrameType.ALLOW, seq=inbound.aside)

    def ending(self) -> None:
        """Say that an ABORT was heard."""
        self._require(LegState.OPEN, LegState.DRAINING)
        self._control(FrameType.ENDING)

    def ended(self, rc: str, reason: str, result: bytes) -> None:
        """Say how the stream ended here, after all the replies given; the leg lives until those have gone."""
        self._require(LegState.OPEN, LegState.DRAINING)
        self._control(FrameType.ENDED, seq=self.answered, body=bodies.encode(bodies.Ending(rc, reason, result)))
        self.inbound.clear()
        self._cache.clear()
        self.said_end = True
        if self._aborted:
            self.outbound.clear()  # nobody grants the replies that wait
        if self.outbound.empty:
            self._close()
        else:
            self._enter(LegState.DRAINING)
            self.outbound.on_empty = self._close

    def refuse(self, rc: str, reason: str) -> None:
        """Turn the stream away before any of it was consumed."""
        self._require(LegState.OPEN, LegState.DRAINING)
        self._control(FrameType.REFUSED, body=bodies.encode(bodies.Cause(rc, self._core.me.site, reason)))
        self._close()

    def close(self) -> None:
        """Forget the leg; the opener has been told."""
        if self.state is not LegState.CLOSED:
            self._close()

    def _on_object(self, flags: int, seq: int, body: memoryview) -> None:
        inbound = self.inbound
        if seq != inbound.expected:
            if seq > inbound.expected:
                raise RemoteProtocolError(f"object {seq} from {self.opener} skips {inbound.expected}")
            self._duplicate(seq)
            return
        if self.final is not None and seq >= self.final:
            raise RemoteProtocolError(f"object {seq} from {self.opener} after the end at {self.final}")
        if seq - self.answered >= self.opening.backlog:
            raise RemoteProtocolError(
                f"object {seq} from {self.opener}: {seq - self.answered} unanswered, limit {self.opening.backlog}"
            )
        inbound.payload(seq, flags, body)
        if inbound.largest and self.opening.backlog > 2:  # with less, nothing is under way besides what comes ahead
            self._allow()
        cache = self._cache
        if cache:
            acked = inbound.acked
            for old in list(cache):
                if old >= acked:
                    break
                del cache[old]
        if flags & _FREE:
            self._free_reply = inbound.acked
        if flags & _FINAL:
            self.final = seq + 1

    def _duplicate(self, seq: int) -> None:
        """Answer an object that was consumed before from the reply cache; it is never consumed again (threat T5)."""
        self._core.duplicates += 1
        cached = self._cache.get(seq)
        if cached is not None:
            if self.outbound.waiting > self.opening.backlog:
                raise RemoteProtocolError(
                    f"object {seq} from {self.opener} came again while {self.outbound.waiting} replies wait for credit"
                )
            payload, flags = cached
            self._core.scheduler.owe_answer(len(payload.envelope) + payload.total)
            self.outbound.send(seq, payload, flags=flags)

    def deliver(self, seq: int, flags: int, value: Any, size: int) -> None:
        """Pass on a whole object; called by the inbound half."""
        if size > UNCHARGED:
            self._unreleased.append(seq)
        self._core.events.append(ObjectArrived(self, seq, value, size, flags & _FINAL != 0))

    def _on_end(self, flags: int, seq: int, body: memoryview) -> None:
        if seq < self.inbound.expected or (self.final is not None and seq != self.final):
            raise RemoteProtocolError(
                f"END after {seq} objects from {self.opener}, which has sent {self.inbound.expected}"
            )
        self.final = seq
        withdraw = bool(flags & Flag.WITHDRAW)
        # A quorum withdraws honestly what a slow site has not consumed yet, but never a stream without objects.
        if withdraw and not seq and self.state is LegState.OPEN:
            self._core.count_reset(self.opener)
        if withdraw:
            self._enter(LegState.DRAINING)
            self.inbound.clear()
        if self.said_end:
            return
        self._core.events.append(EndAnnounced(self, seq, withdraw))

    def _on_abort(self, flags: int, seq: int, body: memoryview) -> None:
        cause = bodies.decode(bodies.Cause, body)
        if self.said_end:
            self._close()
            return
        if not self.answered and self.state is LegState.OPEN:
            self._core.count_reset(self.opener)
        self._enter(LegState.DRAINING)
        self._aborted = True
        self.inbound.clear()
        self._core.events.append(Aborted(self, cause.rc or ReturnCode.TASK_ABORTED, cause.who, cause.reason))

    TRANSITIONS: ClassVar[Transitions] = {
        LegState.OPEN: {
            FrameType.OBJECT: _on_object,
            FrameType.GRANT: Leg._on_grant,
            FrameType.CREDIT: Leg._on_credit,
            FrameType.END: _on_end,
            FrameType.ABORT: _on_abort,
            FrameType.LOST: Leg._on_lost,
        },
        LegState.DRAINING: {
            FrameType.OBJECT: Leg._discard,
            FrameType.GRANT: Leg._on_grant,
            FrameType.CREDIT: Leg._on_credit,
            FrameType.END: _on_end,
            FrameType.ABORT: _on_abort,
            FrameType.LOST: Leg._on_lost,
        },
    }
