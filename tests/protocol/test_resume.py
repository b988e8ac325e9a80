"""A stream whose way breaks: what both ends keep, what they say on the next link, and what comes again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest

from fanstream.errors import RemoteProtocolError
from fanstream.protocol import bodies
from fanstream.protocol.core import LinkCore
from fanstream.protocol.events import (
    Aborted,
    EndAnnounced,
    Ended,
    Lost,
    ObjectArrived,
    Opened,
    Refused,
    ReplyArrived,
    Resumed,
    Suspended,
)
from fanstream.protocol.frames import FrameType, pack
from fanstream.protocol.opener import OpenerLeg
from fanstream.protocol.receiver import ReceiverLeg
from fanstream.protocol.surroundings import Refusal, Routing, Surroundings
from fanstream.shareable import Shareable

from .linked import CODEC, Legs, Pair, Side, connect, encoded, linked, opening, pump, small_limits, surroundings

LIFE = b"server".ljust(16, b".")
"""The incarnation of a ``Side`` of that name."""


def legs_of(shared: Surroundings) -> Legs:
    assert isinstance(shared.keeper, Legs)
    return shared.keeper


@dataclass
class Stream:
    """A stream between two engines that outlives their links."""

    left: Surroundings = field(default_factory=small_limits())
    right: Surroundings = field(default_factory=small_limits())
    backlog: int = 8
    objects: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pair: Pair = linked(self.left, self.right)
        spoken = msgspec.structs.replace(opening(backlog=self.backlog), life=LIFE, resume=60_000)
        self.sender: OpenerLeg = self.pair[0].core.open(spoken, 0, b"ctx")
        self.receiver: ReceiverLeg

    def opened(self) -> Stream:
        pump(self.pair)
        self.receiver = self.pair[1].take(Opened).leg
        return self

    def send(self, seq: int, **data: Any) -> None:
        self.objects[seq] = encoded(**data)
        self.sender.send(seq, self.objects[seq], 0)

    def cut(self) -> None:
        """The link breaks; what it carried is gone."""
        for side in self.pair:
            side.events += side.core.lost("cut")

    def again(self) -> None:
        """There is another link, and the opener asks over it where to go on."""
        self.pair = linked(self.left, self.right)
        if self.sender in legs_of(self.left).waiting:
            self.pair[0].core.resume(self.sender)

    def carry(self) -> None:
        """Carry all, and let the opener send again what is asked for."""
        before = -1
        while before != (before := len(self.pair[0].events)):
            pump(self.pair)
            for event in self.pair[0].events:
                if type(event) is Resumed:
                    self.pair[0].events.remove(event)
                    for seq in range(event.seq, self.sender.sent):
                        self.sender.send_again(event, seq, self.objects[seq], 0)
        pump(self.pair)

    def recover(self) -> None:
        self.cut()
        assert self.pair[0].events[-1] == Suspended(self.sender, "cut")
        for side in self.pair:
            side.events[:] = [event for event in side.events if type(event) is not Suspended]
        kept = [side.events for side in self.pair]
        self.again()
        for side, events in zip(self.pair, kept, strict=True):
            side.events[:0] = events
        self.carry()

    def seqs(self, kind: type[ObjectArrived] | type[ReplyArrived]) -> list[int]:
        side = self.pair[1 if kind is ObjectArrived else 0]
        found = [event.seq for event in side.events if isinstance(event, kind)]
        side.events[:] = [event for event in side.events if type(event) is not kind]
        return found


def test_what_was_not_heard_comes_again_and_nothing_else() -> None:
    stream = Stream().opened()
    stream.send(0, n=0)
    stream.carry()
    stream.send(1, n=1)
    stream.pair[0].output()  # under way when the link breaks
    stream.recover()
    assert stream.seqs(ObjectArrived) == [0, 1]
    stream.receiver.reply(0, encoded(n=0))
    stream.receiver.reply(1, encoded(n=1))
    stream.pair[1].output()
    stream.recover()
    assert (stream.seqs(ObjectArrived), stream.seqs(ReplyArrived)) == ([], [0, 1])
    assert [side.core.duplicates + side.core.stray for side in stream.pair] == [0, 0]


def test_both_ends_go_on_while_the_way_is_broken() -> None:
    stream = Stream().opened()
    stream.send(0, n=0)
    stream.carry()
    stream.cut()
    stream.send(1, n=1)
    stream.receiver.reply(0, encoded(n=0))
    assert (stream.sender.attached, stream.receiver.attached) == (False, False)
    old = stream.pair[1].events
    assert [type(event) for event in old] == [ObjectArrived, Suspended]
    stream.again()
    stream.carry()
    assert (stream.seqs(ObjectArrived), stream.seqs(ReplyArrived)) == ([1], [0])
    assert (legs_of(stream.left).waiting, legs_of(stream.right).waiting) == ([], [])


@pytest.mark.parametrize("landed", [0, 1, 4096, 5000, 100_000, 399_999])
@pytest.mark.parametrize("way", ["object", "reply"])
def test_data_goes_on_in_the_middle_of_a_buffer(way: str, landed: int) -> None:
    stream = Stream().opened()
    weights = np.arange(50_000, dtype=np.float64)
    if way == "object":
        source, sink = stream.pair
        stream.send(0, w=weights, v=weights)
    else:
        sink, source = stream.pair
        stream.send(0, n=0)
        stream.carry()
        stream.receiver.reply(0, encoded(w=weights, v=weights))
    left = landed
    while left > 0:
        data = source.output()
        if not data:
            break
        sink.feed(data[:left])
        left -= len(data)
        if left > 0:
            source.feed(sink.output())
    stream.recover()
    events = stream.pair[1 if way == "object" else 0].events
    arrived = [event for event in events if isinstance(event, (ObjectArrived, ReplyArrived))]
    value = arrived[-1].value
    assert value["w"].tobytes() == value["v"].tobytes() == weights.tobytes()
    half = stream.receiver.inbound if way == "object" else stream.sender.inbound
    assert half.held == arrived[-1].size
    if way == "object":
        stream.receiver.release(arrived[-1].size)
        assert stream.right.budget.used == stream.receiver.inbound.aside


def test_no_more_than_what_had_not_landed_is_sent_again() -> None:
    stream = Stream().opened()
    stream.send(0, w=np.zeros(100_000))
    data = stream.pair[0].output()
    assert len(data) < 100_000, "the window is 64 KiB"
    stream.pair[1].feed(data)
    buffer, offset = stream.receiver.inbound.position[1:]
    assert (buffer, offset) == (0, len(data) - 4096 - len(data) % 4096) or offset > 50_000
    stream.cut()
    stream.again()
    pump(stream.pair)
    resumed = next(event for event in stream.pair[0].events if type(event) is Resumed)
    assert (resumed.seq, resumed.buffer, resumed.offset) == (0, buffer, offset)


def test_reservations_of_what_comes_again_are_given_back() -> None:
    right = small_limits(origin_bytes=256 * 1024, engine_bytes=256 * 1024)()
    stream = Stream(right=right).opened()
    for seq in range(4):
        stream.send(seq, w=np.zeros(12_000))
    stream.carry()
    assert right.budget.waiting > 0
    stream.cut()
    delivered = [event for event in stream.pair[1].events if type(event) is ObjectArrived]
    assert right.budget.waiting == 0
    assert right.budget.used - stream.receiver.inbound.aside == sum(event.size for event in delivered)
    stream.again()
    stream.pair[1].events[:] = delivered
    seen: list[int] = []
    while len(seen) < 4:
        stream.carry()
        event = next(event for event in stream.pair[1].events if type(event) is ObjectArrived)
        stream.pair[1].events.remove(event)
        seen.append(event.seq)
        stream.receiver.release(event.size)
        stream.receiver.reply(event.seq, encoded())
    stream.carry()
    assert (seen, stream.seqs(ReplyArrived)) == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert right.budget.used == stream.receiver.inbound.aside


def test_the_end_is_said_again_on_both_sides() -> None:
    stream = Stream().opened()
    stream.send(0, n=0)
    stream.carry()
    stream.sender.end(withdraw=False)
    stream.pair[0].output()
    stream.recover()
    assert stream.seqs(ObjectArrived) == [0]
    assert stream.pair[1].events[-1] == Resumed(stream.receiver, 1, 0, 0) or any(
        type(event) is EndAnnounced for event in stream.pair[1].events
    )
    assert any(event == EndAnnounced(stream.receiver, 1, False) for event in stream.pair[1].events)
    stream.receiver.reply(0, encoded(n=0))
    stream.receiver.ended("OK", "", b"")
    stream.pair[1].output()
    stream.recover()
    assert [type(event) for event in stream.pair[0].events] == [ReplyArrived, Ended]
    assert (stream.sender.closed, stream.receiver.closed) == (True, True)
    assert (legs_of(stream.left).waiting, legs_of(stream.right).waiting, legs_of(stream.right).incoming) == ([], [], {})


def test_who_has_said_the_end_is_still_there_when_only_the_acknowledgement_was_lost() -> None:
    stream = Stream().opened()
    stream.send(0, n=0)
    stream.carry()
    stream.receiver.reply(0, encoded(n=0))
    stream.receiver.ended("OK", "", b"")
    stream.pair[0].feed(stream.pair[1].output())
    assert stream.sender.closed
    stream.pair[0].output()  # DONE is lost
    stream.cut()
    assert legs_of(stream.right).waiting == [stream.receiver]
    assert stream.receiver.expire("over") is None, "whoever ran the stream has ended long ago"
    assert legs_of(stream.right).incoming == {}


def test_a_stream_that_was_withdrawn_says_so_again_and_sends_nothing() -> None:
    stream = Stream().opened()
    stream.send(0, w=np.zeros(40_000))
    stream.sender.end(withdraw=True)
    stream.cut()
    stream.again()
    pump(stream.pair)
    assert EndAnnounced(stream.receiver, 1, True) in stream.pair[1].events
    assert stream.sender.withdrawn
    stream.receiver.ended("OK", "", b"")
    pump(stream.pair)
    assert stream.sender.closed
    assert stream.receiver.closed


def test_an_abort_without_a_way_is_said_when_it_comes_back() -> None:
    stream = Stream().opened()
    stream.send(0, n=0)
    stream.carry()
    stream.cut()
    stream.sender.abort("TASK_ABORTED", "server", "enough")
    stream.sender.close()
    assert legs_of(stream.left).waiting == [stream.sender]
    stream.again()
    pump(stream.pair)
    aborted = next(event for event in stream.pair[1].events if type(event) is Aborted)
    assert (aborted.rc, aborted.reason) == ("TASK_ABORTED", "enough")
    stream.receiver.ended("TASK_ABORTED", "", b"")
    pump(stream.pair)
    assert stream.receiver.closed
    assert stream.pair[0].core.legs == {}


def test_an_abort_lost_with_the_link_is_said_again_and_nobody_waits_for_it() -> None:
    stream = Stream().opened()
    stream.sender.abort("TASK_ABORTED", "server", "enough")
    stream.pair[0].output()
    stream.cut()
    assert Lost(stream.sender, "cut") in stream.pair[0].events
    stream.again()
    pump(stream.pair)
    assert any(type(event) is Aborted for event in stream.pair[1].events)


def test_an_abort_while_the_answer_is_under_way() -> None:
    stream = Stream().opened()
    stream.send(0, n=0)
    stream.cut()
    stream.again()
    stream.sender.abort("TASK_ABORTED", "server", "enough")
    pump(stream.pair)
    assert any(type(event) is Aborted for event in stream.pair[1].events)
    stream.receiver.ending()
    stream.receiver.ended("TASK_ABORTED", "", b"")
    pump(stream.pair)
    assert (stream.sender.closed, stream.receiver.closed) == (True, True)


def test_an_opener_that_gives_up_while_the_answer_is_under_way_says_so() -> None:
    stream = Stream().opened()
    stream.send(0, n=0)
    stream.carry()
    stream.cut()
    stream.again()
    assert stream.sender.expire("over") == Lost(stream.sender, "over")
    pump(stream.pair)
    aborted = next(event for event in stream.pair[1].events if type(event) is Aborted)
    assert (aborted.rc, aborted.reason) == ("COMMUNICATION_ERROR", "over")
    stream.receiver.ended("COMMUNICATION_ERROR", "", b"")
    pump(stream.pair)
    assert stream.receiver.closed
    assert (stream.pair[0].core.legs, stream.pair[1].core.legs) == ({}, {})


def test_an_open_that_was_lost_with_the_link_is_said_again() -> None:
    stream = Stream()
    stream.send(0, n=0)
    stream.pair[0].output()
    stream.cut()
    stream.again()
    stream.carry()
    stream.receiver = stream.pair[1].take(Opened).leg
    assert stream.seqs(ObjectArrived) == [0]
    stream.receiver.reply(0, encoded())
    stream.carry()
    assert stream.seqs(ReplyArrived) == [0]


def test_a_site_that_lives_anew_has_lost_the_stream() -> None:
    stream = Stream().opened()
    stream.send(0, n=0)
    stream.cut()
    stream.right = small_limits()()
    fresh = Side("site-1", dialler=False, shared=stream.right)
    fresh.core.session._me = msgspec.structs.replace(fresh.core.me, incarnation=b"another life ...")
    fresh.core.me = fresh.core.session._me
    stream.pair = connect(Side("server", dialler=True, shared=stream.left), fresh)
    stream.pair[0].core.resume(stream.sender)
    pump(stream.pair)
    assert stream.pair[0].take(Lost).reason == "the stream cannot go on: site-1 does not have this stream"
    assert stream.sender.closed


def test_another_life_of_the_opener_does_not_go_on_with_its_stream() -> None:
    stream = Stream().opened()
    stream.cut()
    stream.sender.opening = msgspec.structs.replace(stream.sender.opening, life=b"another life ...")
    stream.sender.life = b""
    stream.again()
    pump(stream.pair)
    assert type(stream.pair[0].events[-1]) is Lost
    assert not stream.receiver.attached


def test_a_stream_that_a_site_had_and_gave_up_is_lost_and_not_opened_again() -> None:
    stream = Stream().opened()
    stream.cut()
    stream.receiver.expire("over")
    right = surroundings(admit=lambda opening: Refusal("BAD_REQUEST_DATA", "was opened before"))
    stream.right = right
    stream.again()
    pump(stream.pair)
    assert [type(event) for event in stream.pair[0].events] == [Resumed, Lost]
    assert stream.pair[0].events[1] == Lost(stream.sender, "the stream cannot go on: was opened before")


def test_a_stream_of_which_something_was_heard_is_never_opened_again() -> None:
    stream = Stream().opened()
    stream.send(0, n=0)
    stream.carry()
    assert stream.seqs(ObjectArrived) == [0]
    stream.receiver.reply(0, encoded())
    stream.carry()
    assert stream.seqs(ReplyArrived) == [0]
    stream.cut()
    stream.receiver.expire("over")  # the site does not know the stream any more, and would take it for a new one
    for side in stream.pair:
        side.events.clear()
    stream.again()
    pump(stream.pair)
    assert stream.pair[0].events == [Lost(stream.sender, "the stream cannot go on: site-1 does not have this stream")]
    assert stream.pair[1].events == []


def test_what_has_no_resume_window_is_lost_at_once() -> None:
    left, right = pair = linked()
    leg = left.core.open(opening(), 0, b"")
    pump(pair)
    receiver = right.take(Opened).leg
    assert left.core.lost("gone") == [Lost(leg, "gone")]
    assert right.core.lost("gone") == [Lost(receiver, "gone")]


@pytest.mark.parametrize("code", ["bye", "protocol"])
def test_who_says_goodbye_ends_its_streams_for_good(code: str) -> None:
    stream = Stream().opened()
    stream.pair[1].core.session.leave(code)
    stream.pair[0].feed(stream.pair[1].output())
    stream.cut()
    assert any(type(event) is Lost for event in stream.pair[0].events)
    assert any(type(event) is Lost for event in stream.pair[1].events)
    assert (stream.sender.closed, stream.receiver.closed) == (True, True)


def test_a_link_that_this_side_does_not_know_to_be_dead_gives_its_streams_to_the_next() -> None:
    stream = Stream().opened()
    stream.send(0, n=0)
    stream.carry()
    old = stream.pair
    old[0].events += old[0].core.lost("cut")  # the receiver has heard nothing of it
    stream.again()
    stream.receiver.reply(0, encoded(n=0))
    stream.carry()
    assert stream.seqs(ReplyArrived) == [0]
    assert (old[1].core.legs, old[1].core.lost("cut at last")) == ({}, [])


@pytest.mark.parametrize(
    ("seq", "buffer", "offset", "reason"),
    [
        (3, 0, 0, "RESUME at object 3 from site-1, which has answered 1 of 2"),
        (0, 0, 0, "RESUME at object 0 from site-1, which has answered 1 of 2"),
        (2, 0, 5, "RESUME at object 2 from site-1"),
        (1, -1, 0, "RESUME at object 1 from site-1"),
        (1, 1, 0, "buffer 1, offset 0: it has"),
        (1, 0, 160_000, "buffer 0, offset 160000: it has"),
    ],
)
def test_an_opener_checks_where_a_site_wants_to_go_on(seq: int, buffer: int, offset: int, reason: str) -> None:
    stream = Stream().opened()
    stream.send(0, n=0)
    stream.carry()
    stream.receiver.reply(0, encoded())
    stream.carry()
    stream.send(1, w=np.zeros(20_000))
    stream.cut()
    stream.again()
    stream.pair[0].output()
    position = bodies.encode(bodies.Position(buffer, offset))

    def go_on() -> None:
        stream.pair[0].feed(pack(FrameType.RESUME, stream.sender.alias, seq, body=position))
        stream.sender.send_again(stream.pair[0].take(Resumed), 1, stream.objects[1], 0)

    with pytest.raises(RemoteProtocolError, match=reason):
        go_on()


@pytest.mark.parametrize("seq", [0, 3])
def test_a_site_checks_which_replies_an_opener_wants(seq: int) -> None:
    stream = Stream().opened()
    for number in range(2):
        stream.send(number, n=0)
        stream.carry()
        stream.receiver.reply(number, encoded())
        stream.carry()
    stream.send(2, n=0)  # it acknowledges both
    stream.carry()
    stream.cut()
    stream.pair = linked(stream.left, stream.right)
    body = bodies.Resumption(stream.sender.opening.stream, "server", ["site-1"], LIFE)
    with pytest.raises(RemoteProtocolError, match=f"RESUME at reply {seq} from server: it has acknowledged 2 of 2"):
        stream.pair[1].feed(pack(FrameType.RESUME, 1, seq, body=bodies.encode(body)))


@pytest.mark.parametrize("through", ["server", "hub"])
@pytest.mark.parametrize(
    ("seq", "buffer", "reason"),
    [(0, 7, "is to go on at buffer 7, offset 0"), (2, 0, "RESUME at reply 2 from server")],
)
def test_who_wants_replies_that_are_not_there_ends_its_stream_and_nothing_is_left(
    through: str, seq: int, buffer: int, reason: str
) -> None:
    near, far = small_limits()(), small_limits()()
    left, right = pair = linked(near, far, name=through)
    spoken = msgspec.structs.replace(opening(), life=LIFE, resume=60_000)
    sender = left.core.open(spoken, 0, b"ctx")
    sender.send(0, encoded(n=0), 0)
    pump(pair)
    receiver = right.take(Opened).leg
    receiver.reply(0, encoded(w=np.zeros(20_000)))
    for side in pair:
        side.core.lost("cut")
    left, right = pair = linked(near, far, name=through)
    body = bodies.Resumption(spoken.stream, "server", ["site-1"], LIFE, buffer, 0)
    frame = pack(FrameType.RESUME, 1, seq, body=bodies.encode(body))
    if through == "server":
        with pytest.raises(RemoteProtocolError, match=reason):
            right.feed(frame)
        right.core.lost("it has broken the rules", for_good=True)
        receiver.expire("over")
    else:  # the hub is not to blame, and its link goes on
        right.feed(frame)
        (event,) = right.events
        assert isinstance(event, Lost)
        assert reason in event.reason
    assert receiver.closed
    assert (right.core.legs, right.core._peer_streams, legs_of(far).incoming) == ({}, {}, {})


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (pack(FrameType.RESUME, 1, body=b"\xc1"), "Resumption body of 1 bytes cannot be decoded"),
        (
            pack(FrameType.RESUME, 1, body=bodies.encode(bodies.Resumption(b"s", "server", ["site-1"], LIFE))),
            "an id of 1 bytes",
        ),
        (
            pack(FrameType.RESUME, 1, body=bodies.encode(bodies.Resumption(b"s" * 16, "server", [], LIFE))),
            "target 0 of 0",
        ),
        (pack(FrameType.RESUME, 0), "stream 0, which was never opened"),
        (pack(FrameType.RESUME, 2), "stream 2, which was never opened"),
    ],
)
def test_a_resume_that_breaks_the_rules_ends_the_link(frame: bytes, reason: str) -> None:
    _, right = linked()
    with pytest.raises(RemoteProtocolError, match=reason):
        right.feed(frame)


class Hub:
    """A hub, which may be another one each time, between a server and ``site-1``."""

    def __init__(self) -> None:
        self.left, self.right = small_limits()(), small_limits()()
        self.anew()

    def anew(self) -> None:
        shared = surroundings(self.route)
        self.near, self.far = (
            Side("hub", dialler=False, shared=shared, hub=True),
            Side("hub", dialler=False, shared=shared, hub=True),
        )
        self.join("server")
        self.join("site-1")

    def join(self, name: str) -> None:
        if name == "server":
            self.near = Side("hub", dialler=False, shared=self.near.shared, hub=True)
            self.server = Side("server", dialler=True, shared=self.left)
            connect(self.server, self.near)
        else:
            self.far = Side("hub", dialler=False, shared=self.near.shared, hub=True)
            self.site = Side("site-1", dialler=True, shared=self.right)
            connect(self.site, self.far)

    def route(self, core: LinkCore, routing: Routing, target: str) -> LinkCore | Refusal | None:
        side = {"server": self.near, "site-1": self.far}.get(target)
        return Refusal("COMMUNICATION_ERROR", "no way") if side is None else side.core

    def pump(self) -> None:
        pump((self.server, self.near), (self.site, self.far))


@pytest.mark.parametrize("broken", ["server", "site-1", "hub"])
@pytest.mark.parametrize("size", [1, 30_000])
def test_a_stream_goes_on_through_a_hub(broken: str, size: int) -> None:
    hub = Hub()
    spoken = msgspec.structs.replace(opening(backlog=4), life=LIFE, resume=60_000)
    sender = hub.server.core.open(spoken, 0, b"")
    objects = {seq: CODEC.encode(Shareable({"w": np.full(size, seq)})) for seq in range(3)}
    for seq, payload in objects.items():
        sender.send(seq, payload, 0)
    for _ in range(3):  # some of it is under way, and held by the hub
        hub.near.feed(hub.server.output())
        hub.site.feed(hub.far.output())
        hub.far.feed(hub.site.output())
        hub.server.feed(hub.near.output())
    receiver = hub.site.take(Opened).leg
    told = []
    if broken in ("server", "hub"):
        told += [hub.server.core.lost("cut"), hub.near.core.lost("cut")]
    if broken in ("site-1", "hub"):
        told += [hub.site.core.lost("cut"), hub.far.core.lost("cut")]
    if broken != "hub":  # whose link still stands hears it from the hub
        hub.server.feed(hub.near.output()) if broken == "site-1" else hub.site.feed(hub.far.output())
    assert (sender.attached, receiver.attached) == (False, False)
    arrived = [event for event in hub.site.events if type(event) is ObjectArrived]
    arrived += [event for events in told for event in events if type(event) is ObjectArrived]
    hub.site.events.clear()
    hub.anew() if broken == "hub" else hub.join(broken)
    hub.server.core.resume(sender)
    hub.pump()
    resumed = next(event for event in hub.server.events if type(event) is Resumed)
    for seq in range(resumed.seq, 3):
        sender.send_again(resumed, seq, objects[seq], 0)
    hub.pump()
    arrived += [event for event in hub.site.events if type(event) is ObjectArrived]
    assert [event.seq for event in arrived] == [0, 1, 2]
    for event in arrived:
        assert event.value["w"].tolist() == [event.seq] * size
        receiver.release(event.size)
        receiver.reply(event.seq, encoded())
    sender.end(withdraw=False)
    hub.pump()
    receiver.ended("OK", "", b"")
    hub.pump()
    assert type(hub.server.events[-1]) is Ended
    assert (hub.near.core.legs, hub.far.core.legs, hub.near.shared.relays.used) == ({}, {}, 0)


def test_a_hub_that_knows_no_way_yet_leaves_the_stream_suspended() -> None:
    hub = Hub()
    spoken = msgspec.structs.replace(opening(), life=LIFE, resume=60_000)
    sender = hub.server.core.open(spoken, 0, b"")
    hub.pump()
    hub.far.core.lost("cut")
    hub.server.feed(hub.near.output())
    assert hub.server.take(Suspended).reason == "cut"
    sender.opening = msgspec.structs.replace(sender.opening, targets=["site-9"])
    hub.server.core.resume(sender)
    hub.pump()
    assert (hub.server.events, sender.attached, sender.resuming) == ([], False, False)
    assert legs_of(hub.left).waiting == [sender]
    assert not any(type(event) is Refused for event in hub.server.events)


def test_what_is_sent_again_to_a_site_that_has_ended_meanwhile_goes_nowhere() -> None:
    """Its word where to go on and its end come in one piece: as the leg's owner hears of the first, the leg is over."""
    stream = Stream().opened()
    stream.sender.send(0, encoded(n=0), 0, final=True)
    stream.cut()
    stream.receiver.ended("OK", "", b"")
    stream.again()
    pump(stream.pair)
    left = stream.pair[0]
    resumed, ended = (event for event in left.events if isinstance(event, (Resumed, Ended)))
    assert isinstance(resumed, Resumed)
    assert isinstance(ended, Ended)
    stream.sender.send_again(resumed, 0, encoded(n=0), 0, final=True)
    assert (left.output(), stream.sender.closed) == (b"", True)
