"""Honest cores and arrays' memory in every order that hypothesis finds: what is sent arrives, and nothing is left."""

from __future__ import annotations

import gc
import os
import random
from abc import abstractmethod
from collections import deque
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fanstream.codec import Encoded
from fanstream.codec.memory import Memory
from fanstream.options import Limits
from fanstream.protocol import bodies
from fanstream.protocol.core import LinkCore
from fanstream.protocol.events import (
    Aborted,
    EndAnnounced,
    Ended,
    EndingBegun,
    Event,
    Lost,
    ObjectArrived,
    Opened,
    Refused,
    ReplyArrived,
    StreamEvent,
)
from fanstream.protocol.opener import OpenerLeg
from fanstream.protocol.receiver import ReceiverLeg
from fanstream.protocol.relay import FIRST_WINDOW, RelayLeg
from fanstream.protocol.surroundings import Refusal, Routing, Surroundings
from fanstream.shareable import ReturnCode, Shareable
from tests.protocol.linked import CODEC, Side, connect, surroundings

KIB: Final = 1024
BASE: Final = random.Random(0).randbytes(600 * KIB)
"""What all data is cut from, each piece at another place."""

EXAMPLES: Final = int(os.environ.get("FANSTREAM_EXAMPLES", "40"))
STREAMS: Final = 4  # open at once
LARGEST_FRAME: Final = 64 * KIB  # of those below, and of envelopes with all the data that travels inside

sizes = st.lists(
    st.one_of(st.integers(0, 300), st.integers(3 * KIB, 70 * KIB), st.integers(50 * KIB, 300 * KIB)), max_size=3
)
counts = st.one_of(st.integers(1, 100), st.integers(100, 20 * KIB), st.integers(20 * KIB, 1024 * KIB))
picks = st.integers(0, STREAMS - 1)


def limits(draw: Any) -> Limits:
    """Draw limits that are soon reached."""
    origin = draw(st.sampled_from([64, 250, 400])) * KIB
    return Limits(
        frame=draw(st.sampled_from([4 * KIB, 16 * KIB, 64 * KIB])),
        window=draw(st.sampled_from([64, 100, 300])) * KIB,
        origin_bytes=origin,
        engine_bytes=origin * draw(st.integers(1, 3)),
        relay_window=draw(st.sampled_from([64, 100, 256])) * KIB,
        relay_bytes=1024 * KIB,
    )


def parts(stream: int, seq: int, direction: int, lengths: list[int]) -> list[bytes]:
    begin = (stream * 7919 + seq * 10_477 + direction * 99_991) % (250 * KIB)
    return [BASE[begin + index : begin + index + length] for index, length in enumerate(lengths)]


def encode(content: list[bytes]) -> Encoded:
    return CODEC.encode(Shareable({"parts": content}))


class Node:
    """One engine's part: what its links share, and its end of each link by the name of the other."""

    def __init__(self, name: str, bounds: Limits) -> None:
        self.name = name
        self.shared: Surroundings = surroundings(self.route, admit=self.admit, limits=bounds)
        self.sides: dict[str, Side] = {}
        self.known: set[bytes] = set()  # streams that were opened here
        self.gone: list[Side] = []  # whose link is gone without the node's knowledge

    def route(self, core: LinkCore, routing: Routing, target: str) -> LinkCore | Refusal | None:
        if target == self.name:
            return None
        side = self.sides.get(target)
        return Refusal(ReturnCode.COMMUNICATION_ERROR, "no way") if side is None else side.core

    def admit(self, opening: bodies.Opening) -> Refusal | None:
        if opening.stream in self.known:
            return Refusal(ReturnCode.BAD_REQUEST_DATA, "was opened before")
        self.known.add(opening.stream)
        return None

    def legs(self) -> list[OpenerLeg | ReceiverLeg | RelayLeg]:
        return [leg for side in (*self.sides.values(), *self.gone) for leg in side.core.legs.values()]


class Way:
    """One link, and the bytes that were written to it and not read from it yet."""

    def __init__(self, dialler: Node, listener: Node) -> None:
        self.nodes = (dialler, listener)
        self.sides = connect(
            Side(dialler.name, dialler=True, shared=dialler.shared),
            Side(listener.name, dialler=False, shared=listener.shared, hub=True),
        )
        dialler.sides[listener.name], listener.sides[dialler.name] = self.sides
        self.under_way = (bytearray(), bytearray())

    def write(self, end: int, limit: int) -> bool:
        out = self.sides[end].core.next_output(limit, 0.0)
        for buffer in out:
            self.under_way[end].extend(buffer)
        return bool(out)

    def read(self, end: int, count: int) -> list[Event]:
        """Let the side opposite *end* read; return what it tells."""
        side = self.sides[1 - end]
        data = bytes(self.under_way[end][:count])
        del self.under_way[end][:count]
        side.feed(data)
        events, side.events = side.events, []
        return events


class Stream:
    """One stream as its two shells know it."""

    def __init__(self, number: int, path: list[Node], backlog: int) -> None:
        self.number = number
        self.path = path
        self.backlog = backlog
        self.leg: OpenerLeg
        self.far: ReceiverLeg | None = None
        self.sent: list[list[bytes]] = []
        self.arrived = 0
        self.waiting: deque[ObjectArrived] = deque()
        self.replies: list[list[bytes]] = []
        self.judged = 0
        self.unjudged: deque[int] = deque()
        self.answered = 0
        self.said_end = False
        self.aborted = False
        self.hasty = False  # forgets an aborted stream as soon as the site has heard of it
        self.wanted = True  # the site has not ended it
        self.broken = False  # a link of its path was lost
        self.given_up = False  # an end has waited too long for its way
        self.said_last = False  # with its last object
        self.over = False  # at the opener
        self.final: int | None = None
        self.stopped = False  # the site is to end it: aborted or withdrawn

    def drop(self) -> None:
        self.waiting.clear()
        self.wanted = False

    @property
    def sends(self) -> bool:
        return (
            not (self.over or self.said_end or self.aborted or self.leg.ended)
            and len(self.sent) - self.answered < self.backlog
        )

    @property
    def consumes(self) -> bool:
        return self.far is not None and self.wanted and not self.stopped and bool(self.waiting)

    @property
    def may_finish(self) -> bool:
        """Whether the site has nothing left to do but to say that it has ended."""
        if self.far is None or not self.wanted:
            return False
        return self.stopped or (self.final is not None and not self.waiting and self.arrived == self.final)


class Streams(RuleBasedStateMachine):
    """Streams between nodes; what the shells do is done by hand, in any order."""

    RESUME = 0  # milliseconds that a broken way may take to come back

    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[str, Node] = {}
        self.ways: list[Way] = []
        self.streams: list[Stream] = []  # those that at least one end still knows
        self.all: dict[int, Stream] = {}

    @abstractmethod
    def path(self, opener: str, target: str) -> list[Node]:
        """The nodes from one to another."""

    # -- the wire --

    @precondition(lambda self: self.ways)
    @rule(pick=picks, end=st.integers(0, 1), limit=counts)
    def write(self, pick: int, end: int, limit: int) -> None:
        self.ways[pick % len(self.ways)].write(end, limit)

    @precondition(lambda self: self.ways)
    @rule(pick=picks, end=st.integers(0, 1), count=counts)
    def read(self, pick: int, end: int, count: int) -> None:
        self.heed(self.ways[pick % len(self.ways)].read(end, count))

    @rule()
    def carry_all(self) -> None:
        moved = True
        while moved:
            moved = False
            for way in self.ways:
                for end in (0, 1):
                    while way.write(end, 1 << 20):
                        moved = True
                    moved = moved or bool(way.under_way[end])  # whose answers may go out on a way before this one
                    self.heed(way.read(end, 1 << 30))
        for stream in self.streams:
            if not self.is_whole(stream):
                continue
            self.check_credit_is_back(stream)
            if stream.far is not None and stream.wanted and not stream.waiting:
                assert stream.far.inbound.held == 0
            if not (stream.over or stream.unjudged):
                assert stream.leg.inbound.held == 0

    def is_whole(self, stream: Stream) -> bool:
        """Whether the way of a stream is there, as far as both its ends know."""
        return True

    # -- the opener --

    @precondition(lambda self: len(self.streams) < STREAMS and self.ways)
    @rule(data=st.data(), backlog=st.integers(1, 6))
    def open(self, data: st.DataObject, backlog: int) -> None:
        opener, target = data.draw(st.sampled_from(sorted(self.nodes))), data.draw(st.sampled_from(sorted(self.nodes)))
        path = self.path(opener, target)
        side = self.nodes[opener].sides.get(path[1].name) if opener != target else None
        if side is None:
            return
        stream = Stream(len(self.all), path, backlog)
        name = stream.number.to_bytes(16, "big")
        life = side.core.me.incarnation
        opening = bodies.Opening(name, opener, [target], "train", "round", backlog, life=life, resume=self.RESUME)
        stream.leg = side.core.open(opening, 0, b"")
        stream.leg.owner = stream
        self.streams.append(stream)
        self.all[stream.number] = stream

    @precondition(lambda self: any(stream.sends for stream in self.streams))
    @rule(pick=picks, objects=st.lists(sizes, min_size=1, max_size=6), final=st.integers(0, 9))
    def send(self, pick: int, objects: list[list[int]], final: int) -> None:
        able = [stream for stream in self.streams if stream.sends]
        stream = able[pick % len(able)]
        for index, lengths in enumerate(objects):
            if not stream.sends:
                break
            seq = len(stream.sent)
            content = parts(stream.number, seq, 0, lengths)
            stream.sent.append(content)
            last = final == 0 and index + 1 == len(objects)
            stream.leg.send(seq, encode(content), 1000, final=last)
            if last:
                stream.said_last = True
                self.say_end(stream, withdraw=False)

    @precondition(lambda self: any(stream.unjudged for stream in self.streams))
    @rule(pick=picks)
    def judge(self, pick: int) -> None:
        able = [stream for stream in self.streams if stream.unjudged]
        stream = able[pick % len(able)]
        stream.leg.inbound.release(stream.unjudged.popleft())

    @precondition(lambda self: self.streams)
    @rule(pick=picks, withdraw=st.booleans())
    def end(self, pick: int, withdraw: bool) -> None:
        self.say_end(self.streams[pick % len(self.streams)], withdraw=withdraw)

    def say_end(self, stream: Stream, *, withdraw: bool) -> None:
        if not (stream.over or stream.said_end or stream.aborted):
            stream.said_end = True
            stream.leg.end(withdraw=withdraw)
            if withdraw:
                stream.aborted = True  # not everything has to arrive

    @precondition(lambda self: self.streams)
    @rule(pick=picks, hasty=st.booleans(), at_once=st.booleans())
    def abort(self, pick: int, hasty: bool, at_once: bool) -> None:
        stream = self.streams[pick % len(self.streams)]
        if stream.over:
            return
        stream.aborted = True
        stream.hasty = hasty
        ended = stream.leg.ended or not stream.leg.attached
        stream.leg.abort(ReturnCode.TASK_ABORTED, "opener", "")
        stream.unjudged.clear()
        if (
            at_once or ended
        ):  # as a stream does with a site that it drops, or that has only replies to say, or cannot be told
            stream.leg.close()
            stream.over = True

    # -- the site --

    @precondition(lambda self: any(stream.consumes for stream in self.streams))
    @rule(pick=picks, lengths=sizes, final=st.integers(0, 9))
    def consume(self, pick: int, lengths: list[int], final: int) -> None:
        able = [stream for stream in self.streams if stream.consumes]
        self.answer(able[pick % len(able)], lengths, final=final == 0)

    def answer(self, stream: Stream, lengths: list[int], *, final: bool = False) -> None:
        leg = stream.far
        assert leg is not None
        arrived = stream.waiting.popleft()
        leg.release(arrived.size)
        content = parts(stream.number, arrived.seq, 1, lengths)
        stream.replies.append(content)
        leg.reply(arrived.seq, encode(content), final=final)
        if final:
            leg.ended(ReturnCode.OK, "", b"")
            stream.drop()

    @precondition(lambda self: any(stream.may_finish for stream in self.streams))
    @rule(pick=picks)
    def finish(self, pick: int) -> None:
        able = [stream for stream in self.streams if stream.may_finish]
        self.say_ended(able[pick % len(able)])

    @precondition(lambda self: self.streams)
    @rule(pick=picks)
    def end_at_the_site(self, pick: int) -> None:
        stream = self.streams[pick % len(self.streams)]
        if stream.far is not None and stream.wanted:
            self.say_ended(stream)

    def say_ended(self, stream: Stream) -> None:
        assert stream.far is not None
        stream.far.ended(ReturnCode.OK, "", b"result")
        stream.drop()

    # -- what the cores tell --

    def heed(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Opened):
                stream = self.all[int.from_bytes(event.leg.opening.stream, "big")]
                assert stream.far is None
                stream.far = event.leg
                event.leg.owner = stream
                if stream not in self.streams:  # its opener has forgotten it, and its ABORT follows
                    self.streams.append(stream)
            elif isinstance(event, StreamEvent) and event.leg.owner is not None:
                # What a hub has forwarded, or refused, concerns none of its own.
                self.hear(event, event.leg.owner)
        self.streams = [stream for stream in self.streams if not self.is_gone(stream)]

    @staticmethod
    def is_gone(stream: Stream) -> bool:
        return stream.over and (stream.far is None or not stream.wanted)

    def hear(self, event: Event, stream: Stream) -> None:
        if isinstance(event, ObjectArrived):
            assert not stream.stopped
            assert event.seq == stream.arrived
            stream.arrived += 1
            if stream.wanted:
                assert event.value["parts"] == stream.sent[event.seq]
                stream.waiting.append(event)
        elif isinstance(event, EndAnnounced):
            stream.final = event.count
            stream.stopped = stream.stopped or event.withdraw
        elif isinstance(event, Aborted):
            stream.stopped = True
            stream.waiting.clear()
            assert stream.far is not None
            if not stream.far.closed:  # as by a LOST right behind the ABORT
                stream.far.ending()
        elif isinstance(event, ReplyArrived):
            assert not stream.over
            assert event.seq == stream.answered
            assert event.value["parts"] == stream.replies[event.seq]
            stream.answered += 1
            stream.unjudged.append(event.size)
        elif isinstance(event, EndingBegun):
            if stream.hasty:
                stream.leg.close()
                stream.over = True
        elif isinstance(event, Ended):
            stream.over = True
            assert stream.leg.aborted or stream.answered == len(stream.replies)
        elif isinstance(event, Refused):
            assert stream.broken or stream.far is None
            stream.over = True
        elif isinstance(event, Lost):
            assert stream.broken
            if event.leg is stream.far:
                stream.drop()
            else:
                stream.over = True
        else:
            pytest.fail(f"{event} between honest cores")
        if stream.over:
            stream.unjudged.clear()

    # -- what always holds --

    def ends(self, node: Node) -> list[OpenerLeg | ReceiverLeg]:
        """The ends of streams that a node has, suspended ones included."""
        ends: list[OpenerLeg | ReceiverLeg | None] = []
        for stream in self.all.values():
            ends += [stream.leg] if stream.path[0] is node else []
            ends += [stream.far] if stream.path[-1] is node else []
        return [end for end in ends if end is not None and not end.closed]

    @invariant()
    def what_is_reserved_is_held_by_a_leg(self) -> None:
        for node in self.nodes.values():
            halves = [leg.inbound for leg in self.ends(node)]
            assert node.shared.budget.used == sum(half.held + half.aside for half in halves)
            assert min([half.held for half in halves], default=0) >= 0
            assert all(0 <= half._ahead <= half.aside for half in halves)
            relayed = sum(leg._window - FIRST_WINDOW for leg in node.legs() if isinstance(leg, RelayLeg))
            assert node.shared.relays.used == relayed

    @invariant()
    def no_more_than_a_window_and_one_frame_is_under_way(self) -> None:
        for stream in self.streams:
            if not stream.over:
                window = stream.path[1].shared.settings.limits.window
                if len(stream.path) > 2:
                    window = max(FIRST_WINDOW, stream.path[1].shared.settings.limits.relay_window)
                assert -LARGEST_FRAME < stream.leg.outbound.credit <= window
        for node in self.nodes.values():
            for leg in node.legs():
                if isinstance(leg, RelayLeg):
                    assert leg._owed <= leg._window + LARGEST_FRAME
                    assert sum(held.size for held in leg.other._queue) <= leg._owed

    def check_credit_is_back(self, stream: Stream) -> None:
        """Nothing is under way: what was not given back is less than what is given back at once."""
        if stream.over or stream.said_end or stream.aborted or stream.far is None or not stream.wanted:
            return
        near, far = stream.leg, stream.far
        for out, into, nodes in ((near, far, stream.path), (far, near, stream.path[::-1])):
            window, landed = nodes[-1].shared.settings.limits.window, into.inbound._landed
            assert landed * 2 < window
            if len(nodes) == 2:
                assert out.outbound.credit + landed == window
            else:
                first, last = self.route_of(nodes, stream)
                assert out.outbound.credit == first._window
                assert last.credit + landed == window

    def route_of(self, nodes: list[Node], stream: Stream) -> tuple[RelayLeg, RelayLeg]:
        """The two legs of a route, in the order of *nodes*."""
        name = stream.leg.opening.stream
        first, last = [
            leg
            for neighbour in (nodes[0], nodes[-1])
            for leg in nodes[1].sides[neighbour.name].core.legs.values()
            if isinstance(leg, RelayLeg) and leg.opening.stream == name
        ]
        return first, last

    def restore(self) -> None:
        """Bring back what is broken, as time does."""

    def forget(self) -> None:
        """Drop what is only remembered, as time does."""

    def teardown(self) -> None:
        for _ in range(10 * STREAMS):
            self.restore()
            self.carry_all()
            for stream in list(self.streams):
                while stream.consumes:
                    self.answer(stream, [100])
                    self.carry_all()
                while stream.unjudged:
                    stream.leg.inbound.release(stream.unjudged.popleft())
                self.say_end(stream, withdraw=False)
                if stream.may_finish:
                    self.say_ended(stream)
            if not self.streams:
                break
        self.carry_all()
        self.streams = [stream for stream in self.streams if not self.is_gone(stream)]
        assert self.streams == [], [vars(stream) for stream in self.streams]
        self.forget()
        for node in self.nodes.values():
            assert node.legs() == []
            assert (node.shared.budget.used, node.shared.budget.waiting, node.shared.relays.used) == (0, 0, 0)
            for side in node.sides.values():
                assert side.core._peer_streams == {}
                assert (side.core.scheduler._small, list(side.core.scheduler._ring)) == ([], [])


class TwoCores(Streams):
    """One link; streams are opened from either end."""

    @initialize(data=st.data())
    def link(self, data: st.DataObject) -> None:
        self.nodes = {name: Node(name, limits(data.draw)) for name in ("server", "site-1")}
        self.ways = [Way(*self.nodes.values())]

    def path(self, opener: str, target: str) -> list[Node]:
        return [self.nodes[opener], self.nodes[target]]


class ThroughHub(Streams):
    """Three sites at a hub; streams among all four, and links that break and come back."""

    @initialize(data=st.data())
    def link(self, data: st.DataObject) -> None:
        self.nodes = {name: Node(name, limits(data.draw)) for name in ("hub", "a", "b", "c")}
        for name in ("a", "b", "c"):
            self.ways.append(Way(self.nodes[name], self.nodes["hub"]))

    def path(self, opener: str, target: str) -> list[Node]:
        between = [] if "hub" in (opener, target) else [self.nodes["hub"]]
        return [self.nodes[opener], *between, self.nodes[target]]

    @precondition(lambda self: self.ways)
    @rule(pick=picks)
    def lose(self, pick: int) -> None:
        way = self.ways.pop(pick % len(self.ways))
        for stream in self.all.values():  # a site may still be sending replies of one that both ends have done with
            stream.broken = stream.broken or all(node in stream.path for node in way.nodes)
        for node, other, side in zip(way.nodes, way.nodes[::-1], way.sides, strict=True):
            del node.sides[other.name]
            events = side.core.lost("cut")
            assert side.core.legs == {}
            self.heed(events)

    @precondition(lambda self: len(self.ways) < 3)
    @rule()
    def come_back(self) -> None:
        hub = self.nodes["hub"]
        name = next(name for name in ("a", "b", "c") if name not in hub.sides)
        self.ways.append(Way(self.nodes[name], hub))


class Lending(RuleBasedStateMachine):
    """Memory for arrays, taken, dropped and cleared in any order."""

    @initialize(limit=st.sampled_from([0, 100, 1000, 10_000]))
    def make(self, limit: int) -> None:
        self.memory = Memory(limit)
        self.held: list[tuple[memoryview, int]] = []  # since the last clear
        self.early: list[tuple[memoryview, int]] = []
        self.mark = 0
        self.peak = 0

    @rule(size=st.sampled_from([1, 100, 100, 300, 1000]))
    def take(self, size: int) -> None:
        view = self.memory.take(size)
        assert len(view) == size
        self.mark = self.mark % 255 + 1
        view[:] = bytes([self.mark]) * size
        self.held.append((view, self.mark))
        del view
        lent = sum(len(held) for held, _ in self.held)
        self.peak = max(self.peak, lent)
        assert self.memory.lent == lent
        assert self.memory.lent + self.memory.idle <= self.peak

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 100), through_a_view=st.booleans())
    def drop(self, pick: int, through_a_view: bool) -> None:
        view, _ = self.held.pop(pick % len(self.held))
        if through_a_view:
            last = np.frombuffer(view, np.uint8)[::2]
            del view
            del last

    @precondition(lambda self: self.early)
    @rule()
    def drop_one_from_before_a_clear(self) -> None:
        self.early.pop(0)

    @rule()
    def clear(self) -> None:
        self.memory.clear()
        self.early += self.held
        self.held.clear()
        self.peak = 0
        assert (self.memory.lent, self.memory.idle, self.memory.held) == (0, 0, False)

    @invariant()
    def nothing_is_lent_twice(self) -> None:
        if hasattr(self, "memory"):
            for view, mark in (*self.held, *self.early):
                assert view.tobytes() == bytes([mark]) * len(view)
            assert self.memory.idle <= self.memory._limit

    def teardown(self) -> None:
        if hasattr(self, "memory"):
            self.held.clear()
            self.early.clear()
            gc.collect()
            last = self.memory.take(1)
            assert self.memory.lent == 1
            del last


TestTwoCores = TwoCores.TestCase
TestThroughHub = ThroughHub.TestCase
TestLending = Lending.TestCase
TestTwoCores.settings = TestThroughHub.settings = TestLending.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=60, suppress_health_check=list(HealthCheck)
)
