"""Link cores connected in memory, with a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fanstream.codec import Codec, Encoded
from fanstream.options import EngineSettings, Limits
from fanstream.protocol import bodies
from fanstream.protocol.core import LinkCore
from fanstream.protocol.events import Event, Opened
from fanstream.protocol.frames import MAGIC
from fanstream.protocol.opener import OpenerLeg
from fanstream.protocol.receiver import ReceiverLeg
from fanstream.protocol.relay import FIRST_WINDOW
from fanstream.protocol.surroundings import Admit, Refusal, Route, Routing, Surroundings
from fanstream.shareable import Shareable

CODEC = Codec()
_E = TypeVar("_E", bound=Event)


def here(core: LinkCore, routing: Routing, target: str) -> LinkCore | Refusal | None:
    return None


def welcome(opening: bodies.Opening) -> Refusal | None:
    return None


class Legs:
    """A ``Keeper`` that only writes down what it is told."""

    def __init__(self) -> None:
        self.incoming: dict[tuple[str, bytes], ReceiverLeg] = {}
        self.waiting: list[OpenerLeg | ReceiverLeg] = []
        self.lingering: list[OpenerLeg | ReceiverLeg] = []

    def opened(self, leg: ReceiverLeg) -> None:
        self.incoming[leg.opener, leg.opening.stream] = leg

    def find(self, opener: str, stream: bytes) -> ReceiverLeg | None:
        return self.incoming.get((opener, stream))

    def count(self, opener: str) -> int:
        return sum(leg.opener == opener for leg in self.incoming.values())

    def suspended(self, leg: OpenerLeg | ReceiverLeg) -> None:
        if leg not in self.waiting:
            self.waiting.append(leg)

    def resumed(self, leg: OpenerLeg | ReceiverLeg) -> None:
        if leg in self.waiting:
            self.waiting.remove(leg)

    def followed(self, leg: ReceiverLeg) -> None:
        pass

    def lingers(self, leg: OpenerLeg | ReceiverLeg) -> None:
        if leg not in self.lingering:
            self.lingering.append(leg)

    def closed(self, leg: OpenerLeg | ReceiverLeg) -> None:
        self.resumed(leg)
        if isinstance(leg, ReceiverLeg):
            self.incoming.pop((leg.opener, leg.opening.stream), None)
        if leg in self.lingering:
            self.lingering.remove(leg)


def surroundings(route: Route = here, *, admit: Admit = welcome, **settings: Any) -> Surroundings:
    return Surroundings(EngineSettings(**settings), CODEC, route, admit, Legs())


class Side:
    """One end of a link: its core, and what it has told."""

    def __init__(self, name: str, *, dialler: bool, shared: Surroundings | None = None, hub: bool = False) -> None:
        shared = shared or surroundings()
        limits = shared.settings.limits
        hello = bodies.Hello(
            name,
            name.encode().ljust(16, b"."),
            hub,
            limits.frame,
            limits.window,
            FIRST_WINDOW,
            limits.backlog,
            [],
            MAGIC,
        )
        self.name = name
        self.shared = shared
        self.core = LinkCore(hello, shared, dialler=dialler, on_output=lambda: None, now=0.0)
        self.events: list[Event] = []

    def feed(self, *frames: bytes, now: float = 0.0, step: int = 1 << 20) -> None:
        """Let the core read *frames*, at most *step* bytes at a time."""
        data = memoryview(b"".join(frames))
        while data:
            count = 0
            for buffer in self.core.get_buffers():
                size = min(len(buffer), len(data) - count, step - count)
                buffer[:size] = data[count : count + size]
                count += size
            self.events += self.core.advance(count, now)
            data = data[count:]

    def output(self, now: float = 0.0) -> bytes:
        """Take all that is to be written now."""
        written = []
        while out := self.core.next_output(1 << 20, now):
            written.append(b"".join(out))
        return b"".join(written)

    def take(self, kind: type[_E]) -> _E:
        """Take the next event, which is a *kind*."""
        event = self.events.pop(0)
        assert type(event) is kind, event
        return event


Pair = tuple[Side, Side]


def pump(*pairs: Pair, now: float = 0.0, step: int = 1 << 20) -> None:
    """Carry bytes both ways over each pair until nothing is left to be carried."""
    moved = True
    while moved:
        moved = False
        for left, right in pairs:
            for source, sink in ((left, right), (right, left)):
                if data := source.output(now):
                    moved = True
                    sink.feed(data, now=now, step=step)


def connect(left: Side, right: Side) -> Pair:
    """Let *left*, which has dialled, and *right* greet each other."""
    pair = (left, right)
    pump(pair)
    right.core.session.admit()
    pump(pair)
    left.events.clear()
    right.events.clear()
    return pair


def linked(left: Surroundings | None = None, right: Surroundings | None = None, *, name: str = "server") -> Pair:
    """Make an open link from *name* to ``site-1``."""
    return connect(Side(name, dialler=True, shared=left), Side("site-1", dialler=False, shared=right))


def opening(*targets: str, opener: str = "server", backlog: int = 2, stream: bytes = b"s" * 16) -> bodies.Opening:
    return bodies.Opening(stream, opener, list(targets or ("site-1",)), "train", "round", backlog)


def stream(pair: Pair, *, backlog: int = 2) -> tuple[OpenerLeg, ReceiverLeg]:
    """Open a stream from the left to the right."""
    left, right = pair
    leg = left.core.open(opening(backlog=backlog), 0, b"ctx")
    pump(pair)
    return leg, right.take(Opened).leg


def encoded(**data: Any) -> Encoded:
    return CODEC.encode(Shareable(data))


def small_limits(**limits: Any) -> Callable[[], Surroundings]:
    """Make surroundings with small frames and windows."""
    values = {"frame": 4096, "window": 64 * 1024, **limits}
    return lambda: surroundings(limits=Limits(**values))


class Hub:
    """Three cores and one more: a server, a hub with a link to each side, and a site."""

    def __init__(self) -> None:
        self.shared = surroundings(self.route, limits=Limits(relay_window=256 * 1024))
        self.server = Side("server", dialler=True)
        self.near = Side("hub", dialler=False, shared=self.shared, hub=True)
        self.far = Side("hub", dialler=False, shared=self.shared, hub=True)
        self.site = Side("site-1", dialler=True)
        self.pairs: tuple[Pair, ...] = (connect(self.server, self.near), connect(self.site, self.far))

    def route(self, core: LinkCore, routing: Routing, target: str) -> LinkCore | Refusal | None:
        if target == "site-1":
            return self.far.core
        return Refusal("COMMUNICATION_ERROR", f"no {target} here")

    def pump(self, step: int = 1 << 20) -> None:
        pump(*self.pairs, step=step)

    def stream(self) -> tuple[OpenerLeg, ReceiverLeg]:
        leg = self.server.core.open(opening(), 0, b"ctx")
        self.pump()
        return leg, self.site.take(Opened).leg

    def assert_no_route(self) -> None:
        assert (self.near.core.legs, self.far.core.legs) == ({}, {})
        assert self.shared.relays.used == 0
        assert (self.server.core.legs, self.site.core.legs) == ({}, {})
