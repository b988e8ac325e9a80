"""One outgoing stream: its sites, its window, its deadlines, its end; ``producing.py`` makes the objects."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
import msgspec

from ..abort import AbortSignal
from ..codec import Encoded
from ..context import FLContext, StreamContext, StreamContextKey
from ..deadlines import Deadline, Deadlines
from ..errors import ClosedError, LocalProtocolError, RemoteProtocolError
from ..policies import Drop
from ..protocol.bodies import Cause, Opening
from ..protocol.core import LinkCore
from ..protocol.events import Ended, EndingBegun, Lost, Refused, ReplyArrived, Resumed, StreamEvent, Suspended
from ..protocol.gather import Flight, Gathering, Outcome, Standing
from ..protocol.inbound import UNCHARGED
from ..protocol.opener import OpenerLeg
from ..protocol.pace import Pacing
from ..shareable import ReservedHeaderKey, ReturnCode, Shareable, make_reply
from ..streaming import StreamResult
from ..wakeup import Face, Wakeup
from .dues import Dues
from .held import Held, Offer
from .request import Request
from .results import conclude
from .unpacking import Host as UnpackingHost
from .unpacking import Unpacking

if TYPE_CHECKING:
    from ..options import EngineSettings
    from ..sealing import OpenerSeal

_HEADERS: Final = ReservedHeaderKey.HEADERS
_PEER_PROPS: Final = ReservedHeaderKey.PEER_PROPS


class Host(UnpackingHost, Protocol):
    """What a stream needs of its engine."""

    name: str
    face: Face
    deadlines: Deadlines
    settings: EngineSettings

    @property
    def life(self) -> bytes:
        """The engine's incarnation."""

    async def reach(self, sites: Sequence[str], grace: float) -> Mapping[str, LinkCore]:
        """Return the links that lead to sites; those that cannot be reached within *grace* seconds are absent."""


class OutgoingStream:
    """The opener's side of one stream.

    Objects are sent with ``room`` and ``dispatch``; ``end``, ``abort`` and ``result`` finish it. One task uses it, or
    two that share the work of producing and judging.

    Args:
        host: the engine.
        request: what is asked for.
        stream_ctx: the caller's own dict; its entries travel with OPEN.
        fl_ctx: the opener's context; its public props travel with OPEN.
        signal: triggered to abort the stream.

    Attributes:
        gathering: the account of this stream.
        opening: what OPEN says, without targets.
        on_news: called when a reply or an end may have changed what the judging task waits for.
        offers: replies as they arrived, kept only while ``keep_offers`` is set.
    """

    def __init__(
        self,
        host: Host,
        request: Request,
        stream_ctx: StreamContext,
        fl_ctx: FLContext,
        signal: AbortSignal,
    ) -> None:
        targets, options = request.targets, request.options
        self._host = host
        self._options = options
        self._window = options.window
        self._copies = options.copy_objects
        self._optional = request.optional
        self._legs: dict[str, OpenerLeg] = {}
        self.gathering = Gathering(targets, options.gather, options.backlog)
        self._pacing: Pacing | None = None
        if options.progress_timeout is not None:
            self._pacing = Pacing(self.gathering, options.progress_timeout, lambda name: self._legs[name].progress)
        self._timed = self._pacing is not None or self.gathering.patient  # whether replies have to be timed
        self._time = host.face.time
        self._started = self._time()
        self._room = host.face.wakeup()
        self._changed = host.face.wakeup()
        self._unended: set[str] = set()  # sites whose acknowledgement of the end, or of the abort, is awaited
        self._ending = False
        self._aborted = False
        self._rc_of_abort: str | None = None
        self._reason_of_abort = ""
        self._stalls: dict[str, Deadline] = {}
        self._dues = Dues(host.deadlines, self.gathering, self._pacing, self._expire, self._lose_patience)
        self._held = Held()
        self._peer_props: dict[str, dict[str, Any]] = {name: {} for name in targets}
        self._stream_ctx = stream_ctx
        self.fl_ctx = fl_ctx
        self.signal = signal
        self.verdict: Any = None  # what an earlier life has ended it with: nothing more is produced
        self.in_flight = 0
        self.keep_offers = False
        self.offers: deque[Offer] = deque()
        self.on_news: Callable[[], object] = _nothing
        stream_ctx[StreamContextKey.CHANNEL] = request.channel
        stream_ctx[StreamContextKey.TOPIC] = request.topic
        resume = math.ceil(options.resume_window * 1000)
        self.opening = Opening(
            os.urandom(16), host.name, [], request.channel, request.topic, options.backlog, request.optional,
            host.life, resume, request.secure,
        )  # fmt: skip
        self._seal: OpenerSeal | None = None
        stream_ctx[StreamContextKey.STREAM_ID] = self.stream_id
        self._unpacking = Unpacking(host, self.stream_id, self._handle)

    @property
    def stream_id(self) -> str:
        """The stream's id, as 32 hexadecimal digits."""
        return self.opening.stream.hex()

    @property
    def durable(self) -> bool:
        """Whether the next life of the engine can resume it."""
        return self.opening.epoch > 0

    @property
    def aborted(self) -> bool:
        """Whether it was aborted."""
        return self._aborted

    @property
    def abort_code(self) -> str:
        """With which code, if it was."""
        return self._rc_of_abort or ""

    def wakeup(self) -> Wakeup:
        """Make a wake-up of the engine's loop."""
        return self._host.face.wakeup()

    # --- opening ---

    def encode_opening(self) -> bytes:
        """Encode what travels with OPEN.

        Raises:
            CodecError: ``stream_ctx`` or a public prop cannot be sent, or both together are too large.
        """
        hidden = StreamContextKey.OF_THE_RECEIVER
        context = {key: value for key, value in self._stream_ctx.items() if key not in hidden}
        props = {**self._host.settings.public_props, **self.fl_ctx.get_all_public_props()}
        body = {"stream_ctx": context, "props": props, "job": self.fl_ctx.get_job_id()}
        return self._host.codec.encode_value(body, limit=self._host.settings.limits.opening)

    def seal_with(self, seal: OpenerSeal) -> None:
        """Have the stream sealed; it opens at those sites alone that have an invitation."""
        self._seal = self._unpacking.seal = seal

    async def open(self, body: bytes) -> None:
        """Open the stream at every site that can be reached; nothing is awaited from them.

        Args:
            body: what travels with OPEN, the same to all; a sealed stream has it in its invitations.
        """
        if self._aborted:
            return  # the signal was triggered before: nothing is sent
        invitations = dict.fromkeys(self.gathering.sites, body) if self._seal is None else self._seal.invitations
        links = await self._host.reach(list(invitations), self._options.connect_grace)
        if not self._aborted:
            self._say_open(links, invitations)

    def _say_open(self, links: Mapping[str, LinkCore], invitations: Mapping[str, bytes]) -> None:
        for name in self.gathering.sites:
            link = links.get(name)
            try:
                if link is None or name not in invitations:
                    raise LocalProtocolError(f"{name} cannot be reached")
                leg = link.open(msgspec.structs.replace(self.opening, targets=[name]), 0, invitations[name])
            except LocalProtocolError as exc:
                self.gathering.leave(
                    name, Standing.UNREACHABLE, ReturnCode.COMMUNICATION_ERROR, Outcome.UNREACHABLE, str(exc)
                )
                continue
            leg.owner = self
            self._legs[name] = leg

    # --- sending ---

    async def room(self) -> bool:
        """Wait until another object may be produced; False once no site is left that wants any.

        A site whose backlog is full holds the stream, until it answers or its stall timeout drops it.
        """
        gathering = self.gathering
        await self.stand_aborted()
        while True:
            if gathering.finished:
                return False
            if self.in_flight < self._window:
                if not gathering.at_limit:
                    return True
                self._watch_stalls()
            await self._room.wait()

    @property
    def has_room(self) -> bool:
        """Whether another object may be produced now; when not, ``room`` waits for it."""
        gathering = self.gathering
        return self.in_flight < self._window and not gathering.at_limit and bool(gathering.active) and not self._aborted

    async def stand_aborted(self) -> None:
        """End here, where the abort's cancellation is due, if the stream was aborted while nobody awaited anything."""
        if self._aborted:
            await anyio.lowlevel.checkpoint()

    def _watch_stalls(self) -> None:
        for name in self.gathering.at_limit:
            if name not in self._stalls:
                when = self._time() + self._options.stall_timeout
                self._stalls[name] = self._host.deadlines.at(when, partial(self._stalled, name))

    def _stalled(self, name: str, now: float) -> None:
        del self._stalls[name]
        if name in self.gathering.at_limit:
            self._drop(name, f"left {self._options.backlog} objects unanswered for {self._options.stall_timeout} s")

    def _drop(self, name: str, reason: str) -> None:
        self._leave(name, Standing.DROPPED, ReturnCode.TIMEOUT, Outcome.ABORTED, reason)
        leg = self._legs.pop(name, None)
        if leg is not None:
            self._abort_leg(leg, ReturnCode.TIMEOUT, reason)
            leg.close()
            self._acknowledged(name)

    @property
    def sealed(self) -> bool:
        """Whether objects have to be sealed before they are dispatched."""
        return self._seal is not None

    async def seal(self, obj: Shareable) -> Encoded:
        """Encode and seal the next object, once for all sites; ``dispatch`` sends it.

        Raises:
            SecurityError: the stream's keys have had their time.
            CodecError, ClosedError: as from :meth:`dispatch`.
        """
        assert self._seal is not None
        sealed = await self._seal.seal(self.gathering.objects, self._encode(obj), final=False)
        await self.stand_aborted()  # which may have come meanwhile
        return sealed

    def _encode(self, obj: Shareable) -> Encoded:
        headers = obj.get(_HEADERS)
        if not headers or _PEER_PROPS not in headers:
            return self._host.codec.encode(obj, copy=self._copies)
        brought = headers.pop(_PEER_PROPS)  # with another site's reply: not this site's to send
        try:
            return self._host.codec.encode(obj, copy=self._copies)
        finally:
            headers[_PEER_PROPS] = brought

    def dispatch(self, obj: Shareable | Encoded, timeout: float, *, final: bool = False) -> Flight:
        """Encode an object once and send it to every active site; never waits.

        Args:
            obj: the object; what ``seal`` has made of it, in a sealed stream.
            timeout: how long each site may take, in seconds.
            final: no object follows.

        Raises:
            CodecError: the object cannot be sent.
            ClosedError: the stream has ended.
        """
        if self._ending or self._aborted:
            raise ClosedError(f"stream {self.stream_id} has ended")
        encoded = self._encode(obj) if isinstance(obj, Shareable) else obj
        gathering = self.gathering
        flight = gathering.launch(len(encoded.envelope) + encoded.total)
        self.in_flight += 1
        seq = flight.seq
        if flight.waiting:
            flight.payload, flight.final = encoded, final
            flight.sent = self._time()
            flight.due = look = flight.sent + timeout
            milliseconds = max(1, int(timeout * 1000))
            pacing = self._pacing
            for name in gathering.active:
                if pacing is not None:
                    milliseconds = max(1, int(min(timeout, pacing.budget(name, flight.size)) * 1000))
                self._legs[name].send(seq, encoded, milliseconds, final=final)
            if pacing is not None:
                look = min(look, pacing.sent(flight))
            if look < self._dues.next:
                self._dues.look_at(look)
        else:
            self.on_news()  # nobody is left to wait for: it is to be judged at once
        return flight

    def _expire(self, flight: Flight, reason: str, names: Collection[str] | None) -> None:
        policy = self._options.straggler
        for site in self.gathering.expire(flight, reason, names):
            if isinstance(policy, Drop) and site.misses >= policy.n and site.name in self.gathering.active:
                self._drop(site.name, f"did not answer {site.misses} objects in a row in time")
        self._held.settled(flight)
        self.on_news()
        self._room.set()

    def _lose_patience(self, flight: Flight) -> None:
        self.gathering.lose_patience(flight)
        self.on_news()

    def judged(self, flight: Flight) -> None:
        """The application has seen a flight's replies: its place in the window, and the replies' memory, are free."""
        self.in_flight -= 1
        held = self._held
        if held.replies or held.waiting:
            held.judged(flight)
        self.gathering.judged(flight)
        self._room.set()

    async def released(self, seq: int) -> None:
        """Wait until the engine no longer needs the buffers of an object: every site has answered it, or is gone."""
        await self._held.released(self.gathering.flights.get(seq))

    # --- what the links tell ---

    def handle(self, event: StreamEvent) -> None:
        """Take one event of one of this stream's legs; never waits."""
        if type(event) is ReplyArrived and type(event.value) is Shareable and not self._unpacking.waiting:
            self._on_reply(event)
        else:
            self._unpacking.take(event)

    def _handle(self, event: StreamEvent) -> None:
        if type(event) is ReplyArrived:
            self._on_reply(event)
        elif type(event) is Ended:
            self._on_ended(event)
        elif type(event) is EndingBegun:
            self._acknowledged(event.leg.site)
        elif type(event) is Refused:
            self._on_refused(event)
        elif type(event) is Lost:
            self._on_lost(event)
        elif type(event) is Resumed:
            self._on_resumed(event)
        elif type(event) is Suspended:
            self._changed.set()  # the acknowledgement of its end is awaited for longer

    def _on_resumed(self, event: Resumed) -> None:
        """A site's way has come back: send it again what it does not have."""
        leg = event.leg
        self.gathering.sites[leg.site].resumed += 1
        self._changed.set()
        if leg.withdrawn:
            return
        now = self._time()
        for seq in range(event.seq, leg.sent):
            flight = self.gathering.flights.get(seq)
            if flight is None:  # made by an earlier life, and not again yet
                return
            milliseconds = max(1, int((flight.due - now) * 1000))
            try:
                leg.send_again(event, seq, flight.payload, milliseconds, final=flight.final)
            except RemoteProtocolError as exc:  # its word may have come through a hub, which is not to blame
                self._abort_leg(leg, ReturnCode.BAD_REQUEST_DATA, str(exc))
                leg.close()
                self._on_lost(Lost(leg, str(exc)))
                return

    def _on_reply(self, event: ReplyArrived) -> None:
        leg, seq = event.leg, event.seq
        name = leg.site
        gathering = self.gathering
        flight = gathering.flights.get(seq)
        if name not in gathering.active or flight is None:
            leg.inbound.release(event.size)
            return
        value = event.value
        if type(value) is not Shareable:  # a CodecError
            value = make_reply(ReturnCode.EXECUTION_RESULT_ERROR, {"reason": str(value)})
        held_back = bool(gathering.at_limit)
        reply: dict[str, Any] = value
        headers = reply.get(_HEADERS, {})  # a [] of what derives from dict takes three times as long
        if _PEER_PROPS in headers:  # they come with a site's first reply
            props = headers[_PEER_PROPS]
            self._peer_props[name] = props if type(props) is dict else {}
        headers[_PEER_PROPS] = self._peer_props[name]
        now = self._time() if self._timed else 0.0
        late = not gathering.reply(name, seq, value, now)
        if self._pacing is not None:
            self._pacing.answered(name, flight, now)
        if self._timed and not flight.complete and flight.closes < self._dues.next:
            self._dues.look_at(flight.closes)
        if self.keep_offers:
            self.offers.append(Offer(name, seq, value, late))
            self.on_news()
        if event.size > UNCHARGED:
            if not late and name in flight.replies and not self._ending:
                self._held.hold(seq, leg, event.size)
            else:
                leg.inbound.release(event.size)
        if self._stalls:
            stall = self._stalls.pop(name, None)
            if stall is not None:
                self._host.deadlines.cancel(stall)
        if self._held.waiting:
            self._held.settled(flight)
        if flight.complete:
            self.on_news()
        if held_back:
            self._room.set()
        if event.final:
            self._leave(name, Standing.FINISHED, ReturnCode.OK, Outcome.NOT_SENT)

    def _leave(self, name: str, standing: Standing, rc: str, outcome: Outcome, reason: str = "") -> None:
        """A site takes no more part; see to all flights that waited for it."""
        waited = list(self.gathering.flights.values())
        self.gathering.leave(name, standing, rc, outcome, reason)
        for flight in waited:
            self._held.settled(flight)
        self.on_news()
        self._room.set()

    def _on_refused(self, event: Refused) -> None:
        name = event.leg.site
        self._legs.pop(name, None)
        if event.rc == ReturnCode.COMMUNICATION_ERROR:
            self._leave(name, Standing.UNREACHABLE, event.rc, Outcome.UNREACHABLE, event.reason)
        elif self._optional:
            self._leave(name, Standing.SKIPPED, ReturnCode.OK, Outcome.NOT_SENT, event.reason)
        else:
            self._leave(name, Standing.REFUSED, event.rc, Outcome.REFUSED, event.reason)
        self._acknowledged(name)

    def _on_lost(self, event: Lost) -> None:
        name = event.leg.opening.targets[0]
        event.leg.owner = None
        leg = self._legs.pop(name, None)
        if leg is not None and not leg.closed:  # what a sealed stream's site is said to have said was not its word
            self._abort_leg(leg, ReturnCode.COMMUNICATION_ERROR, event.reason)
            leg.close()
        rc = ReturnCode.COMMUNICATION_ERROR
        if name in self.gathering.active:
            self._leave(name, Standing.UNREACHABLE, rc, Outcome.LOST, event.reason)
        elif not self.gathering.sites[name].ended:
            self.gathering.end(name, rc, None, event.reason)
        self._acknowledged(name)

    def _on_ended(self, event: Ended) -> None:
        name = event.leg.site
        self._legs.pop(name, None)
        rc, reason = event.rc, event.reason
        by_itself = rc == ReturnCode.OK and not (self._ending or self._aborted)
        outcome = Outcome.NOT_SENT if by_itself else Outcome.ABORTED
        self._leave(name, Standing.FINISHED, ReturnCode.OK, outcome)
        self.gathering.end(name, rc, event.result, reason)
        self._acknowledged(name)

    def _acknowledged(self, name: str) -> None:
        self._unended.discard(name)
        self._changed.set()

    # --- ending ---

    async def end(self, value: object) -> None:
        """End the stream everywhere, and wait for the acknowledgements, up to the end timeout.

        Args:
            value: what ended it: objects that were not consumed yet are taken back. None: there are no more.
        """
        withdraw = value is not None
        await self.stand_aborted()
        self._ending = True
        if withdraw:
            self.keep_offers = False
            self.offers.clear()
        self._held.release_replies()  # those that are still to come may wait for their room
        for leg in self._legs.values():
            if leg.closed:  # how it has ended is being decoded
                continue
            word = b"" if self._seal is None else self._seal.words[leg.site].end(leg.sent, withdraw)
            leg.end(withdraw=withdraw, word=word)
        self._unended = set(self._legs)
        legs = self._legs
        with anyio.move_on_after(self._options.end_timeout):
            # What is taken back needs no site that cannot be told.
            while any(legs[name].attached or not withdraw for name in self._unended):
                await self._changed.wait()
        for name in list(legs):
            self._end_without(name, legs.pop(name), withdraw=withdraw)

    def _end_without(self, name: str, leg: OpenerLeg, *, withdraw: bool) -> None:
        """End the stream without a site's acknowledgement."""
        rc, reason = ReturnCode.TIMEOUT, f"did not acknowledge the end within {self._options.end_timeout} s"
        if not leg.attached:
            rc, reason = ReturnCode.COMMUNICATION_ERROR, "its way was broken when the stream ended"
        if not leg.attached and (withdraw or not self.gathering.sites[name].backlog):
            leg.owner = None  # should the way come back in time, the site hears the end
        else:
            self._abort_leg(leg, rc, reason)
            leg.close()
        self._leave(name, Standing.DROPPED, rc, Outcome.ABORTED, reason)
        self.gathering.end(name, rc, None, reason)

    def abort(self, rc: str, reason: str) -> None:
        """Abort the stream, here now; never waits."""
        if self._aborted:
            return
        self._aborted = True
        self._rc_of_abort = rc
        self._reason_of_abort = reason
        self._announce_abort()

    def _announce_abort(self) -> None:
        self._say_abort()

    def _say_abort(self) -> None:
        """Send ABORT to every site, now."""
        assert self._rc_of_abort is not None
        self._unended = {name for name, leg in self._legs.items() if leg.attached and not leg.ended}
        for leg in self._legs.values():
            self._abort_leg(leg, self._rc_of_abort, self._reason_of_abort)
        self._changed.set()

    def _abort_leg(self, leg: OpenerLeg, rc: str, reason: str) -> None:
        if self._seal is None:
            leg.abort(rc, self._host.name, reason)
        else:
            word = self._seal.words[leg.site].abort(Cause(rc, self._host.name, reason))
            leg.abort(ReturnCode.TASK_ABORTED, self._host.name, "", word)

    async def settle_abort(self) -> None:
        """Wait, shielded and bounded, until every site has heard the ABORT; then forget the stream."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(self._host.settings.abort_timeout):
            while self._unended:
                await self._changed.wait()
        self.forget()

    def forget(self) -> None:
        """Leave nothing behind: no leg, no deadline, no reservation; every open pair is aborted."""
        for name in list(self.gathering.active):
            rc = self._rc_of_abort or ReturnCode.OK
            self._leave(name, Standing.FINISHED, rc, Outcome.ABORTED)
        for leg in self._legs.values():
            leg.close()
        self._legs.clear()
        for stall in self._stalls.values():
            self._host.deadlines.cancel(stall)
        self._stalls.clear()
        self._dues.look_at(math.inf)
        self._held.let_go()

    def result(self, value: Any) -> StreamResult:
        """Close the account, and say how the stream ended.

        Args:
            value: what ``process_replies`` returned, or None.

        Raises:
            AssertionError: the account does not balance: a defect of this package.
        """
        self.forget()
        return conclude(
            self.gathering,
            value,
            aborted=self._aborted,
            rc_of_abort=self._rc_of_abort,
            seconds=self._time() - self._started,
            stream_id=self.stream_id,
        )


def _nothing() -> None:
    """Nobody waits for news."""
