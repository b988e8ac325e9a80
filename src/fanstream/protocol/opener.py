"""The opener's end of one stream at one site: what it may do when, and which frames it takes."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ..errors import LocalProtocolError, RemoteProtocolError
from ..shareable import ReturnCode
from . import bodies
from .events import Ended, EndingBegun, Lost, Refused, ReplyArrived, Resumed
from .frames import SMALL_OBJECT, Flag, FrameType, pack
from .inbound import UNASKED_COST
from .leg import OPEN, Handler, Leg, LegState

if TYPE_CHECKING:
    from ..codec.payloads import Encoded
    from .core import LinkCore

_FINAL: Final = int(Flag.FINAL)
_FREE: Final = int(Flag.FREE)


class OpenerLeg(Leg):
    """The opener's end: sends objects, receives replies.

    Attributes:
        life: the target's incarnation; empty where it is not known.
        body: what was sent along with OPEN.
        sent: how many objects were sent.
        aborted: whether ABORT was said.
        resuming: whether RESUME was said, and not answered yet.
        withdrawn: whether END took back what had not been consumed.
        settled: how many replies the opener's next life would not ask for; only those are acknowledged. None where
            there is none, and what has come is acknowledged at once.
        over: whether the owner has heard how the stream ended, and the site has not heard that it has: see ``done``.
    """

    __slots__ = (
        "_ahead", "_ahead_bytes", "_allowance", "_cause", "_claimable", "_end", "_ended", "_has", "_reopened",
        "_unsized", "_word", "aborted", "body", "life", "over", "resuming", "sent", "settled", "withdrawn",
    )  # fmt: skip
    SENDS = FrameType.OBJECT
    RESUMING: ClassVar[dict[int, Handler]] = {}

    def __init__(
        self, core: LinkCore, alias: int, opening: bodies.Opening, target: int, *, life: bytes, body: bytes
    ) -> None:
        self.resuming = False
        super().__init__(core, alias, opening, target, opening.targets[target])
        self.life = life
        self.body = body
        self._ended: tuple[int, bodies.Ending] | None = None
        self._end: int | None = None  # the flags of END, once it was said
        self._word = b""  # and its body
        self._cause = b""  # the body of ABORT, once it was said
        self._reopened = False
        self._allowance = 0  # bytes of unanswered objects that the site lets come ahead
        self._ahead: deque[tuple[int, int]] = deque()  # those that did, by number and size
        self._ahead_bytes = 0
        self._claimable = 0  # objects that the site may have of an earlier life of the opener
        self._unsized = 0  # those that it does; nobody here knows how much of its room they take
        self._has = 0  # those that it has said to have whole, and that need not be sent
        self.sent = 0
        self.aborted = False
        self.withdrawn = False
        self.settled: int | None = None
        self.over = False

    def restore(self, settled: int) -> None:
        """Become what an earlier life of the opener has left: without a link, with *settled* objects behind it."""
        self.attached = False
        self.settled = self.sent = settled
        self._claimable = settled + self.opening.backlog
        self.inbound.restore(settled, 0)
        self._enter(LegState.OPEN)
        self._core.keeper.suspended(self)

    def _enter(self, state: LegState) -> None:
        super()._enter(state)
        if self.resuming:
            self.handlers = self.RESUMING

    @property
    def accepts_data(self) -> bool:
        """Whether payloads are still taken: until the end, but not after an abort."""
        return not self.aborted

    @property
    def ended(self) -> bool:
        """Whether the site has said that the stream ended there; replies may still be on their way."""
        return self._ended is not None

    def send(self, seq: int, payload: Encoded, timeout_ms: int, *, final: bool = False) -> None:
        """Send the next object, or one once more."""
        if seq >= self.sent:
            if self.state is not OPEN:
                if self.over or self.closed:  # its owner may not have heard yet how it ended
                    return
                raise LocalProtocolError(f"object {seq} for {self.site}: the stream is {self.state.name}")
            self.sent = seq + 1
        elif seq < self._has:
            return
        flags = 0
        if final:
            flags = _FINAL
            self._enter(LegState.DRAINING)
        if not self.attached:
            return
        inbound = self.inbound
        if not inbound.held:
            flags |= _FREE
        ahead = False
        if payload.total and (size := payload.total + len(payload.envelope)) > SMALL_OBJECT:
            # A site ends an object's reservation before it answers: once it has answered all, it holds none.
            ahead = inbound.expected == seq or (
                inbound.expected >= self._unsized and self._ahead_bytes + size <= self._allowance
            )
            if ahead and self._allowance:
                self._ahead.append((seq, size))
                self._ahead_bytes += size
        acked = inbound.whole if self.settled is None else self.settled
        self.outbound.send(seq, payload, flags=flags, timeout_ms=timeout_ms, acked=acked, ahead=ahead)

    def send_again(self, resumed: Resumed, seq: int, payload: Encoded, timeout_ms: int, *, final: bool = False) -> None:
        """Send an object once more, or the rest of it, after the way was broken.

        Raises:
            RemoteProtocolError: the site says to have more of it than there is.
        """
        if self.closed:  # the site's end stood right behind its word where to go on
            return
        if seq == resumed.seq and (resumed.buffer or resumed.offset):
            self.outbound.go_on(seq, payload, resumed.buffer, resumed.offset)
        else:
            self.send(seq, payload, timeout_ms, final=final)

    def end(self, *, withdraw: bool, word: bytes = b"") -> None:
        """Say that no object follows; *withdraw* takes back what has not been consumed.

        Here and below, *word* is what proves it in a sealed stream.
        """
        self._require(LegState.OPEN, LegState.DRAINING)
        if withdraw:
            self.outbound.clear()
        self.withdrawn = withdraw
        self._enter(LegState.DRAINING)
        self._end = int(Flag.WITHDRAW) if withdraw else 0
        self._word = word
        self._control(FrameType.END, seq=self.sent, flags=self._end, body=self._word)

    def abort(self, rc: str, who: str, reason: str, word: bytes = b"") -> None:
        """Abort the stream; nothing queued for it is sent any more.

        A site that cannot be told now will be, should the way come back in time.
        """
        if self.state is LegState.CLOSED or self.aborted:
            return
        self.outbound.clear()
        self.inbound.clear()
        self.aborted = True
        self._cause = bodies.encode(bodies.Cause(rc, who, reason, word=word))
        self._enter(LegState.DRAINING)
        if self.attached or self.resuming:
            self._say_abort()

    def _say_abort(self) -> None:
        self._core.scheduler.control(pack(FrameType.ABORT, self.alias, body=self._cause, target=self.target))

    def resume(self, core: LinkCore, alias: int) -> None:
        """Ask the site over another link where to go on; of a stream that was aborted, tell it so."""
        opening = self.opening
        seq, buffer, offset = self.inbound.position
        body = bodies.Resumption(
            opening.stream, opening.opener, opening.targets, opening.life, buffer, offset, opening.epoch
        )
        core.scheduler.control(
            pack(
                FrameType.RESUME, alias, seq, body=bodies.encode(body), flags=int(Flag.CRITICAL), target=self.target
            )
        )  # fmt: skip
        self.attach(core, alias)
        self.resuming = True
        self._enter(self.state)
        if self.aborted:
            self._say_abort()

    def _on_resumed(self, flags: int, seq: int, body: bytes) -> None:
        at = bodies.decode(bodies.Position, body)
        if self.aborted:
            self.resuming = False
            self._go_on()
            return
        begun = bool(at.buffer or at.offset)
        most = self.sent - 1 if begun else max(self.sent, self._claimable)
        if not self.inbound.expected <= seq <= most or at.buffer < 0 or at.offset < 0:
            raise RemoteProtocolError(
                f"RESUME at object {seq} from {self.site}, which has answered {self.inbound.expected} of {self.sent}"
            )
        self.resuming = False
        if seq > self.sent:
            self.sent = self._unsized = seq
        self._has = seq
        self._go_on()
        last = seq if begun else seq - 1
        self._ahead = deque(entry for entry in self._ahead if entry[0] <= last)
        self._ahead_bytes = sum(size for _, size in self._ahead)
        self._allowance = 0  # the site says anew what it is
        self._begin_again(seq, at.buffer, at.offset)

    def _begin_again(self, seq: int, buffer: int, offset: int) -> None:
        if self._end is not None:
            self._control(FrameType.END, seq=self.sent, flags=self._end, body=self._word)
        self._core.events.append(Resumed(self, seq, buffer, offset))

    def _on_not_resumed(self, flags: int, seq: int, body: bytes) -> None:
        cause = bodies.decode(bodies.Cause, body)
        unheard = not self.inbound.expected and self._ended is None
        if cause.rc == ReturnCode.COMMUNICATION_ERROR:  # a hub knows no way yet
            self._detach()
            self._core.keeper.suspended(self)
        elif self.aborted:
            self._close()
        elif cause.rc == ReturnCode.RUN_MISMATCH and cause.life and cause.life == self.life and unheard:
            # The site lives as it did then and has never heard of the stream: OPEN was lost with the link.
            self._reopened = True
            self.resuming = False
            self._core.open_again(self)
            self._go_on()
            self._begin_again(0, 0, 0)
        else:
            self.lost(f"the stream cannot go on: {cause.reason}")

    def _detach(self) -> None:
        self.resuming = False
        super()._detach()

    def _suspend(self, reason: str) -> None:
        if self.over:
            self._close()  # the site forgets it in time
            return
        if not self.aborted:
            super()._suspend(reason)
            return
        self._detach()
        self._core.events.append(Lost(self, reason))  # its owner need not wait
        self._core.keeper.suspended(self)

    def expire(self, reason: str) -> Lost | None:
        """The way has not come back in time; who has said ABORT waits for nothing."""
        aborted = self.aborted
        if self.resuming:  # a site that takes the stream up again now would wait for ever
            self.abort(ReturnCode.COMMUNICATION_ERROR, self._core.me.site, reason)
        lost = super().expire(reason)
        return None if aborted else lost

    def close(self) -> None:
        """Forget the leg, whatever may still come for it; one that was aborted lives on until its site has said so."""
        if self.state is LegState.CLOSED:
            return
        if self.aborted and self.may_resume and not self.ended:
            self.owner = None
            if self.attached or self.resuming:
                self._core.keeper.lingers(self)
        else:
            self._close()

    def _on_reply(self, flags: int, seq: int, body: bytes) -> None:
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

    def _on_allow(self, flags: int, seq: int, body: bytes) -> None:
        self._allowance = max(self._allowance, seq)

    def deliver(self, seq: int, flags: int, value: Any, size: int) -> None:
        """Pass on a whole reply; called by the inbound half."""
        if size <= SMALL_OBJECT:  # there are no more of them than objects under way
            self.inbound.unasked -= size + UNASKED_COST
        self._core.events.append(ReplyArrived(self, seq, value, size, flags & _FINAL != 0))
        if self._ended is not None:
            self._try_end()

    def _on_ending(self, flags: int, seq: int, body: bytes) -> None:
        self._core.events.append(EndingBegun(self, body))

    def _on_ended(self, flags: int, seq: int, body: bytes) -> None:
        # ENDED travels ahead of replies that wait for credit; its number says how many of them there are.
        if seq > self.sent and not self.aborted:  # who aborts may not have heard what an earlier life has sent
            raise RemoteProtocolError(f"ENDED after {seq} replies from {self.site}: {self.sent} objects were sent")
        self._ended = (seq, bodies.decode(bodies.Ending, body))
        self._try_end()

    def _try_end(self) -> None:
        assert self._ended is not None
        count, ending = self._ended
        if self.over or (not self.aborted and self.inbound.whole < count):
            return
        self._finish()
        self._core.events.append(Ended(self, ending.rc, ending.reason, ending.result))

    def _finish(self) -> None:
        """The site has said its last word."""
        if self.settled is None or self.aborted:
            self.done()
        else:  # another life of the opener might have to ask for it once more
            self.over = True
            self._enter(LegState.DRAINING)

    def done(self) -> None:
        """Tell the site that what it has said need not be said again."""
        if self.state is LegState.CLOSED:
            return
        if not self.aborted or self._ended is None:
            self._control(FrameType.DONE)
        self._close()

    def _on_refused(self, flags: int, seq: int, body: bytes) -> None:
        cause = bodies.decode(bodies.Cause, body)
        if self.over:
            return
        if self._reopened and cause.rc == ReturnCode.BAD_REQUEST_DATA:  # it had the stream, and its window was over
            if not flags & _FINAL:
                self._control(FrameType.DONE)
            self.lost(f"the stream cannot go on: {cause.reason}")
            return
        if flags & _FINAL:
            self._close()
        else:
            self._finish()
        self._core.events.append(Refused(self, cause.rc, cause.reason, cause.word))


# A stream that drains is still answered, granted and given credit: only this side says less.
_TAKEN: Final[dict[int, Handler]] = {
    FrameType.REPLY: OpenerLeg._on_reply,
    FrameType.GRANT: Leg._on_grant,
    FrameType.ALLOW: OpenerLeg._on_allow,
    FrameType.CREDIT: Leg._on_credit,
    FrameType.ENDING: OpenerLeg._on_ending,
    FrameType.ENDED: OpenerLeg._on_ended,
    FrameType.REFUSED: OpenerLeg._on_refused,
    FrameType.LOST: Leg._on_lost,
    FrameType.SUSPENDED: Leg._on_suspended,
}

OpenerLeg.TRANSITIONS = {LegState.OPEN: _TAKEN, LegState.DRAINING: _TAKEN}

OpenerLeg.RESUMING = {
    FrameType.RESUME: OpenerLeg._on_resumed,
    FrameType.CREDIT: Leg._on_credit,  # of the hub before the site
    FrameType.REFUSED: OpenerLeg._on_not_resumed,
    FrameType.LOST: Leg._on_lost,
    FrameType.SUSPENDED: Leg._on_suspended,
}
