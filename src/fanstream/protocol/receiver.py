"""The receiving site's end of one stream: what it may do when, and which frames it takes."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..errors import LocalProtocolError, RemoteProtocolError
from ..shareable import ReturnCode
from . import bodies
from .budget import LEAST_ASIDE
from .events import Aborted, EndAnnounced, Lost, ObjectArrived, Resumed
from .frames import SMALL_OBJECT, Flag, FrameType
from .inbound import UNASKED_COST, UNCHARGED
from .leg import CLOSED, Leg, LegState

if TYPE_CHECKING:
    from ..codec.payloads import Encoded
    from .core import LinkCore

_FINAL: Final = int(Flag.FINAL)
_FREE: Final = int(Flag.FREE)


class ReceiverLeg(Leg):
    """The receiving site's end: receives objects, sends replies."""

    __slots__ = (
        "_aborted", "_backlog", "_cache", "_ending", "_free_reply", "_oldest", "_refused", "_unreleased", "answered",
        "final",
    )  # fmt: skip
    SENDS = FrameType.REPLY

    def __init__(self, core: LinkCore, alias: int, opening: bodies.Opening, target: int) -> None:
        super().__init__(core, alias, opening, target, opening.opener)
        self._backlog = opening.backlog
        self._cache: dict[int, tuple[Encoded, int]] = {}
        self._oldest = 0  # no reply before it is in the cache
        self.answered = 0
        self._unreleased: deque[int] = deque()  # numbers of objects passed on that hold room
        self._free_reply = 0  # the number of the reply that may come ahead: the opener holds none before it
        self._ending = b""  # the body of ENDED or REFUSED, once it was said
        self._refused = False
        self._aborted = False
        self.final: int | None = None
        """How many objects the stream has; None until the opener has said so."""

    def restore(self, answered: int, acked: int, replies: dict[int, tuple[Encoded, int]], ending: bytes) -> None:
        """Become what a leg was in an earlier life of this engine: without a link, and perhaps at its end.

        Args:
            answered: how many objects it has answered.
            acked: how many replies the opener has.
            replies: the others, each with its flags, by number.
            ending: the body of ENDED; empty if that was not said.
        """
        self.attached = False
        self.answered = answered
        self._oldest = acked
        self._cache = replies
        self._ending = ending
        self.inbound.restore(answered, acked)
        if ending:
            self.inbound.clear()
            self._enter(LegState.DRAINING)
            self._core.keeper.lingers(self)
        else:
            self._enter(LegState.OPEN)
            self._core.keeper.suspended(self)

    @property
    def opener(self) -> str:
        """The name of the site that opened the stream."""
        return self.opening.opener

    @property
    def acked(self) -> int:
        """How many replies the opener has said to have."""
        return self.inbound.acked

    @property
    def aborted(self) -> bool:
        """Whether ABORT was heard: nobody waits for replies."""
        return self._aborted

    @property
    def said_end(self) -> bool:
        """Whether ENDED or REFUSED was said; the leg lives until the opener has said that it knows."""
        return bool(self._ending)

    def _require_unended(self) -> None:
        self._require(LegState.OPEN, LegState.DRAINING)
        if self._ending:
            raise LocalProtocolError(f"{type(self).__name__} {self.alias} has said its end")

    def reply(self, seq: int, payload: Encoded, *, final: bool = False) -> None:
        """Answer the next object; *final* says that this site wants no more of them."""
        if self._ending or self.state is CLOSED:
            self._require_unended()
        if seq != self.answered:
            raise LocalProtocolError(f"reply {seq} on leg {self.alias}: {self.answered} is next")
        self.answered = seq + 1
        flags = _FINAL if final else 0
        self._cache[seq] = (payload, flags)
        if self.attached:
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
        more = min(inbound.largest * self._backlog, self._core.allowance) - inbound.aside
        # A few objects at least: room for fewer is worth more to objects that ask.
        if more >= LEAST_ASIDE * inbound.largest and inbound.allow(LEAST_ASIDE * inbound.largest, more):
            self._control(FrameType.ALLOW, seq=inbound.aside)

    def ending(self, word: bytes = b"") -> None:
        """Say that an ABORT was heard; here and below, *word* is what proves it in a sealed stream."""
        self._require_unended()
        self._control(FrameType.ENDING, body=word)

    def ended(self, rc: str, reason: str, result: bytes) -> None:
        """Say how the stream ended here, after all the replies given; the leg lives until the opener has them."""
        self._require_unended()
        self._ending = bodies.encode(bodies.Ending(rc, reason, result))
        self._say_end()
        self.inbound.clear()
        if self._aborted:
            self._close()  # nobody waits for replies
        else:
            self._enter(LegState.DRAINING)
            self._core.keeper.lingers(self)

    def _say_end(self) -> None:
        if self._refused:
            self._control(FrameType.REFUSED, body=self._ending)
        else:
            self._control(FrameType.ENDED, seq=self.answered, body=self._ending)

    def resume(self, core: LinkCore, alias: int, target: int, seq: int, resumption: bodies.Resumption) -> None:
        """Go on over another link: say where the objects do, and give the replies that the opener does not have.

        Args:
            core: the other link.
            alias: the stream's there.
            target: the site's index among the opener's targets.
            seq: the first reply that the opener does not have, or has not all of.
            resumption: what the opener has said.

        Raises:
            RemoteProtocolError: the opener asks for replies that were not given, or that it has acknowledged.
        """
        if seq > self.answered or (seq < self.answered and seq not in self._cache):
            raise RemoteProtocolError(
                f"RESUME at reply {seq} from {self.opener}: it has acknowledged {self.inbound.acked} of {self.answered}"
            )
        if self.attached:
            self._detach()
        if resumption.epoch > self.opening.epoch:
            self._follow(resumption)
        self.target = target
        self.attach(core, alias)
        core.count_stream(self.opener)
        self._go_on()
        number, buffer, offset = self.inbound.position
        self._control(FrameType.RESUME, seq=number, body=bodies.encode(bodies.Position(buffer, offset)))
        if self.inbound.aside:
            self._control(FrameType.ALLOW, seq=self.inbound.aside)
        self._free_reply = -1
        for reply in range(seq, self.answered):
            payload, flags = self._cache[reply]
            if reply == seq and (resumption.buffer or resumption.offset):
                self.outbound.go_on(reply, payload, resumption.buffer, resumption.offset)
            else:
                self.outbound.send(reply, payload, flags=flags)
        if self.said_end:
            self._say_end()
        core.events.append(Resumed(self, number, buffer, offset))

    def knows(self, resumption: bodies.Resumption) -> bool:
        """Whether it is the opener of this stream who speaks: its latest life, or, of a durable one, a life after it.

        Who has met a later life takes nothing of an earlier one, which may not know yet that it has been followed.
        """
        opening = self.opening
        if resumption.epoch > opening.epoch:
            return opening.epoch > 0
        return resumption.epoch == opening.epoch and resumption.life == opening.life

    def _follow(self, resumption: bodies.Resumption) -> None:
        """Go on with a later life of the opener, which makes again what it has not settled."""
        self.inbound.suspend(keep_begun=False)  # of half an object it would make the other half anew
        self.opening = msgspec.structs.replace(self.opening, life=resumption.life, epoch=resumption.epoch)
        self._core.keeper.followed(self)

    def expire(self, reason: str) -> Lost | None:
        """The way has not come back in time; who has said the end waits for nothing."""
        ended = self.said_end
        lost = super().expire(reason)
        return None if ended else lost

    def _suspend(self, reason: str) -> None:
        if self._aborted:
            self.lost(reason)
        else:
            super()._suspend(reason)

    def refuse(self, rc: str, reason: str, word: bytes = b"") -> None:
        """Turn the stream away before any of it was consumed; the leg lives until the opener knows."""
        self._require_unended()
        self._ending = bodies.encode(bodies.Cause(rc, self._core.me.site, reason, word=word))
        self._refused = True
        self._say_end()
        self.inbound.clear()
        self._enter(LegState.DRAINING)
        self._core.keeper.lingers(self)

    def reject(self, rc: str, reason: str) -> None:
        """Turn the stream away, and forget it: its opener has broken the rules, or found no room."""
        cause = bodies.Cause(rc, self._core.me.site, reason)
        self._control(FrameType.REFUSED, flags=_FINAL, body=bodies.encode(cause))
        self._close()

    def _on_object(self, flags: int, seq: int, body: bytes) -> None:
        inbound = self.inbound
        if seq != inbound.expected:
            if seq > inbound.expected:
                raise RemoteProtocolError(f"object {seq} from {self.opener} skips {inbound.expected}")
            self._duplicate(seq)
            return
        if self.final is not None and seq >= self.final:
            raise RemoteProtocolError(f"object {seq} from {self.opener} after the end at {self.final}")
        if seq - self.answered >= self._backlog:
            raise RemoteProtocolError(
                f"object {seq} from {self.opener}: {seq - self.answered} unanswered, limit {self._backlog}"
            )
        inbound.payload(seq, flags, body)
        if inbound.largest and self._backlog > 2:  # with less, nothing is under way besides what comes ahead
            self._allow()
        acked = inbound.acked
        while self._oldest < acked and self._oldest < self.answered:
            self._cache.pop(self._oldest, None)
            self._oldest += 1
        if flags & _FREE:
            self._free_reply = inbound.acked
        if flags & _FINAL:
            self.final = seq + 1

    def _duplicate(self, seq: int) -> None:
        """Answer an object that was consumed before from the reply cache; it is never consumed again (threat T5)."""
        self._core.duplicates += 1
        cached = self._cache.get(seq)
        if cached is not None:
            if self.outbound.waiting > self._backlog:
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

    def _on_end(self, flags: int, seq: int, body: bytes) -> None:
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
        self._core.events.append(EndAnnounced(self, seq, withdraw, body))

    def _on_abort(self, flags: int, seq: int, body: bytes) -> None:
        cause = bodies.decode(bodies.Cause, body)
        if self.said_end:
            self._close()
            return
        if not self.answered and self.state is LegState.OPEN:
            self._core.count_reset(self.opener)
        self._enter(LegState.DRAINING)
        self._aborted = True
        self.inbound.clear()
        rc = cause.rc or ReturnCode.TASK_ABORTED
        self._core.events.append(Aborted(self, rc, cause.who, cause.reason, cause.word))

    def _on_done(self, flags: int, seq: int, body: bytes) -> None:
        if not self.said_end:
            raise RemoteProtocolError(f"DONE from {self.opener} before the stream has ended here")
        self._close()


ReceiverLeg.TRANSITIONS = {
    LegState.OPEN: {
        FrameType.OBJECT: ReceiverLeg._on_object,
        FrameType.GRANT: Leg._on_grant,
        FrameType.CREDIT: Leg._on_credit,
        FrameType.END: ReceiverLeg._on_end,
        FrameType.ABORT: ReceiverLeg._on_abort,
        FrameType.LOST: Leg._on_lost,
        FrameType.SUSPENDED: Leg._on_suspended,
    },
    LegState.DRAINING: {
        FrameType.OBJECT: Leg._discard,
        FrameType.GRANT: Leg._on_grant,
        FrameType.CREDIT: Leg._on_credit,
        FrameType.END: ReceiverLeg._on_end,
        FrameType.ABORT: ReceiverLeg._on_abort,
        FrameType.DONE: ReceiverLeg._on_done,
        FrameType.LOST: Leg._on_lost,
        FrameType.SUSPENDED: Leg._on_suspended,
    },
}
