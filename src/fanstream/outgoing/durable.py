"""A durable outgoing stream: what is settled stands in the ledger, and another life of the engine can resume it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from ..abort import AbortSignal
from ..codec import Encoded
from ..context import FLContext, StreamContext, StreamContextKey
from ..deadlines import Deadline
from ..errors import CodecError, JournalError
from ..protocol.bodies import Opening
from ..protocol.events import Ended, ReplyArrived, StreamEvent
from ..protocol.gather import Flight, Outcome, Standing
from ..protocol.opener import OpenerLeg
from ..shareable import ReservedHeaderKey, Shareable
from .ledger import Entry, Ledger, Left, Sites, SiteState, Verdict
from .request import Request
from .stream import Host, OutgoingStream
from .unpacking import decode_end

if TYPE_CHECKING:
    pass

_PEER_PROPS: Final = ReservedHeaderKey.PEER_PROPS
_LONGEST_ABORT: Final = 0.1  # seconds that an abort waits for the disk: whoever aborts is in a hurry

TakeUp = Callable[[Opening, bytes, Mapping[str, bytes], int, object], Sequence[OpenerLeg]]
"""Makes the legs of a stream that an earlier life has left: ``Connections.take_up``."""


class DurableStream(OutgoingStream):
    """The opener's side of one stream that outlives it.

    Three things differ from any other stream. An object keeps its place in the window until it is on the disk how far
    the stream is. Replies are acknowledged to their sites no sooner than that, nor is their end; so another life gets
    them again. And a resumed stream may get replies to objects that it has not produced yet: they wait.

    Args:
        ledger: the engine's.
        left: what an earlier life has left, if this one resumes the stream.
        take_up: makes its legs.

    The others are those of an outgoing stream.

    Raises:
        CodecError: what an earlier life has kept cannot be decoded here.
    """

    def __init__(
        self,
        host: Host,
        request: Request,
        stream_ctx: StreamContext,
        fl_ctx: FLContext,
        signal: AbortSignal,
        *,
        ledger: Ledger,
        left: Left | None,
        take_up: TakeUp,
    ) -> None:
        super().__init__(host, request, stream_ctx, fl_ctx, signal)
        self._ledger = ledger
        self._left = left
        self._take_up = take_up
        self._entry: Entry | None = None
        self._told: Sites = {}
        """What the ledger was last told of each site."""
        self._news_of_sites = False  # whether there is more to be told, now or later
        self._settled = 0  # what it was last told of the objects
        self._kept = 0  # what of that is on the disk
        self._asked: deque[tuple[int, list[str]]] = deque()  # of each step: the objects settled, the sites ended
        self._ends: dict[str, tuple[int, Ended]] = {}  # how sites have ended, and after how many replies
        self._over: dict[str, OpenerLeg] = {}  # legs whose sites wait to hear that their last word is known
        self._early: dict[str, deque[ReplyArrived | Ended]] = {}  # what a site said to objects not produced again yet
        self._abort_due: Deadline | None = None  # when sites hear of an abort that is not on the disk by then
        self._final: int | None = None  # how many objects there are, once an earlier life has said so
        if left is not None:
            self._settled = self._kept = left.settled
            self.opening = msgspec.structs.replace(left.opening, life=host.life, epoch=left.opening.epoch + 1)
            self.gathering.begin_at(left.settled)
            decode = host.codec.decode_value
            self._peer_props |= {name: decode(state.props) for name, state in left.sites.items() if state.props}
            if left.verdict is not None:
                self._final = left.verdict.objects
                if left.verdict.value:
                    self.verdict = decode(left.verdict.value)
        else:
            self.opening = msgspec.structs.replace(self.opening, epoch=1)
        stream_ctx[StreamContextKey.STREAM_ID] = self.stream_id

    # --- opening ---

    async def open(self, body: bytes) -> None:
        """Open the stream, or go on with it, once it is on the disk that this life does.

        Raises:
            JournalError: that could not be written; nothing was sent.
        """
        if self._aborted:
            return
        if self._left is not None:
            self._entry = self._ledger.resume(msgspec.structs.replace(self.opening, targets=self._left.opening.targets))
            try:
                await self._entry.written()
            finally:  # where it is not to go on after all, its sites have to hear of the abort
                self._go_on(self._left)
                if self._aborted:
                    self._announce_abort()
            return
        names = list(self.gathering.sites)
        links = await self._host.reach(names, self._options.connect_grace)
        self._told = {name: SiteState(links[name].session.life(name) if name in links else b"") for name in names}
        self._entry = self._ledger.begin(msgspec.structs.replace(self.opening, targets=names), body, self._told)
        await self._entry.written()
        self._say_open(await self._host.reach(names, 0.0), dict.fromkeys(names, body))
        self._news_of_sites = True  # some may be out of reach
        for leg in self._legs.values():
            leg.settled = 0

    def _go_on(self, left: Left) -> None:
        self._told = left.sites
        lives = {}
        for name, state in left.sites.items():
            if not state.standing:
                lives[name] = state.life
                continue
            self.gathering.leave(name, Standing[state.standing], state.rc, Outcome.NOT_SENT, state.reason)
            if state.ended:
                rc, reason, result = decode_end(self._host.codec, state.rc, state.reason, state.result)
                self.gathering.end(name, rc, result, reason)
        for leg in self._take_up(self.opening, left.body, lives, left.settled, self):
            self._legs[leg.site] = leg

    # --- what is settled ---

    @property
    def has_room(self) -> bool:
        """Whether another object may be produced now; when not, ``room`` waits for it."""
        return self._failure is None and not (self._ahead or self._all_made) and super().has_room

    async def room(self) -> bool:
        """Wait until another object may be produced; False once no site is left that wants any.

        Raises:
            JournalError: what was settled could not be written.
        """
        if self._all_made:
            await self.stand_aborted()
            return False
        there = await super().room()
        while there and self._ahead and self._failure is None:
            await self._room.wait()
            there = await super().room()
        if self._failure is not None:
            raise self._failure
        return there

    @property
    def _all_made(self) -> bool:
        """Whether no object follows, as an earlier life has told the sites."""
        return self._final is not None and self.gathering.objects >= self._final

    @property
    def _ahead(self) -> bool:
        """Whether as many objects are not settled on the disk as a site may have of those that the next life makes."""
        return self.gathering.objects - self._kept >= self._options.backlog

    @property
    def _failure(self) -> JournalError | None:
        return None if self._entry is None else self._entry.error

    def judged(self, flight: Flight) -> None:
        """The application has seen a flight's replies: its place in the window is free once that is on the disk."""
        super().judged(flight)
        self._settle()

    def _settle(self) -> None:
        """Have written down how far the stream is, unless that is nothing new."""
        if self._entry is None or self._entry.forgotten:
            return
        settled = self.gathering.settled
        sites = self._sites(settled) if self._news_of_sites else None
        if settled == self._settled and sites is None:
            return
        ended = []
        if sites is not None:
            ended = [name for name, state in sites.items() if state.standing]
            self._told = sites
        self._settled = settled
        self.in_flight += 1
        self._asked.append((settled, ended))
        self._entry.settle(settled, sites, self._on_settled)

    def _sites(self, settled: int) -> Sites | None:
        """Say what the ledger is to know of the sites once *settled* objects are; None if that is nothing new."""
        self._news_of_sites = False
        sites = {name: self._state(name, settled) for name in self.gathering.sites}
        return None if sites == self._told else sites

    def _state(self, name: str, settled: int) -> SiteState:
        before = self._told[name]
        props = before.props
        if not props and self._peer_props[name]:
            with suppress(CodecError):  # they came with an array of their own, or the application has changed them
                props = self._host.codec.encode_value(self._peer_props[name])
        site = self.gathering.sites[name]
        if before.standing or site.standing is Standing.ACTIVE:
            return msgspec.structs.replace(before, props=props)
        if site.standing is not Standing.FINISHED:
            return SiteState(before.life, props, site.standing.name, site.rc, site.reason)
        count, end = self._ends.get(name, (settled + 1, None))
        if end is None or count > settled:  # its last replies are to be asked for again
            self._news_of_sites = True
            return msgspec.structs.replace(before, props=props)
        # By its own word: the account has it a moment later than that the site takes no more part.
        return SiteState(before.life, props, site.standing.name, end.rc, end.reason, ended=True, result=end.result)

    def _on_settled(self) -> None:
        """What was settled is on the disk, or cannot be written."""
        settled, ended = self._asked.popleft()
        self.in_flight -= 1
        self._room.set()
        if self._failure is not None:
            return
        self._kept = settled
        for leg in self._legs.values():
            leg.settled = settled
        for name in ended:
            leg_over = self._over.pop(name, None)
            if leg_over is not None:
                leg_over.done()

    # --- what the links tell ---

    def handle(self, event: StreamEvent) -> None:
        """Take one event of one of this stream's legs; never waits."""
        if not self._ending and not self._aborted:
            if type(event) is ReplyArrived:
                if event.seq >= self.gathering.objects:
                    self._early.setdefault(event.leg.site, deque()).append(event)
                    return
            elif type(event) is Ended and event.leg.site in self._early:
                self._early[event.leg.site].append(event)
                return
        self._take(event)

    def _take(self, event: StreamEvent) -> None:
        leg = event.leg
        if type(event) is Ended:
            self._ends[leg.site] = leg.inbound.whole, event
        super().handle(event)
        if leg.over:
            self._over[leg.site] = leg
            self._news_of_sites = True

    def _on_reply(self, event: ReplyArrived) -> None:
        if isinstance(event.value, Shareable) and _PEER_PROPS in event.value.headers:
            self._news_of_sites = True
        super()._on_reply(event)
        self._settle_late()

    def _settle_late(self) -> None:
        """Objects that were judged without a site's reply are settled once it comes, or is waited for no more."""
        if self.gathering.settled > self._settled:
            self._settle()

    def dispatch(self, obj: Shareable | Encoded, timeout: float, *, final: bool = False) -> Flight:
        """Encode an object once and send it to every active site that does not have it; as any stream's."""
        flight = super().dispatch(obj, timeout, final=final)
        if self._early:
            self._take_early(flight.seq + 1)
        return flight

    def _take_early(self, produced: int) -> None:
        """Take what sites have said to objects that are produced now."""
        for name, waiting in list(self._early.items()):
            while waiting:
                event = waiting[0]
                if isinstance(event, ReplyArrived) and event.seq >= produced:
                    break
                self._take(waiting.popleft())
            if not waiting:
                self._early.pop(name, None)

    def _leave(self, name: str, standing: Standing, rc: str, outcome: Outcome, reason: str = "") -> None:
        if standing is not Standing.FINISHED:
            self._early.pop(name, None)
        self._news_of_sites = True
        super()._leave(name, standing, rc, outcome, reason)
        self._settle_late()

    # --- ending ---

    async def end(self, value: object) -> None:
        """End the stream everywhere, once it is on the disk that it ends, and then in the ledger.

        The sites hear that their ends are known after that.

        Raises:
            JournalError: that could not be written.
            ValueError: an earlier life has told the sites of more objects.
        """
        if self._final is not None and not self._aborted:
            await self._end_as_before(self._final, value)
        elif self._entry is not None and not self._aborted:
            with suppress(CodecError):  # such a value cannot be kept: the next life is asked for it again
                kept = b"" if value is None else self._host.codec.encode_value(value)
                self._entry.end(Verdict(self.gathering.objects, kept))
            await self._entry.written()
        self._take_early(self.gathering.objects)
        for waiting in [self._early.pop(name) for name in list(self._early)]:
            for event in waiting:  # replies to objects that an earlier life has made, and this one has not
                self._take(event)
        await super().end(value)
        if self._entry is not None:
            self._entry.forget()
            with suppress(JournalError):  # the journal has told; the next life hears the same ends once more
                await self._entry.written()

    async def _end_as_before(self, final: int, value: object) -> None:
        """See to it that sites hear of as many objects as an earlier life may have told them of."""
        if value is None:
            if self.gathering.active and self.gathering.objects < final:
                raise ValueError(f"produce has made {self.gathering.objects} objects, and {final} in an earlier life")
            return
        with anyio.move_on_after(self._options.end_timeout):  # nobody was asked yet where to go on, or has answered
            while not all(leg.attached for leg in self._legs.values()):
                await self._changed.wait()
        for leg in self._legs.values():
            leg.sent = max(leg.sent, final)

    def _announce_abort(self) -> None:
        """Tell the sites of an abort once the ledger has forgotten the stream, so that no life resumes it then."""
        if self._entry is None:
            self._say_abort()
            return
        self._unended = set(self._legs)
        if self._abort_due is None:
            self._abort_due = self._host.deadlines.at(self._time() + _LONGEST_ABORT, self._tell_abort)
        self._entry.forget(self._tell_abort)

    def _tell_abort(self, now: float = 0.0) -> None:
        """An abort is on the disk, or has waited for it long enough."""
        due, self._abort_due = self._abort_due, None
        if due is not None:
            self._host.deadlines.cancel(due)
            self._say_abort()

    def _end_without(self, name: str, leg: OpenerLeg, *, withdraw: bool) -> None:
        leg.settled = None  # nobody waits for its end any more
        super()._end_without(name, leg, withdraw=withdraw)

    def forget(self) -> None:
        """Leave nothing behind, here or in the ledger."""
        self._tell_abort()
        super().forget()
        self._early.clear()
        over, self._over = self._over, {}
        for leg in over.values():  # also where the disk does not know: hubs on the way keep it until they hear this
            leg.done()
        if self._entry is not None:
            self._entry.forget()


def maker(
    ledger: Ledger | None,
    take_up: TakeUp,
    resume: object,
    request: Request,
) -> Callable[..., DurableStream]:
    """Return what makes a durable stream, given the arguments of an outgoing one.

    Args:
        ledger: the engine's, if it has one.
        take_up: makes the legs of a stream that an earlier life has left.
        resume: the id of the stream that is to go on; None for a new one.
        request: what is asked for.

    Raises:
        TypeError: *resume* is not a str.
        UnknownStreamError: there is no such stream.
        ValueError: it is another one; or the engine has no journal, or the stream is to be sealed.
    """
    if ledger is None:
        raise ValueError("a durable stream needs EngineSettings.journal, which is None")
    if request.secure:
        raise ValueError("secure is True: the keys of a sealed stream are never written down, so it cannot be durable")
    left = None if resume is None else _find(ledger, resume, request)
    return partial(DurableStream, ledger=ledger, left=left, take_up=take_up)


def _find(ledger: Ledger, stream: object, request: Request) -> Left:
    if not isinstance(stream, str):
        raise TypeError(f"resume is {stream!r} of type {type(stream).__name__}, expected a stream's id as a str")
    left = ledger.find(stream)
    told = left.opening
    # The sites go by what OPEN has said: a larger backlog would be against the rules to them.
    for name, given, kept in (
        ("channel", request.channel, told.channel),
        ("topic", request.topic, told.topic),
        ("targets", sorted(request.targets), sorted(told.targets)),
        ("optional", request.optional, told.optional),
        ("options.backlog", request.options.backlog, told.backlog),
    ):
        if given != kept:
            raise ValueError(f"{name} is {given!r}, but {kept!r} in the journal for stream {stream}")
    return left
