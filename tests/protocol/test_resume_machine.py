"""Streams that outlive their links, in every order that hypothesis finds: nothing comes twice, nothing is skipped."""

from __future__ import annotations

from typing import Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from fanstream.protocol.events import Event, Lost, Resumed, Suspended

from .linked import Legs
from .test_machines import EXAMPLES, Node, Stream, Streams, Way, counts, encode, limits, picks

WINDOW: Final = 60_000


class Outliving(Streams):
    """Links break, at both ends at once or unnoticed at one of them, and come back; shells resume when they please."""

    RESUME = WINDOW

    def keeper(self, node: Node) -> Legs:
        assert isinstance(node.shared.keeper, Legs)
        return node.shared.keeper

    # -- links --

    @precondition(lambda self: self.ways)
    @rule(pick=picks, unnoticed=st.sampled_from([None, None, 0, 1]))
    def lose(self, pick: int, unnoticed: int | None) -> None:
        way = self.ways.pop(pick % len(self.ways))
        self.mark(*way.nodes)
        for end, (node, other, side) in enumerate(zip(way.nodes, way.nodes[::-1], way.sides, strict=True)):
            del node.sides[other.name]
            if end == unnoticed:
                node.gone.append(side)
            else:
                self.heed(side.core.lost("cut"))
                assert side.core.legs == {}

    def mark(self, *nodes: Node) -> None:
        for stream in self.all.values():
            stream.broken = stream.broken or all(node in stream.path for node in nodes)

    @precondition(lambda self: any(node.gone for node in self.nodes.values()))
    @rule(pick=picks)
    def notice(self, pick: int) -> None:
        able = [node for node in self.nodes.values() if node.gone]
        side = able[pick % len(able)].gone.pop(0)
        self.heed(side.core.lost("silent"))
        assert side.core.legs == {}

    @rule()
    def come_back(self) -> None:
        linked = [set(way.nodes) for way in self.ways]
        for pair in self.pairs():
            if set(pair) not in linked:
                self.ways.append(Way(*pair))
                return

    def pairs(self) -> list[tuple[Node, Node]]:
        """Who may be linked to whom."""
        raise NotImplementedError

    def waiting(self) -> list[Stream]:
        """The streams whose openers may ask to go on."""
        return [
            stream
            for stream in self.all.values()
            if stream.leg in self.keeper(stream.path[0]).waiting
            and not (stream.leg.attached or stream.leg.resuming or stream.leg.closed)
            and stream.path[1].name in stream.path[0].sides
        ]

    @precondition(lambda self: self.waiting())
    @rule(pick=picks)
    def resume(self, pick: int) -> None:
        able = self.waiting()
        stream = able[pick % len(able)]
        stream.path[0].sides[stream.path[1].name].core.resume(stream.leg)

    @precondition(lambda self: self.ways and self.streams)
    @rule(pick=picks, amounts=st.lists(counts, min_size=1, max_size=6))
    def carry_some_and_flap(self, pick: int, amounts: list[int]) -> None:
        """So that links break in the middle of objects and replies, and both ends go on."""
        for amount in amounts:
            for way in self.ways:
                for end in (0, 1):
                    way.write(end, amount)
                    self.heed(way.read(end, amount))
        self.lose(pick, None)
        self.come_back()
        while self.waiting():
            self.resume(0)

    @rule(pick=picks, rarely=st.integers(0, 4))
    def expire(self, pick: int, rarely: int) -> None:
        """One end has waited for long enough."""
        able = [(node, leg) for node in self.nodes.values() for leg in self.keeper(node).waiting]
        if able and not rarely:
            node, leg = able[pick % len(able)]
            self.give_up(node, leg.opening.stream)

    def give_up(self, node: Node, name: bytes) -> None:
        stream = self.all[int.from_bytes(name, "big")]
        stream.given_up = True
        leg = stream.leg if stream.path[0] is node else stream.far
        assert leg is not None
        event = leg.expire("over")
        if event is not None:
            self.heed([event])

    def is_whole(self, stream: Stream) -> bool:
        far = stream.far
        unnoticed = any(node.gone for node in stream.path)
        return not unnoticed and stream.leg.attached and (far is None or far.closed or far.attached)

    # -- what the cores tell --

    def hear(self, event: Event, stream: Stream) -> None:
        if isinstance(event, Suspended):
            assert stream.broken
        elif isinstance(event, Resumed):
            if event.leg is stream.leg and not stream.leg.withdrawn:
                for seq in range(event.seq, stream.leg.sent):
                    final = stream.said_last and seq + 1 == stream.leg.sent
                    stream.leg.send_again(event, seq, encode(stream.sent[seq]), 1000, final=final)
        elif isinstance(event, Lost) and event.leg is stream.leg and not stream.leg.aborted:
            # Nobody can say to whom OPEN was lost behind a hub, and no site takes a stream that it has given up.
            assert stream.given_up or (stream.far is None and len(stream.path) > 2)
            super().hear(event, stream)
        elif isinstance(event, Lost) and event.leg is stream.far:
            assert stream.given_up or stream.stopped
            super().hear(event, stream)
        else:
            super().hear(event, stream)

    # -- the end --

    def restore(self) -> None:
        while any(node.gone for node in self.nodes.values()):
            self.notice(0)
        while len(self.ways) < len(self.pairs()):
            self.come_back()
        while self.waiting():
            self.resume(0)
        for node in self.nodes.values():
            for leg in list(self.keeper(node).waiting):
                stream = self.all[int.from_bytes(leg.opening.stream, "big")]
                if stream.given_up:  # and so does the other end, in the end
                    self.give_up(node, leg.opening.stream)

    def forget(self) -> None:
        for _ in range(3):  # aborts that could not be told yet
            self.restore()
            self.carry_all()
        for node in self.nodes.values():
            keeper = self.keeper(node)
            for stream in self.all.values():
                if node is stream.path[-1] and stream.far is not None and stream.far in keeper.lingering:
                    assert stream.broken, "DONE follows at once"
                    stream.far.expire("over")
            assert (keeper.incoming, keeper.waiting, keeper.lingering) == ({}, [], [])
        for stream in self.all.values():
            assert stream.leg.closed
            assert stream.far is None or stream.far.closed
            assert (stream.leg.outbound.waiting, stream.leg.inbound.held) == (0, 0)
            if not (stream.aborted or stream.given_up or stream.leg.aborted):
                assert stream.answered == len(stream.replies)


class TwoOutliving(Outliving):
    """One link."""

    @initialize(data=st.data())
    def link(self, data: st.DataObject) -> None:
        self.nodes = {name: Node(name, limits(data.draw)) for name in ("server", "site-1")}
        self.ways = [Way(*self.nodes.values())]

    def pairs(self) -> list[tuple[Node, Node]]:
        server, site = self.nodes.values()
        return [(server, site)]

    def path(self, opener: str, target: str) -> list[Node]:
        return [self.nodes[opener], self.nodes[target]]


class OutlivingThroughHub(Outliving):
    """Two sites at a hub."""

    @initialize(data=st.data())
    def link(self, data: st.DataObject) -> None:
        self.nodes = {name: Node(name, limits(data.draw)) for name in ("hub", "a", "b")}
        self.ways = [Way(*pair) for pair in self.pairs()]

    def pairs(self) -> list[tuple[Node, Node]]:
        return [(self.nodes[name], self.nodes["hub"]) for name in ("a", "b")]

    def path(self, opener: str, target: str) -> list[Node]:
        between = [] if "hub" in (opener, target) else [self.nodes["hub"]]
        return [self.nodes[opener], *between, self.nodes[target]]


TestTwoOutliving = TwoOutliving.TestCase
TestOutlivingThroughHub = OutlivingThroughHub.TestCase
TestTwoOutliving.settings = TestOutlivingThroughHub.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=60, suppress_health_check=list(HealthCheck)
)
