"""One link's session: the greeting, heartbeats, presence, and the farewell."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, ClassVar, Final

from ..arguments import SITE_NAME
from ..errors import LocalProtocolError, RemoteProtocolError
from . import bodies
from .events import Departed, Event, Greeted, PresenceChanged, Silent
from .frames import MAGIC, VERSIONS, Flag, FrameType, pack
from .sending import Scheduler

if TYPE_CHECKING:
    from ..options import Limits

_PING: Final = pack(FrameType.PING)
_INCARNATION_SIZE: Final = 16
_TICKS: Final = 16  # in one heartbeat: links whose heartbeats fall into the same tick are served by one wake-up
_PATIENCE: Final = 4  # what of the time between heartbeat and silence the side that accepted waits for the other's PING
_AMPLIFICATION: Final = 3  # times the bytes received: the most that a stranger is told (threat T26)
_LONGEST_REASON: Final = 1000  # bytes of a GOAWAY's reason
_SHOWN: Final = 80  # characters of what a peer said that an error repeats: a name has no more than 63


def _goaway(code: str, reason: str) -> bytes:
    return pack(FrameType.GOAWAY, body=bodies.encode(bodies.Goodbye(code, reason)))


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:_LONGEST_REASON])


class SessionState(Enum):
    """Where a link is in its life."""

    GREETING = auto()
    """Nothing but the peer's HELLO is taken."""
    ADMITTING = auto()
    """A listener has the peer's HELLO and has not answered it yet."""
    OPEN = auto()
    """Streams flow."""
    CLOSING = auto()
    """One side said GOAWAY."""


class Session:
    """The state of one link that concerns no stream.

    Args:
        me: what this side says of itself.
        dialler: whether this side dialled; it greets first.
        scheduler: the link's output.
        events: where this session's events are appended.
        heartbeat, silence, hello_timeout: in seconds; see ``EngineSettings`` and ``Limits``.
        now: the time.
        proven: returns the name that the peer has proven to have, once it has; None where nothing proves it. It raises,
            and with it what took the HELLO, where that peer is not trusted any more.
    """

    TRANSITIONS: ClassVar[dict[tuple[SessionState, int], Callable[[Session, bytes], None]]] = {}

    def __init__(
        self,
        me: bodies.Hello,
        scheduler: Scheduler,
        events: list[Event],
        *,
        dialler: bool,
        heartbeat: float,
        silence: float,
        hello_timeout: float,
        now: float,
        proven: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._me = me
        self._proven = proven
        self._scheduler = scheduler
        self._events = events
        # Each PING is answered, and the answer is a sign of life too: so one side's PINGs are enough.
        self._quiet = heartbeat if dialler else heartbeat + (silence - heartbeat) / _PATIENCE
        self._tick = heartbeat / _TICKS
        self._silence = silence
        self._hello_deadline = now + hello_timeout
        self._dialler = dialler
        self._admitted = False  # both have greeted; a link that is turned away before takes no streams
        self.received = 0  # bytes, kept by the core
        self.state = SessionState.GREETING
        self.peer: bodies.Hello | None = None
        self.for_good = False  # the streams on this link end with it
        self.farewell = False  # the peer has said goodbye, which ends its own streams
        self._lives: dict[str, bytes] = {}  # incarnations of the sites that a hub leads to
        self.last_received = now
        self.last_sent = now
        if dialler:
            scheduler.control(self._greeting())

    def _greeting(self) -> bytes:
        return pack(FrameType.HELLO, body=bodies.encode(self._me), flags=Flag.CRITICAL)

    @property
    def accepts_streams(self) -> bool:
        """Whether frames of streams may come."""
        return self._admitted and self.state in (SessionState.OPEN, SessionState.CLOSING)

    def admit(self) -> None:
        """Answer the peer's HELLO: the link is open."""
        if self.state is not SessionState.ADMITTING:
            raise LocalProtocolError(f"a link that is {self.state.name} cannot be admitted")
        self.state = SessionState.OPEN
        self._admitted = True
        self._scheduler.control(self._greeting())

    def life(self, site: str) -> bytes:
        """Return the incarnation of a site that this link leads to; empty if it is not known."""
        if self.peer is not None and self.peer.site == site:
            return self.peer.incarnation
        return self._lives.get(site, b"")

    def leave(self, code: str, reason: str = "") -> None:
        """Say GOAWAY; the shell closes the link once it is written. A stranger hears no more than it has paid for."""
        self.for_good = True
        if self.state is SessionState.CLOSING:
            return
        self.state = SessionState.CLOSING
        room = _LONGEST_REASON
        if not (self._admitted or self._dialler):
            # The reason's length is written in up to 3 bytes, 1 of which an empty reason has too.
            room = min(room, _AMPLIFICATION * self.received - len(_goaway(code, "")) - 2)
        if room >= 0:
            self._scheduler.control(_goaway(code, reason.encode("utf-8", "replace")[:room].decode("utf-8", "ignore")))

    def limit_before_greeting(self, kind: int, limits: Limits) -> int:
        """Return the largest body of a frame that comes before both sides have greeted.

        Raises:
            RemoteProtocolError: no such frame is taken yet, whatever its length.
        """
        if (self.state, kind) not in self.TRANSITIONS:
            raise RemoteProtocolError(f"frame of type {kind} while the link is {self.state.name}")
        return limits.hello if kind == FrameType.HELLO else limits.control

    def announce(self, presence: bytes) -> None:
        """Send an encoded PRESENCE body."""
        if self.state is SessionState.OPEN:
            self._scheduler.control(pack(FrameType.PRESENCE, body=presence))

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._scheduler.control(_PING)

    def frame(self, kind: int, body: bytes) -> None:
        """Take one frame that concerns no stream.

        Raises:
            RemoteProtocolError: it is not allowed in this state, or breaks the rules.
        """
        handler = self.TRANSITIONS.get((self.state, kind))
        if handler is None:
            raise RemoteProtocolError(f"frame of type {kind} while the link is {self.state.name}")
        handler(self, body)

    def _on_hello(self, body: bytes) -> None:
        hello = bodies.decode(bodies.Hello, body)
        if hello.magic != MAGIC:
            raise RemoteProtocolError(f"HELLO with magic {hello.magic[:_SHOWN]!r}, expected {MAGIC!r}")
        if hello.low > VERSIONS[1] or hello.high < VERSIONS[0]:
            raise RemoteProtocolError(
                f"peer speaks versions {hello.low} to {hello.high}, this side {VERSIONS[0]} to {VERSIONS[1]}"
            )
        if SITE_NAME.match(hello.site) is None:
            raise RemoteProtocolError(f"HELLO from {hello.site[:_SHOWN]!r}, which is no site's name")
        proven = self._proven()
        if proven is not None and hello.site != proven:
            raise RemoteProtocolError(f"HELLO from {hello.site}, and the certificate is that of {proven}")
        if len(hello.incarnation) != _INCARNATION_SIZE:
            raise RemoteProtocolError(f"HELLO with an incarnation of {len(hello.incarnation)} bytes, expected 16")
        if hello.frame < 4096 or hello.window < hello.frame or hello.relay_window < 4096 or hello.backlog < 1:
            raise RemoteProtocolError(
                f"HELLO with frame {hello.frame}, window {hello.window}, relay window {hello.relay_window}, "
                f"backlog {hello.backlog}: too small to work with"
            )
        self.peer = hello
        self._scheduler.limit_frame(hello.frame)
        self.state = SessionState.OPEN if self._dialler else SessionState.ADMITTING
        self._admitted = self._dialler
        self._events.append(Greeted(hello))

    def _on_ping(self, body: bytes) -> None:
        self._scheduler.pong()

    def _on_pong(self, body: bytes) -> None:
        """Nothing: any byte is life."""

    def _on_presence(self, body: bytes) -> None:
        presence = bodies.decode(bodies.Presence, body)
        for name in (*presence.joined, *presence.left):
            if SITE_NAME.match(name) is None:
                raise RemoteProtocolError(f"PRESENCE of {name[:_SHOWN]!r}, which is no site's name")
        if presence.full:
            self._lives.clear()
        for name in presence.left:
            self._lives.pop(name, None)
        self._lives.update(zip(presence.joined, presence.lives, strict=False))
        self._events.append(PresenceChanged(presence))

    def _on_goaway(self, body: bytes) -> None:
        goodbye = bodies.decode(bodies.Goodbye, body)
        self.farewell = True
        if goodbye.code != "bye":
            self.for_good = True
        self.state = SessionState.CLOSING
        # It is about to be logged.
        self._events.append(Departed(bodies.Goodbye(*map(_printable, (goodbye.code, goodbye.reason)))))

    def next_deadline(self) -> float:
        """Return when ``handle_timeout`` is to be called at the latest."""
        if self.state in (SessionState.GREETING, SessionState.ADMITTING):
            return self._hello_deadline
        return min(self.last_received + self._silence, self._beat())

    def _beat(self) -> float:
        """Return when a heartbeat is due: early enough, and at a moment that other links have in common with this."""
        due = self.last_sent + self._quiet
        return due - due % self._tick

    def handle_timeout(self, now: float) -> None:
        """Send a heartbeat if it is due; notice a peer that has fallen silent."""
        if self.state in (SessionState.GREETING, SessionState.ADMITTING):
            if now >= self._hello_deadline:
                self._events.append(Silent(now - self.last_received))
            return
        # Compared as next_deadline() adds them up: rounding must not make a moment come and not be due.
        if now >= self.last_received + self._silence:
            self._events.append(Silent(now - self.last_received))
        elif now >= self._beat():
            self.last_sent = now
            self.ping()


Session.TRANSITIONS = {
    (SessionState.GREETING, FrameType.HELLO): Session._on_hello,
    (SessionState.GREETING, FrameType.GOAWAY): Session._on_goaway,
    (SessionState.ADMITTING, FrameType.GOAWAY): Session._on_goaway,
    (SessionState.OPEN, FrameType.PING): Session._on_ping,
    (SessionState.OPEN, FrameType.PONG): Session._on_pong,
    (SessionState.OPEN, FrameType.PRESENCE): Session._on_presence,
    (SessionState.OPEN, FrameType.GOAWAY): Session._on_goaway,
    (SessionState.CLOSING, FrameType.PING): Session._on_pong,
    (SessionState.CLOSING, FrameType.PONG): Session._on_pong,
    (SessionState.CLOSING, FrameType.PRESENCE): Session._on_pong,
    (SessionState.CLOSING, FrameType.GOAWAY): Session._on_pong,
}
