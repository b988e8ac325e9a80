"""LinkCore: one link's whole protocol. Frames and the time go in; events and bytes to send come out. It never waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..arguments import OWN
from ..codec.payloads import Encoded
from ..errors import LocalProtocolError, RemoteProtocolError
from ..shareable import ReturnCode
from . import bodies
from .budget import ASIDE
from .events import Event, Forwarded, Lost, Opened, TurnedAway
from .frames import MAX_ALIAS, NO_STREAM, PAYLOAD_SIZE, U32, Flag, FrameType, pack
from .inbound import Inbound, NoRoomError
from .opener import OpenerLeg
from .receiver import ReceiverLeg
from .receiving import FrameReader
from .relay import RelayLeg
from .relay import join as join_relays
from .sending import Buffer, Outbound, Scheduler
from .session import Session
from .surroundings import Refusal, Routing, Surroundings

_SLOWEST: Final = 16 * 1024  # bytes per second; a link that carries less cannot carry a CHUNK within any patience
_TELL: Final = 1.0  # seconds between two signs that a large object moves: a sender waits no shorter for one
_LINK_TYPES: Final = 16  # below it, a frame concerns the link
_KNOWN: Final = frozenset(int(kind) for kind in FrameType)

AnyLeg = OpenerLeg | ReceiverLeg | RelayLeg


class LinkCore:
    """The protocol of one link.

    Its face to the shell: read into ``get_buffers()`` and call ``advance``; write what ``next_output`` returns; call
    ``handle_timeout`` when ``next_deadline`` has come; do what the returned events say.

    Args:
        me: this side's HELLO.
        shared: what all links of the engine share.
        dialler: whether this side dialled.
        on_output: called when there is something to write after there was nothing.
        now: the time.
        proven: returns the name that the peer has proven to have, once it has; None where nothing proves it. It raises,
            and with it what took the HELLO, where that peer is not trusted any more.

    Attributes:
        allowance: bytes of one stream that may come ahead of their grants, at most.
        reads: how often bytes have come.
        stray: frames for streams that have ended, and replies to nothing: counted, never delivered.
        duplicates: objects and replies that came twice.
    """

    def __init__(
        self,
        me: bodies.Hello,
        shared: Surroundings,
        *,
        dialler: bool,
        on_output: Callable[[], object],
        now: float,
        proven: Callable[[], str | None] = lambda: None,
    ) -> None:
        settings = shared.settings
        limits = settings.limits
        self.me = me
        self._shared = shared
        self.keeper = shared.keeper
        self._limits = limits
        self.events: list[Event] = []
        self.scheduler = Scheduler(on_output, limits.frame)
        self.session = Session(
            me,
            self.scheduler,
            self.events,
            dialler=dialler,
            heartbeat=settings.heartbeat,
            silence=settings.silence,
            hello_timeout=limits.hello_timeout,
            now=now,
            proven=proven,
        )
        self._reader = FrameReader(self)
        self.get_buffers = self._reader.get_buffers
        self._payload_limit = PAYLOAD_SIZE + 8 * limits.buffers + limits.envelope
        self._limit_of = {
            int(FrameType.HELLO): limits.hello,
            int(FrameType.OPEN): U32.size + limits.routing + limits.opening,
            int(FrameType.OBJECT): self._payload_limit,
            int(FrameType.REPLY): self._payload_limit,
            int(FrameType.CHUNK): limits.frame,
            int(FrameType.ENDED): limits.control + limits.envelope,
            int(FrameType.PRESENCE): limits.routing * 16,
        }
        self.legs: dict[int, AnyLeg] = {}
        self._next_alias = 1 if dialler else 2
        self._last_opened = 0  # by the peer
        self._peer_streams: dict[str, int] = {}  # open streams of each origin
        self._begun: float | None = None  # when the frame that is not whole yet began
        self._frames = 0  # how many were whole before it
        self._tell_at = now + _TELL
        self.allowance = limits.origin_bytes // ASIDE
        self.reads = 0
        self.stray = 0
        self.duplicates = 0

    # --- the face to the shell ---

    def advance(self, count: int, now: float) -> list[Event]:
        """Take note that *count* bytes were read into the buffers.

        Raises:
            RemoteProtocolError: they break the rules; the link is to be closed.
        """
        session = self.session
        session.last_received = now
        session.received += count
        self.reads += 1
        reader = self._reader
        reader.advance(count)
        if reader.idle:
            self._begun = None
        elif self._begun is None or self._frames != reader.frames:
            self._begun, self._frames = now, reader.frames
        if now >= self._tell_at:
            self._tell_at = now + _TELL
            for leg in self.legs.values():
                if not isinstance(leg, RelayLeg):  # a hub gives credit as bytes leave it
                    leg.inbound.tell_progress(self.landing(leg.alias))
        return self.take_events()

    def take_events(self) -> list[Event]:
        """Return what has happened since the last time."""
        events = self.events
        if not events:
            return []
        taken = events[:]
        events.clear()
        return taken

    def landing(self, alias: int) -> int:
        """Return how many bytes have come of a stream's payload or CHUNK that is not whole."""
        begun, size = self._reader.landing
        return size if begun == alias else 0

    def next_output(self, limit: int, now: float) -> list[Buffer]:
        """Return what is to be written next, about *limit* bytes; empty when there is nothing.

        Asking again says that all that was returned before has been written.
        """
        out = self.scheduler.next_output(limit, now)
        if out:
            self.session.last_sent = now
        return out

    def next_deadline(self) -> float:
        """Return when ``handle_timeout`` is to be called at the latest."""
        deadline = self.session.next_deadline()
        return deadline if self._begun is None else min(deadline, self._frame_deadline(self._begun))

    def _frame_deadline(self, begun: float) -> float:
        """Return when a frame has to be whole: a peer must not hold a link by a byte now and then (threat T15)."""
        return begun + self._limits.frame_timeout + self._reader.wanted / _SLOWEST

    def handle_timeout(self, now: float) -> list[Event]:
        """Do what is due at *now*.

        Raises:
            RemoteProtocolError: the peer has not finished a frame in time.
        """
        begun = self._begun
        if begun is not None and now >= self._frame_deadline(begun):
            self._begun = None
            raise RemoteProtocolError(f"a frame begun {now - begun:.1f} s ago is not whole")
        self.session.handle_timeout(now)
        return self.take_events()

    def lost(self, reason: str, *, for_good: bool = False) -> list[Event]:
        """The link is gone: suspend every stream on it.

        Args:
            reason: why.
            for_good: end them instead, as where a side has broken the rules. A side that has said goodbye ends its own,
                not those that it has only forwarded.
        """
        session = self.session
        for leg in list(self.legs.values()):
            left = session.for_good and not isinstance(leg, RelayLeg)
            leg.lost(reason, for_good=for_good or left or (session.farewell and leg.site == self.peer))
        return self.take_events()

    # --- opening streams ---

    @property
    def peer(self) -> str:
        """The peer's name; empty before its HELLO."""
        hello = self.session.peer
        return "" if hello is None else hello.site

    def window_towards(self, site: str) -> int:
        """Return the wire window of a stream from here to *site* over this link."""
        hello = self.session.peer
        if hello is None:
            raise LocalProtocolError("a stream needs a link whose peer has said HELLO")
        return hello.window if site == hello.site else hello.relay_window

    def open(self, opening: bodies.Opening, target: int, body: bytes) -> OpenerLeg:
        """Open a stream to one of its targets over this link; objects may follow at once.

        Raises:
            LocalProtocolError: the link takes no streams now, or *body* is longer than a peer need take.
        """
        if not self.session.accepts_streams:
            raise LocalProtocolError(f"the link to {self.peer or 'a stranger'} is {self.session.state.name}")
        alias = self._new_alias()
        leg = OpenerLeg(self, alias, opening, target, life=self.session.life(opening.targets[target]), body=body)
        self._equip(leg)
        self.legs[alias] = leg
        self._say_open(leg)
        return leg

    def open_again(self, leg: OpenerLeg) -> None:
        """Open a stream whose OPEN was lost with another link."""
        self.forget(leg.alias)
        leg.attach(self, self._new_alias())
        self._say_open(leg)

    def _say_open(self, leg: OpenerLeg) -> None:
        body = bodies.join_opening(leg.opening, leg.body)
        self.scheduler.control(pack(FrameType.OPEN, leg.alias, body=body, flags=Flag.CRITICAL, target=leg.target))

    def resume(self, leg: OpenerLeg) -> None:
        """Ask the site of a suspended stream over this link where to go on.

        Raises:
            LocalProtocolError: the link takes no streams now.
        """
        if not self.session.accepts_streams:
            raise LocalProtocolError(f"the link to {self.peer or 'a stranger'} is {self.session.state.name}")
        leg.resume(self, self._new_alias())

    def _new_alias(self) -> int:
        alias = self._next_alias
        if alias > MAX_ALIAS:
            raise LocalProtocolError("this link has used up its stream aliases")
        self._next_alias += 2
        return alias

    def restore(
        self, opening: bodies.Opening, answered: int, acked: int, replies: dict[int, tuple[Encoded, int]], ending: bytes
    ) -> ReceiverLeg:
        """Make this site's end of a stream as an earlier life has left it, suspended until its opener resumes it.

        The link that makes it leads nowhere; for the rest see ``ReceiverLeg.restore``.
        """
        leg = ReceiverLeg(self, NO_STREAM, opening, 0)
        self._equip_detached(leg)
        self.keeper.opened(leg)
        leg.restore(answered, acked, replies, ending)
        return leg

    def take_up(self, opening: bodies.Opening, body: bytes, *, life: bytes, settled: int) -> OpenerLeg:
        """Make the opener's end of a durable stream at its one target, suspended, as an earlier life has left it.

        Like ``restore``, over a link that leads nowhere.

        Args:
            opening: what this life would say to open it.
            body: what was sent along with OPEN.
            life: the target's, when the stream was opened there.
            settled: how many objects are behind it.
        """
        leg = OpenerLeg(self, NO_STREAM, opening, 0, life=life, body=body)
        self._equip_detached(leg)
        leg.restore(settled)
        return leg

    def _equip_detached(self, leg: OpenerLeg | ReceiverLeg) -> None:
        leg.outbound = Outbound(self.scheduler, leg.SENDS, NO_STREAM, 0, window=0)
        self._take_in_data(leg)

    def _equip(self, leg: OpenerLeg | ReceiverLeg) -> None:
        self.equip_anew(leg)
        self._take_in_data(leg)

    def _take_in_data(self, leg: OpenerLeg | ReceiverLeg) -> None:
        decoder = self._shared.decoder
        leg.inbound = Inbound(
            self.scheduler,
            decoder.carrier if leg.opening.sealed else decoder,
            self._shared.budget,
            self._limits,
            alias=leg.alias,
            target=leg.target,
            origin=leg.site,
            deliver=leg.deliver,
        )

    def equip_anew(self, leg: OpenerLeg | ReceiverLeg) -> None:
        """Give a leg that begins, or goes on, on this link what it sends with."""
        window = self.window_towards(leg.site)
        leg.outbound = Outbound(self.scheduler, leg.SENDS, leg.alias, leg.target, window=window)

    def forget(self, alias: int) -> None:
        """Take a leg out of the table."""
        leg = self.legs.pop(alias, None)
        if leg is not None and alias % 2 != self._next_alias % 2:
            opener = leg.opening.opener
            left = self._peer_streams[opener] - 1
            if left:
                self._peer_streams[opener] = left
            else:
                del self._peer_streams[opener]

    def count_reset(self, opener: str) -> None:
        """Hear that *opener* has given up a stream before anything of it was consumed (threat T17).

        Raises:
            RemoteProtocolError: it is the peer, and does so too often. Who is behind a hub opens nothing for a while.
        """
        now = self.session.last_received
        if self._shared.resets.count(opener, now) and opener == self.peer:
            limits = self._limits
            raise RemoteProtocolError(
                f"{opener} has reset more than {limits.resets} streams within {limits.reset_window} s, before their "
                "first objects were consumed"
            )

    # --- the sink of the reader ---

    def limit(self, kind: int) -> int:
        """Return the largest body, in bytes, of a frame of this type; a stranger may say nothing but hello."""
        if not self.session.accepts_streams:
            return self.session.limit_before_greeting(kind, self._limits)
        return self._limit_of.get(kind, self._limits.control)

    def frame(self, kind: int, flags: int, target: int, alias: int, seq: int, attempt: int, body: bytes) -> None:
        """Take one whole frame."""
        leg = self.legs.get(alias)
        if leg is not None:
            handler = leg.handlers.get(kind)
            if handler is None:
                self._unexpected(leg, kind, flags)
                return
            try:
                handler(leg, flags, seq, body)
            except RemoteProtocolError as exc:
                self._blame(leg, exc)
        elif kind < _LINK_TYPES and kind in _KNOWN:
            if alias != NO_STREAM:
                raise RemoteProtocolError(f"frame of type {kind} names stream {alias}, expected none")
            self.session.frame(kind, body)
        elif kind not in _KNOWN:
            self._unknown(kind, flags)
        elif not self.session.accepts_streams:
            raise RemoteProtocolError(f"frame of type {kind} while the link is {self.session.state.name}")
        elif kind == FrameType.OPEN:
            self._on_open(alias, target, body)
        elif kind == FrameType.RESUME and alias % 2 != self._next_alias % 2:
            self._on_resume(alias, target, seq, body)
        else:
            self._check_stale(alias)

    def _unexpected(self, leg: AnyLeg, kind: int, flags: int) -> None:
        """Take a frame of a stream that its leg has no handler for."""
        if kind not in _KNOWN or kind < _LINK_TYPES:
            self._unknown(kind, flags)
        else:
            self._blame(leg, RemoteProtocolError(f"frame of type {kind} for {leg!r}"))

    def _unknown(self, kind: int, flags: int) -> None:
        if flags & Flag.CRITICAL or not self.session.accepts_streams or kind in _KNOWN:
            raise RemoteProtocolError(f"frame of type {kind}, which this side does not take here")

    def _check_stale(self, alias: int) -> None:
        """Count a frame for a stream that has ended; one that never was is against the rules."""
        mine = alias % 2 == self._next_alias % 2
        if alias == NO_STREAM or (alias >= self._next_alias if mine else alias > self._last_opened):
            raise RemoteProtocolError(f"frame for stream {alias}, which was never opened")
        self.stray += 1

    def chunk(self, alias: int, seq: int, buffer: int, offset: int, size: int, target: int) -> memoryview | None:
        """Say where a CHUNK's bytes are to land; None to discard them."""
        leg = self.legs.get(alias)
        if leg is None:
            self._check_stale(alias)
            return None
        try:
            return leg.chunk(seq, buffer, offset, size)
        except RemoteProtocolError as exc:
            self._blame(leg, exc)
            return None

    def chunk_done(self, alias: int, seq: int, size: int) -> None:
        """Hear that a CHUNK has landed."""
        leg = self.legs.get(alias)
        if leg is None:
            return
        try:
            leg.chunk_done(seq, size)
        except RemoteProtocolError as exc:
            self._blame(leg, exc)

    def _blame(self, leg: AnyLeg, error: RemoteProtocolError) -> None:
        """End the link if its peer broke the rules, or only the stream if that came through a hub, or has no room."""
        crowded = isinstance(error, NoRoomError)
        rc = ReturnCode.SERVICE_UNAVAILABLE if crowded else ReturnCode.BAD_REQUEST_DATA
        if isinstance(leg, OpenerLeg) and (crowded or leg.site != self.peer):
            owner = leg.owner
            leg.abort(rc, self.me.site, str(error))
            leg.close()
            leg.owner = owner  # it is to hear of this, also where the leg lives on to say ABORT again
            self.events.append(Lost(leg, str(error)))
        elif isinstance(leg, ReceiverLeg) and (crowded or leg.opener != self.peer):
            leg.reject(rc, str(error))
            self.events.append(Lost(leg, str(error)))
        else:
            raise error

    def _take_alias(self, alias: int, frame: str) -> None:
        if alias == NO_STREAM or alias % 2 == self._next_alias % 2 or alias <= self._last_opened:
            raise RemoteProtocolError(f"{frame} names stream {alias}: not a new one of its side's numbering")
        self._last_opened = alias

    def _on_open(self, alias: int, target: int, body: bytes) -> None:
        self._take_alias(alias, "OPEN")
        limits = self._limits
        opening, rest = bodies.split_opening(body, max_routing=limits.routing, max_body=limits.opening)
        if len(opening.stream) != 16 or target >= len(opening.targets) or opening.backlog < 1:
            raise RemoteProtocolError(
                f"OPEN of a stream with an id of {len(opening.stream)} bytes, target {target} of "
                f"{len(opening.targets)} and a backlog of {opening.backlog}"
            )
        where = self._shared.route(self, opening, opening.targets[target])
        if not isinstance(where, Refusal):
            where = self._too_many(opening.opener) or where
        if where is None:
            where = self._admit(opening) or self.fits(opening) or self._shared.admit(opening)
        if isinstance(where, Refusal):
            self._turn_away(alias, target, opening, where)
            return
        if where is None:
            leg = ReceiverLeg(self, alias, opening, target)
            self._equip(leg)
            self._take_in(alias, leg)
            self.keeper.opened(leg)
            self.events.append(Opened(leg, rest))
        else:
            self._forward(alias, target, opening, where, FrameType.OPEN, 0, body)

    def _on_resume(self, alias: int, target: int, seq: int, body: bytes) -> None:
        """An opener wants to go on with a stream whose way was broken."""
        self._take_alias(alias, "RESUME")
        resumption = bodies.decode(bodies.Resumption, body)
        if len(resumption.stream) != 16 or target >= len(resumption.targets):
            raise RemoteProtocolError(
                f"RESUME of a stream with an id of {len(resumption.stream)} bytes, target {target} of "
                f"{len(resumption.targets)}"
            )
        where = self._shared.route(self, resumption, resumption.targets[target])
        if isinstance(where, LinkCore):  # a route is a stream anew
            where = self._too_many(resumption.opener) or where
        if isinstance(where, LinkCore):
            self._forward(alias, target, resumption, where, FrameType.RESUME, seq, body)
            return
        if isinstance(where, Refusal):
            self._turn_away(alias, target, resumption, where)
            return
        leg = self.keeper.find(resumption.opener, resumption.stream)
        if leg is None or not leg.knows(resumption):
            # Where there is none, its OPEN may be said again; not where it is another life's.
            life = self.me.incarnation if leg is None else b""
            refusal = Refusal(ReturnCode.RUN_MISMATCH, f"{self.me.site} does not have this stream")
            self._refuse(alias, target, refusal, life)
            return
        try:
            leg.resume(self, alias, target, seq, resumption)
        except RemoteProtocolError as exc:
            if alias not in self.legs:
                self._refuse(alias, target, Refusal(ReturnCode.BAD_REQUEST_DATA, str(exc)))
            self._blame(leg, exc)

    def _too_many(self, opener: str) -> Refusal | None:
        limit = self._limits.streams
        # Those suspended count, or a site could open as many again over each new link.
        there = max(self._peer_streams.get(opener, 0), self.keeper.count(opener))
        if there >= limit:
            return Refusal(ReturnCode.SERVICE_UNAVAILABLE, f"{limit} streams of {opener} are open")
        return None

    def _admit(self, opening: bodies.Opening) -> Refusal | None:
        if self._shared.resets.too_many(opening.opener, self.session.last_received):
            return Refusal(
                ReturnCode.SERVICE_UNAVAILABLE,
                f"{opening.opener} has reset more than {self._limits.resets} streams within "
                f"{self._limits.reset_window} s",
            )
        return None

    def fits(self, opening: bodies.Opening) -> Refusal | None:
        """Say whether such a stream is taken here at all, begun in this life of the engine or in an earlier one."""
        me, settings = self.me.site, self._shared.settings
        if opening.backlog > self._limits.backlog:
            return Refusal(
                ReturnCode.BAD_REQUEST_DATA,
                f"a backlog of {opening.backlog} objects, limit {self._limits.backlog}",
            )
        if settings.sealed_only and not opening.sealed and not opening.channel.startswith(OWN):
            return Refusal(ReturnCode.BAD_REQUEST_DATA, f"{me} takes sealed streams only")
        return None

    def _turn_away(self, alias: int, target: int, routing: Routing, refusal: Refusal) -> None:
        self._refuse(alias, target, refusal)
        self.events.append(TurnedAway(routing, routing.targets[target], refusal.rc, refusal.reason))

    def _refuse(self, alias: int, target: int, refusal: Refusal, life: bytes = b"") -> None:
        cause = bodies.Cause(refusal.rc, self.me.site, refusal.reason, life)
        frame = pack(FrameType.REFUSED, alias, body=bodies.encode(cause), flags=Flag.FINAL, target=target)
        self.scheduler.answer(frame)

    def _take_in(self, alias: int, leg: ReceiverLeg | RelayLeg) -> None:
        self.legs[alias] = leg
        self.count_stream(leg.opening.opener)

    def count_stream(self, opener: str) -> None:
        """Take note that a stream of *opener* has a leg on this link."""
        self._peer_streams[opener] = self._peer_streams.get(opener, 0) + 1

    def _forward(
        self,
        alias: int,
        target: int,
        routing: Routing,
        onward: LinkCore,
        kind: FrameType,
        seq: int,
        body: bytes,
    ) -> None:
        """Make a route from here to another link, and send on the frame that asked for it."""
        pool = self._shared.relays
        near = RelayLeg(self, alias, routing, target, pool, credit=self.window_towards(routing.opener))
        far_alias = onward._new_alias()
        site = routing.targets[target]
        far = RelayLeg(onward, far_alias, routing, target, pool, credit=onward.window_towards(site))
        join_relays(near, far)
        self._take_in(alias, near)
        onward.legs[far_alias] = far
        onward.scheduler.control(pack(kind, far_alias, seq, body=body, flags=Flag.CRITICAL, target=target))
        self.events.append(Forwarded(routing, site))
        near.widen(self._limits.relay_window)
        far.widen(self._limits.relay_window)
