from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fanstream.errors import CodecError, LocalProtocolError, RemoteProtocolError
from fanstream.options import Limits
from fanstream.protocol import bodies
from fanstream.protocol.core import LinkCore
from fanstream.protocol.events import (
    Aborted,
    Departed,
    EndAnnounced,
    Ended,
    EndingBegun,
    Forwarded,
    Greeted,
    Lost,
    ObjectArrived,
    Opened,
    PresenceChanged,
    Refused,
    ReplyArrived,
    Silent,
)
from fanstream.protocol.frames import CHUNK_HEADER, MAGIC, PAYLOAD, Flag, FrameType, pack
from fanstream.protocol.leg import LegState
from fanstream.protocol.receiver import ReceiverLeg
from fanstream.protocol.session import SessionState
from fanstream.protocol.surroundings import Refusal, Routing
from tests.protocol.linked import Hub

from .linked import Legs, Side, encoded, linked, opening, pump, small_limits, stream, surroundings

STEPS = pytest.mark.parametrize("step", [1 << 20, 4001, 1])


def hello(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "site": "x", "incarnation": b"i" * 16, "hub": False, "frame": 4096, "window": 65536, "relay_window": 65536,
        "backlog": 8, "capabilities": [], "magic": MAGIC,
    }  # fmt: skip
    return pack(FrameType.HELLO, body=bodies.encode(bodies.Hello(**{**fields, **changes})))


def payload(
    kind: FrameType, alias: int, seq: int, sizes: tuple[int, ...] = (), envelope: bytes = b"", flags: int = 0
) -> bytes:
    head = PAYLOAD.pack(0, len(sizes), sum(sizes), 0)
    body = head + b"".join(size.to_bytes(8, "little") for size in sizes) + envelope
    return pack(kind, alias, seq, body=body, flags=flags)


def chunk(alias: int, seq: int, buffer: int, offset: int, data: bytes) -> bytes:
    return CHUNK_HEADER.pack(len(data) + 16, FrameType.CHUNK, 0, 0, alias, seq, 0, 0, buffer, 0, offset) + data


def cause(rc: str = "ERROR", who: str = "x", reason: str = "why") -> bytes:
    return bodies.encode(bodies.Cause(rc, who, reason))


# -- the session ------------------------------------------------------------------------------------------------------


@STEPS
def test_two_sides_greet_and_the_listener_admits(step: int) -> None:
    left, right = Side("server", dialler=True), Side("site-1", dialler=False)
    pump((left, right), step=step)
    assert right.take(Greeted).hello.site == "server"
    assert (left.events, left.core.session.state) == ([], SessionState.GREETING)
    assert not right.core.session.accepts_streams
    right.core.session.admit()
    pump((left, right), step=step)
    assert left.take(Greeted).hello.site == "site-1"
    assert (left.core.peer, right.core.peer) == ("site-1", "server")
    assert left.core.session.accepts_streams
    assert right.core.session.accepts_streams


def test_no_stream_before_the_greeting() -> None:
    left = Side("server", dialler=True)
    with pytest.raises(LocalProtocolError, match="a stranger is GREETING"):
        left.core.open(opening(), 0, b"")
    with pytest.raises(LocalProtocolError, match="GREETING cannot be admitted"):
        left.core.session.admit()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": b"HTTP"}, "magic b'HTTP'"),
        ({"low": 2, "high": 3}, "versions 2 to 3"),
        ({"site": "../x"}, r"'\.\./x', which is no site's name"),
        ({"incarnation": b"short"}, "incarnation of 5 bytes"),
        ({"frame": 4095}, "frame 4095"),
        ({"window": 4095}, "window 4095"),
        ({"relay_window": 0}, "relay window 0"),
        ({"backlog": 0}, "backlog 0"),
    ],
)
def test_a_hello_that_cannot_be_worked_with(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RemoteProtocolError, match=message):
        Side("site-1", dialler=False).feed(hello(**changes))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pack(FrameType.PING), "type 2 while the link is GREETING"),
        (pack(FrameType.OPEN, 1), "type 16 while the link is GREETING"),
        (pack(99, 1), "type 99, which this side does not take"),
        (pack(FrameType.HELLO, 1), "type 1 names stream 1"),
        (pack(FrameType.HELLO, body=b"\xc1"), "Hello body of 1 bytes cannot be decoded"),
        (pack(FrameType.HELLO, body=b"x" * 65537), "type 1 with 65537 bytes, limit 65536"),
    ],
)
def test_nothing_but_a_hello_is_taken_first(frame: bytes, message: str) -> None:
    with pytest.raises(RemoteProtocolError, match=message):
        Side("site-1", dialler=False).feed(frame)


def test_a_link_that_was_never_admitted_takes_no_streams_while_it_closes() -> None:
    request = pack(FrameType.OPEN, 1, body=bodies.join_opening(opening(), b""))
    goodbye = pack(FrameType.GOAWAY, body=bodies.encode(bodies.Goodbye("bye")))
    for frames in ((goodbye,), (hello(), goodbye)):
        side = Side("site-1", dialler=False)
        side.feed(*frames)
        with pytest.raises(RemoteProtocolError, match="type 16 while the link is CLOSING"):
            side.feed(request)
    turned_away = Side("site-1", dialler=False)
    turned_away.feed(hello())
    turned_away.core.session.leave("name-in-use")
    with pytest.raises(RemoteProtocolError, match="type 16 while the link is CLOSING"):
        turned_away.feed(request)


def test_a_farewell_lets_streams_finish() -> None:
    pair = left, right = linked()
    sender, receiver = stream(pair)
    left.core.session.leave("bye", "done")
    left.core.session.leave("bye", "twice")
    sender.send(0, encoded(a=1), 0)
    pump(pair)
    assert right.take(Departed).goodbye == bodies.Goodbye("bye", "done")
    assert right.take(ObjectArrived).leg is receiver
    assert right.events == []


def test_presence_is_passed_on_and_checked() -> None:
    pair = left, right = linked()
    left.core.session.announce(bodies.encode(bodies.Presence(True, ["site-2"], [])))
    pump(pair)
    assert right.take(PresenceChanged).presence.joined == ["site-2"]
    with pytest.raises(RemoteProtocolError, match="PRESENCE of ''"):
        right.feed(pack(FrameType.PRESENCE, body=bodies.encode(bodies.Presence(False, [], [""]))))


def test_an_idle_link_beats_and_the_beat_is_answered() -> None:
    pair = left, right = linked(surroundings(heartbeat=5, silence=15))
    assert left.core.next_deadline() == 5
    assert left.core.handle_timeout(4.9) == []
    assert left.output(4.9) == b""
    assert left.core.handle_timeout(5) == []
    right.feed(left.output(5), now=5)
    left.feed(right.output(5), now=5)
    assert left.core.next_deadline() == 10
    pump(pair, now=5)
    assert left.core.session.last_received == 5


def test_one_side_beats_and_the_other_takes_that_for_its_own() -> None:
    pair = dialler, listener = linked(surroundings(heartbeat=4, silence=16), surroundings(heartbeat=4, silence=16))
    beats = {dialler: 0, listener: 0}
    for now in range(1, 101):
        for side in pair:
            before = side.core.session.last_sent
            if side.core.next_deadline() <= now:
                assert side.core.handle_timeout(now) == []
                beats[side] += side.core.session.last_sent > before
        pump(pair, now=now)
    assert beats == {dialler: 25, listener: 0}


def test_a_side_that_accepted_beats_itself_where_the_other_only_listens() -> None:
    _, listener = linked(right=surroundings(heartbeat=4, silence=16))
    assert listener.core.next_deadline() == 4 + 12 / 4
    listener.core.handle_timeout(7)
    assert listener.output(7) != b""


def test_links_whose_last_words_differ_a_little_beat_at_the_same_moment() -> None:
    moments = set()
    for spoken in (1.0, 1.1, 1.2):
        left, _ = linked(surroundings(heartbeat=8, silence=16))
        left.core.session.last_sent = spoken
        moments.add(left.core.next_deadline())
        left.core.handle_timeout(left.core.next_deadline())
        assert left.output(9) != b""
    assert moments == {9.0}


def test_a_silent_peer_is_noticed() -> None:
    left, _ = linked(surroundings(heartbeat=5, silence=15))
    left.core.handle_timeout(5)
    left.output(5)
    left.core.handle_timeout(10)
    left.output(10)
    assert left.core.next_deadline() == 15
    assert left.core.handle_timeout(14.9) == []
    assert left.core.handle_timeout(15) == [Silent(15.0)]


def test_a_peer_that_does_not_greet_is_noticed_at_the_deadline_for_greetings_alone() -> None:
    side = Side("site-1", dialler=False, shared=surroundings(heartbeat=1, silence=2))
    assert side.core.next_deadline() == 10  # silence is for links that are open
    assert side.core.handle_timeout(9.9) == []
    assert side.core.handle_timeout(10) == [Silent(10.0)]


# -- one stream -------------------------------------------------------------------------------------------------------


@STEPS
def test_a_stream_from_open_to_ended(step: int) -> None:
    pair = left, right = linked()
    sender = left.core.open(opening(), 0, b"ctx")
    sender.send(0, encoded(a=1), 1500)
    sender.send(1, encoded(a=2), 1500, final=True)
    pump(pair, step=step)
    opened = right.take(Opened)
    receiver = opened.leg
    assert (opened.body, receiver.opener, receiver.opening.channel) == (b"ctx", "server", "train")
    for seq in (0, 1):
        arrived = right.take(ObjectArrived)
        assert (arrived.seq, arrived.value["a"], arrived.final) == (seq, seq + 1, seq == 1)
        receiver.release(arrived.size)
        receiver.reply(seq, encoded(b=seq), final=seq == 1)
    receiver.ended("OK", "", b"result")
    pump(pair, step=step)
    for seq in (0, 1):
        answer = left.take(ReplyArrived)
        assert (answer.leg, answer.seq, answer.value["b"], answer.final) == (sender, seq, seq, seq == 1)
        sender.inbound.release(answer.size)
    assert left.take(Ended).result == b"result"
    assert (left.core.legs, right.core.legs, left.events, right.events) == ({}, {}, [], [])
    assert (left.shared.budget.used, right.shared.budget.used) == (0, 0)
    sender.send(2, encoded(), 0)  # by an owner that has not heard yet
    assert left.output() == b""


def test_each_side_numbers_its_own_streams() -> None:
    pair = left, right = linked()
    assert [left.core.open(opening(), 0, b"").alias for _ in range(2)] == [1, 3]
    assert right.core.open(opening("server", opener="site-1"), 0, b"").alias == 2
    pump(pair)
    assert left.take(Opened).leg.opener == "site-1"


@STEPS
def test_large_buffers_wait_for_their_grant_and_take_turns_with_credit(step: int) -> None:
    make = small_limits()
    pair = left, right = linked(make(), make())
    sender, receiver = stream(pair)
    weights = np.arange(40_000, dtype=np.float32)  # 160 kB: more than two windows
    sender.send(0, encoded(a=1), 0)
    sender.send(1, encoded(w=weights, bias=np.ones(3000)), 0)
    first = left.output()
    assert len(first) < 4096  # the heads alone
    right.feed(first)
    assert right.take(ObjectArrived).seq == 0
    assert right.events == []
    assert right.shared.budget.used > weights.nbytes
    pump(pair, step=step)
    arrived = right.take(ObjectArrived)
    np.testing.assert_array_equal(arrived.value["w"], weights)
    np.testing.assert_array_equal(arrived.value["bias"], np.ones(3000))
    receiver.release(arrived.size)
    assert right.shared.budget.used == 0
    assert not sender.outbound._ungranted


def test_a_large_object_on_its_way_is_credited_once_a_second() -> None:
    """Long before half of the window has landed: so its sender sees that it moves."""
    left, right = linked(surroundings(limits=Limits(frame=64 * 1024)))
    sender, receiver = stream((left, right))
    sender.send(0, encoded(n=1), 0)
    right.feed(left.output(), now=5.0)
    assert right.output() == b""  # a small one needs no sign
    receiver.reply(0, encoded())
    left.feed(right.output())
    sender.send(1, encoded(w=np.zeros(1_000_000, np.uint8)), 0)
    marks = [sender.progress]
    data = left.output()
    marks.append(sender.progress)
    marks.append(sender.progress)
    for second, start in enumerate(range(0, 800_000, 100_000), 10):
        right.feed(data[start : start + 50_000], now=second)
        credit = right.output()
        right.feed(data[start + 50_000 : start + 100_000], now=second + 0.9)
        assert right.output() == b"", "nor more often"
        left.feed(credit, now=second)
        marks.append(sender.progress)
    assert marks[1] == marks[2]
    assert len(set(marks)) == 3 + 8 - 1
    right.feed(data[800_000:], now=17.9)
    assert right.output(now=17.9) == b"", "it has arrived"


@pytest.mark.parametrize(
    "obj",
    [
        pytest.param({"w": np.zeros(60_000, np.uint8)}, id="chunk"),
        pytest.param({"w": "x" * 200_000}, id="envelope"),
        pytest.param({"w": "x" * 20_000}, id="small"),
    ],
)
def test_what_has_come_of_one_frame_is_seen_to_move_and_gets_credit_once(obj: dict[str, Any]) -> None:
    left, right = linked()
    sender, receiver = stream((left, right))
    window = sender.outbound.credit
    sender.send(0, encoded(**obj), 0)
    data = left.output()
    marks = [sender.progress]
    for second in range(1, 11):
        right.feed(data[len(data) * (second - 1) // 10 : len(data) * second // 10], now=second + 1.0)
        left.feed(right.output())
        marks.append(sender.progress)
    assert len(set(marks)) >= 9, "the first tenth may hold no more than a head, and the last ends it"
    right.take(ObjectArrived)
    assert sender.outbound.credit + receiver.inbound._landed == window

    receiver.reply(0, encoded(**obj))
    data = right.output()
    marks = [sender.progress]
    for tenth in range(10):
        left.feed(data[len(data) * tenth // 10 : len(data) * (tenth + 1) // 10])
        marks.append(sender.progress)
    assert len(set(marks)) == 11


def test_a_reply_that_waits_for_room_at_the_opener_has_no_mark() -> None:
    left, right = linked(surroundings(limits=Limits(origin_bytes=64 * 1024, engine_bytes=64 * 1024)))
    sender, receiver = stream((left, right))
    for seq in range(2):
        sender.send(seq, encoded(n=seq), 0)
    pump((left, right))
    for seq in range(2):
        receiver.reply(seq, encoded(w=np.zeros(60_000, np.uint8), v=np.zeros(6000, np.uint8)))
    pump((left, right))
    assert sender.progress is None
    sender.inbound.release(left.take(ReplyArrived).size)
    pump((left, right))
    assert left.take(ReplyArrived).seq == 1
    assert sender.progress is not None


def test_a_small_object_does_not_overtake_a_large_one() -> None:
    pair = _, right = linked()
    sender, _ = stream(pair)
    sender.send(0, encoded(w=np.zeros(100_000)), 0)
    sender.send(1, encoded(a=1), 0)
    pump(pair)
    assert [right.take(ObjectArrived).seq for _ in range(2)] == [0, 1]


@STEPS
def test_large_replies_arrive_though_the_end_was_said_before_their_grant(step: int) -> None:
    make = small_limits()
    pair = left, _ = linked(make(), make())
    sender, receiver = stream(pair)
    other, beside = stream(pair)
    for leg in (sender, other):
        leg.send(0, encoded(), 0, final=True)
    pump(pair, step=step)
    weights = np.arange(40_000, dtype=np.float32)
    for answering in (receiver, beside):
        answering.reply(0, encoded(w=weights))
        answering.ended("OK", "", b"")
        assert answering.state is LegState.DRAINING
    pump(pair, step=step)
    assert (receiver.closed, beside.closed) == (True, True)
    kinds = [type(event) for event in left.events]
    assert sorted(kind.__name__ for kind in kinds) == ["Ended", "Ended", "ReplyArrived", "ReplyArrived"]
    for event in left.events:
        if isinstance(event, ReplyArrived):
            np.testing.assert_array_equal(event.value["w"], weights)


def test_what_does_not_fit_the_budget_waits_until_an_object_is_released() -> None:
    right_shared = small_limits(origin_bytes=128 * 1024, engine_bytes=128 * 1024)()
    pair = _, right = linked(small_limits()(), right_shared)
    sender, receiver = stream(pair)
    for seq in (0, 1):
        sender.send(seq, encoded(w=np.zeros(9000)), 0)
    pump(pair)
    first = right.take(ObjectArrived)
    assert (right.events, right_shared.budget.waiting) == ([], 1)
    receiver.release(first.size)
    pump(pair)
    assert right.take(ObjectArrived).seq == 1


def test_a_bad_envelope_that_waited_is_blamed_on_its_sender_and_not_on_who_gave_room() -> None:
    right_shared = small_limits(origin_bytes=128 * 1024, engine_bytes=128 * 1024)()
    pair = _, right = linked(small_limits()(), right_shared)
    sender, receiver = stream(pair)
    sender.send(0, encoded(w=np.zeros(9000)), 0)
    pump(pair)
    first = right.take(ObjectArrived)
    right.feed(payload(FrameType.OBJECT, 1, 1, (80_000,), b"\xc1"))
    receiver.release(first.size)
    with pytest.raises(RemoteProtocolError, match="object 1 from server"):
        right.feed(chunk(1, 1, 0, 0, b"x"))


def test_the_end_may_follow_the_last_object() -> None:
    pair = left, right = linked()
    sender, receiver = stream(pair)
    sender.send(0, encoded(), 0)
    sender.end(withdraw=False)
    pump(pair)
    assert right.take(EndAnnounced) == EndAnnounced(receiver, 1, False)  # control frames travel first
    assert right.take(ObjectArrived).seq == 0
    receiver.reply(0, encoded())
    receiver.ended("OK", "", b"")
    pump(pair)
    assert left.take(ReplyArrived).seq == 0
    assert left.take(Ended).rc == "OK"


def test_a_withdrawn_end_drops_what_was_not_consumed() -> None:
    pair = _, right = linked()
    sender, receiver = stream(pair)
    sender.send(0, encoded(w=np.zeros(100_000)), 0)
    sender.end(withdraw=True)
    pump(pair)
    assert right.take(EndAnnounced) == EndAnnounced(receiver, 1, True)
    assert (right.events, right.shared.budget.used) == ([], 0)


def test_an_abort_is_acknowledged_and_then_ended() -> None:
    pair = left, right = linked()
    sender, receiver = stream(pair)
    sender.send(0, encoded(w=np.zeros(100_000)), 0)
    sender.abort("TASK_ABORTED", "server", "enough")
    sender.abort("ERROR", "server", "again")
    pump(pair)
    assert right.take(Aborted) == Aborted(receiver, "TASK_ABORTED", "server", "enough")
    receiver.ending()
    receiver.ended("TASK_ABORTED", "enough", b"")
    pump(pair)
    assert left.take(EndingBegun).leg is sender
    assert left.take(Ended).rc == "TASK_ABORTED"
    assert (left.core.legs, right.core.legs, left.events, right.events) == ({}, {}, [], [])
    assert right.shared.budget.used == 0


def test_an_aborted_leg_does_not_wait_for_the_grant_of_its_replies() -> None:
    pair = left, right = linked()
    sender, receiver = stream(pair)
    sender.send(0, encoded(), 0)
    pump(pair)
    receiver.reply(0, encoded(w=np.zeros(100_000)))
    sender.abort("TASK_ABORTED", "server", "")
    pump(pair)
    receiver.ended("TASK_ABORTED", "", b"")
    pump(pair)
    assert (left.core.legs, right.core.legs) == ({}, {})


def test_a_route_may_refuse() -> None:
    def nowhere(core: LinkCore, routing: Routing, target: str) -> Refusal:
        return Refusal("COMMUNICATION_ERROR", f"no way from {routing.opener} to {target}")

    pair = left, right = linked(None, surroundings(nowhere))
    leg = left.core.open(opening(), 0, b"")
    leg.send(0, encoded(), 0)
    pump(pair)
    assert left.take(Refused) == Refused(leg, "COMMUNICATION_ERROR", "no way from server to site-1")
    assert (left.core.legs, right.core.legs, right.core.stray) == ({}, {}, 1)


def test_a_site_may_refuse() -> None:
    def no_such_topic(opening: bodies.Opening) -> Refusal:
        return Refusal("TOPIC_UNKNOWN", f"no {opening.topic} here")

    pair = left, right = linked(None, surroundings(admit=no_such_topic))
    leg = left.core.open(opening(), 0, b"")
    pump(pair)
    assert left.take(Refused) == Refused(leg, "TOPIC_UNKNOWN", "no round here")
    assert (left.core.legs, right.core.legs) == ({}, {})


def test_a_receiver_may_refuse() -> None:
    pair = left, _ = linked()
    sender, receiver = stream(pair)
    receiver.refuse("SERVICE_UNAVAILABLE", "busy")
    pump(pair)
    assert left.take(Refused) == Refused(sender, "SERVICE_UNAVAILABLE", "busy")


def test_limits_of_streams_and_backlog_refuse() -> None:
    pair = left, _ = linked(None, surroundings(limits=Limits(streams=1, backlog=2)))
    too_long = left.core.open(opening(backlog=3), 0, b"")
    first = left.core.open(opening(), 0, b"")
    second = left.core.open(opening(), 0, b"")
    pump(pair)
    assert left.take(Refused) == Refused(too_long, "BAD_REQUEST_DATA", "a backlog of 3 objects, limit 2")
    assert left.take(Refused) == Refused(second, "SERVICE_UNAVAILABLE", "1 streams of server are open")
    assert not first.closed


def test_a_lost_link_ends_every_stream() -> None:
    pair = left, right = linked()
    sender, receiver = stream(pair)
    assert left.core.lost("gone") == [Lost(sender, "gone")]
    assert right.core.lost("gone") == [Lost(receiver, "gone")]
    assert (left.core.legs, right.core.legs) == ({}, {})


# -- what breaks the rules --------------------------------------------------------------------------------------------

TO_RECEIVER: list[tuple[tuple[bytes, ...], str]] = [
    ((pack(FrameType.OBJECT, 5),), "stream 5, which was never opened"),
    ((pack(FrameType.GRANT, 2),), "stream 2, which was never opened"),
    ((chunk(7, 0, 0, 0, b"x"),), "stream 7, which was never opened"),
    ((pack(FrameType.OPEN, 1),), "type 16 for ReceiverLeg in state OPEN"),
    ((pack(FrameType.OPEN, 2),), "OPEN names stream 2"),
    ((pack(FrameType.OPEN, 0),), "OPEN names stream 0"),
    ((pack(FrameType.OPEN, 3),), "OPEN of 0 bytes"),
    ((pack(FrameType.OPEN, 3, body=b"\xff\0\0\0x"),), "routing part of 255 bytes, limit 1"),
    ((pack(FrameType.OPEN, 3, body=b"\1\0\0\0\xc1"),), "Opening body of 1 bytes cannot be decoded"),
    ((pack(FrameType.OPEN, 3, target=1, body=bodies.join_opening(opening(), b"")),), "target 1 of 1"),
    ((pack(FrameType.OPEN, 3, body=bodies.join_opening(opening(stream=b"x"), b"")),), "an id of 1 bytes"),
    ((pack(FrameType.OPEN, 3, body=bodies.join_opening(opening(backlog=0), b"")),), "a backlog of 0"),
    ((pack(FrameType.OPEN, 3, body=bodies.join_opening(opening(), b"x" * 262_145)),), "body of 262145 bytes"),
    ((pack(FrameType.REPLY, 1),), "type 19 for ReceiverLeg"),
    ((pack(FrameType.ENDED, 1),), "type 25 for ReceiverLeg"),
    ((pack(FrameType.RESUME, 1),), "type 29 for ReceiverLeg"),
    ((pack(FrameType.PING, 1),), "type 2, which this side does not take"),
    ((pack(FrameType.HELLO),), "type 1 while the link is OPEN"),
    ((pack(99, 1, flags=Flag.CRITICAL),), "type 99, which this side does not take"),
    ((pack(FrameType.OBJECT, 1),), "payload head of 0 bytes, expected at least 24"),
    ((payload(FrameType.OBJECT, 1, 1),), "object 1 from server skips 0"),
    ((pack(FrameType.OBJECT, 1, body=PAYLOAD.pack(0, 0, 9, 0)),), "without buffers announces 9 bytes"),
    ((pack(FrameType.OBJECT, 1, body=PAYLOAD.pack(0, 2, 9, 0)),), "object of 2 buffers, limit 0"),
    ((pack(FrameType.OBJECT, 1, body=PAYLOAD.pack(0, 1, 9, 0) + bytes(8)),), "buffers have 0 bytes, 9 announced"),
    ((payload(FrameType.OBJECT, 1, 0, (5, 0)),), "none may be empty"),
    ((payload(FrameType.OBJECT, 1, 0, (), b"\xc1"),), "object 0 from server"),
    ((payload(FrameType.OBJECT, 1, 0, (), b"x" * 262_145),), "envelope of 262145 bytes, limit 262144"),
    (tuple(payload(FrameType.OBJECT, 1, seq) for seq in range(3)), "object 2 from server: 2 unanswered, limit 2"),
    ((pack(FrameType.END, 1, 0), payload(FrameType.OBJECT, 1, 0)), "object 0 from server after the end at 0"),
    ((payload(FrameType.OBJECT, 1, 0), pack(FrameType.END, 1, 0)), "END after 0 objects from server"),
    ((pack(FrameType.END, 1, 1), pack(FrameType.END, 1, 2)), "END after 2 objects"),
    ((pack(FrameType.ABORT, 1, body=b"\xc1"),), "Cause body of 1 bytes cannot be decoded"),
    ((pack(FrameType.ABORT, 1, body=b"x" * 16_385),), "type 23 with 16385 bytes, limit 16384"),
    ((chunk(1, 0, 0, 0, b"x"),), "CHUNK for object 0, which has nothing to come"),
    ((chunk(1, 0, 0, 0, b""),), "CHUNK of 0 bytes"),
    ((chunk(1, 0, 0, 0, bytes((1 << 20) + 1)),), "CHUNK of 1048577 bytes, expected 1 to 1048576"),
]


@pytest.mark.parametrize(("frames", "message"), TO_RECEIVER)
@pytest.mark.parametrize("step", [1 << 20, 100])
def test_a_receiver_names_what_breaks_the_rules(frames: tuple[bytes, ...], message: str, step: int) -> None:
    pair = _, right = linked()
    stream(pair)
    with pytest.raises(RemoteProtocolError, match=message):
        right.feed(*frames, step=step)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pack(FrameType.OBJECT, 1), "type 17 for OpenerLeg in state OPEN"),
        (pack(FrameType.END, 1), "type 22 for OpenerLeg"),
        (payload(FrameType.REPLY, 1, 1), "REPLY 1 from site-1: 0 was next, 1 objects were sent"),
        (pack(FrameType.ENDED, 1, 2, body=bodies.encode(bodies.Ending("OK"))), "ENDED after 2 replies from site-1"),
        (pack(FrameType.ENDED, 1, 0, body=b"\xc1"), "Ending body of 1 bytes"),
        (pack(FrameType.REFUSED, 1, body=b"\xc1"), "Cause body of 1 bytes"),
        (pack(FrameType.LOST, 1, body=b"\xc1"), "Cause body of 1 bytes"),
        (pack(FrameType.OPEN, 3, body=bodies.join_opening(opening(), b"")), "OPEN names stream 3"),
    ],
)
def test_an_opener_names_what_breaks_the_rules(frame: bytes, message: str) -> None:
    pair = left, _ = linked()
    sender, _ = stream(pair)
    sender.send(0, encoded(), 0)
    with pytest.raises(RemoteProtocolError, match=message):
        left.feed(frame)


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (chunk(1, 0, 1, 0, b"x"), "buffer 1, offset 0; expected buffer 0, offset 0"),
        (chunk(1, 0, 0, 4, b"x"), "buffer 0, offset 4; expected buffer 0, offset 0"),
        (chunk(1, 0, 0, 0, bytes(9000)), "CHUNK of 9000 bytes, 8000 left in buffer 0"),
        (chunk(1, 1, 0, 0, b"x"), "CHUNK for object 1"),
    ],
)
def test_a_chunk_is_the_next_piece_and_no_other(piece: bytes, message: str) -> None:
    pair = left, right = linked()
    sender, _ = stream(pair)
    sender.send(0, encoded(w=np.zeros(1000)), 0)
    data = left.output()
    right.feed(data[: len(data) - 8000 - CHUNK_HEADER.size])
    with pytest.raises(RemoteProtocolError, match=message):
        right.feed(piece)


def test_a_chunk_before_its_grant_is_refused() -> None:
    shared = small_limits(origin_bytes=128 * 1024, engine_bytes=128 * 1024)()
    pair = _, right = linked(small_limits()(), shared)
    sender, _ = stream(pair)
    sender.send(0, encoded(w=np.zeros(9000)), 0)
    sender.send(1, encoded(w=np.zeros(9000)), 0)
    pump(pair)
    with pytest.raises(RemoteProtocolError, match="CHUNK for object 1, which has nothing to come or was not granted"):
        right.feed(chunk(1, 1, 0, 0, b"x"))


def test_an_unknown_frame_that_is_not_critical_is_skipped() -> None:
    pair = _, right = linked()
    stream(pair)
    right.feed(pack(99, 1, body=b"later"), pack(9, body=b"later"), pack(98, 77))
    assert right.events == []


def test_frames_for_streams_that_have_ended_are_counted() -> None:
    pair = _, right = linked()
    _, receiver = stream(pair)
    receiver.ended("OK", "", b"")
    late = (payload(FrameType.OBJECT, 1, 0), chunk(1, 0, 0, 0, bytes(100)), pack(FrameType.END, 1, 1))
    right.feed(*late)
    assert (right.core.stray, right.events) == (0, []), "while its opener may not know, they are only dropped"
    right.feed(pack(FrameType.DONE, 1), *late)
    assert (right.core.stray, right.events) == (3, [])


def test_an_ended_stream_is_remembered_until_its_opener_knows() -> None:
    pair = left, right = linked()
    sender, receiver = stream(pair)
    sender.send(0, encoded(), 0, final=True)
    pump(pair)
    receiver.reply(0, encoded())
    receiver.ended("OK", "", b"")
    keeper = right.shared.keeper
    assert isinstance(keeper, Legs)
    left.feed(right.output())
    assert ([type(event) for event in left.events], sender.closed) == ([ReplyArrived, Ended], True)
    assert (keeper.lingering, receiver.closed) == ([receiver], False)
    right.feed(left.output())
    assert (keeper.lingering, keeper.incoming, receiver.closed) == ([], {}, True)
    _, early = pair = linked()
    stream(pair)
    with pytest.raises(RemoteProtocolError, match="type 31 for ReceiverLeg in state OPEN"):
        early.feed(pack(FrameType.DONE, 1))


def test_an_object_that_comes_again_is_answered_from_the_cache() -> None:
    pair = left, right = linked()
    sender, receiver = stream(pair)
    sender.send(0, encoded(a=1), 0)
    pump(pair)
    right.take(ObjectArrived)
    receiver.reply(0, encoded(b=1))
    right.feed(payload(FrameType.OBJECT, 1, 0))
    pump(pair)
    assert left.take(ReplyArrived).value["b"] == 1
    assert (left.events, right.events, left.core.duplicates, right.core.duplicates) == ([], [], 1, 1)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda leg: leg.reply(1, encoded()), "reply 1 on leg 1: 0 is next"),
        (lambda leg: (leg.ended("OK", "", b""), leg.reply(0, encoded())), "ReceiverLeg 1 has said its end"),
        (lambda leg: (leg.refuse("ERROR", ""), leg.ending()), "ReceiverLeg 1 has said its end"),
    ],
    ids=["reply out of turn", "reply after the end", "ending after a refusal"],
)
def test_what_a_receiver_may_not_do_itself(act: Callable[[ReceiverLeg], object], message: str) -> None:
    _, receiver = stream(linked())
    with pytest.raises(LocalProtocolError, match=message):
        act(receiver)


# -- through a hub ----------------------------------------------------------------------------------------------------


@STEPS
def test_a_hub_forwards_a_stream_of_large_objects(step: int) -> None:
    hub = Hub()
    sender, receiver = hub.stream()
    weights = np.random.default_rng(1).random(100_000 if step > 1 else 9_000)
    for seq in (0, 1):
        sender.send(seq, encoded(w=weights), 0, final=seq == 1)
        hub.pump(step)
        arrived = hub.site.take(ObjectArrived)
        np.testing.assert_array_equal(arrived.value["w"], weights)
        receiver.release(arrived.size)
        receiver.reply(seq, encoded(w=weights * 2))
        if seq == 1:
            receiver.ended("OK", "", b"")  # before the reply's buffers were granted
        hub.pump(step)
        answer = hub.server.take(ReplyArrived)
        np.testing.assert_array_equal(answer.value["w"], weights * 2)
        sender.inbound.release(answer.size)
    assert hub.server.take(Ended).rc == "OK"
    hub.pump()
    hub.assert_no_route()
    assert (hub.near.core.stray, hub.far.core.stray) == (0, 0)
    assert (hub.near.events, hub.far.events) == ([Forwarded(sender.opening, "site-1")], [])


def test_a_hub_says_that_a_target_is_unknown() -> None:
    hub = Hub()
    leg = hub.server.core.open(opening("site-9"), 0, b"")
    hub.pump()
    assert hub.server.take(Refused) == Refused(leg, "COMMUNICATION_ERROR", "no site-9 here")


def test_a_site_refuses_through_the_hub() -> None:
    hub = Hub()
    sender, receiver = hub.stream()
    receiver.refuse("TOPIC_UNKNOWN", "no")
    hub.pump()
    assert hub.server.take(Refused) == Refused(sender, "TOPIC_UNKNOWN", "no")
    hub.assert_no_route()


def test_an_abort_goes_through_the_hub_and_frees_the_route() -> None:
    hub = Hub()
    sender, receiver = hub.stream()
    sender.send(0, encoded(), 0)
    hub.pump()
    hub.site.take(ObjectArrived)
    receiver.reply(0, encoded(w=np.zeros(100_000)))
    sender.send(1, encoded(w=np.zeros(100_000)), 0)
    sender.abort("TASK_ABORTED", "server", "enough")
    hub.pump()
    assert hub.site.take(Aborted).reason == "enough"
    receiver.ended("TASK_ABORTED", "", b"")
    hub.pump()
    assert hub.server.take(Ended).rc == "TASK_ABORTED"
    hub.assert_no_route()


@pytest.mark.parametrize("which", ["near", "far"])
def test_a_link_lost_at_the_hub_is_told_to_the_other_side(which: str) -> None:
    hub = Hub()
    hub.stream()
    lost: Side = getattr(hub, which)
    lost.core.lost("broken")
    hub.pump()
    told = hub.server if which == "far" else hub.site
    assert told.take(Lost).reason == "broken"
    assert (hub.near.core.legs, hub.far.core.legs, told.core.legs) == ({}, {}, {})


def test_what_a_site_breaks_through_a_hub_ends_the_stream_and_not_the_link() -> None:
    hub = Hub()
    sender, receiver = hub.stream()
    hub.site.core.scheduler.control(payload(FrameType.REPLY, receiver.alias, 4))
    hub.pump()
    assert "REPLY 4 from site-1" in hub.server.take(Lost).reason
    assert sender.closed
    assert hub.server.core.session.accepts_streams
    assert hub.site.take(Aborted).rc == "BAD_REQUEST_DATA"


def test_what_an_opener_breaks_through_a_hub_refuses_the_stream() -> None:
    hub = Hub()
    sender, receiver = hub.stream()
    hub.server.core.scheduler.control(payload(FrameType.OBJECT, sender.alias, 4))
    hub.pump()
    assert hub.site.take(Lost).leg is receiver
    assert hub.server.take(Refused).rc == "BAD_REQUEST_DATA"
    hub.assert_no_route()


def test_a_sender_that_overruns_the_hubs_window_is_refused() -> None:
    hub = Hub()
    sender, _ = hub.stream()
    frames = [payload(FrameType.OBJECT, sender.alias, seq, (), bytes(200_000)) for seq in range(3)]
    with pytest.raises(RemoteProtocolError, match="bytes in flight on a forwarded stream, window 262144"):
        hub.near.feed(*frames)


def test_a_frame_that_no_hub_forwards_is_refused() -> None:
    hub = Hub()
    sender, _ = hub.stream()
    with pytest.raises(RemoteProtocolError, match="type 16 for a forwarded stream"):
        hub.near.feed(pack(FrameType.OPEN, sender.alias))


def test_the_last_words_of_a_cause_reach_a_receiver() -> None:
    pair = _, right = linked()
    _, receiver = stream(pair)
    right.feed(pack(FrameType.LOST, 1, body=cause()))
    assert right.take(Lost) == Lost(receiver, "why")


def test_an_object_beyond_the_limit_is_its_streams_matter_and_nothing_of_it_is_let_in() -> None:
    pair = left, right = linked(right=surroundings(limits=Limits(object=100_000)))
    sender, receiver = stream(pair)
    for seq in (0, 1):  # the first comes ahead of its grant, the second waits for it
        sender.send(seq, encoded(w=np.zeros(20_000)), 0)
    pump(pair)
    for seq in (0, 1):
        arrived = right.take(ObjectArrived)
        assert arrived.seq == seq
        assert isinstance(arrived.value, CodecError)
        assert "limit 100000" in str(arrived.value)
        receiver.release(arrived.size)
    assert right.shared.budget.used == 0
    assert sender.outbound._ungranted, "the second was never granted"
    receiver.reply(0, encoded(), final=True)
    receiver.ended("BAD_REQUEST_DATA", "", b"")
    pump(pair)
    assert [type(event) for event in left.events] == [ReplyArrived, Ended]
    assert (left.core.legs, right.core.legs) == ({}, {})


def sent_at_once(side: Side) -> int:
    """Take what *side* writes before anybody answers; return how many bytes."""
    return len(side.output())


def test_an_object_comes_ahead_of_its_grant_where_the_site_has_answered_all_before_it() -> None:
    pair = left, right = linked()
    sender, receiver = stream(pair)
    big = encoded(w=np.zeros(20_000))
    for seq in range(3):
        sender.send(seq, big, 0)
        data = left.output()
        assert len(data) > big.total, "with its data"
        right.feed(data)
        arrived = right.take(ObjectArrived)
        assert right.shared.budget.used == arrived.size
        receiver.release(arrived.size)
        receiver.reply(seq, encoded())
        pump(pair)
        assert left.take(ReplyArrived).seq == seq
    sender.send(3, big, 0)
    sender.send(4, big, 0)
    data = left.output()
    assert big.total < len(data) < 2 * big.total, "while one is not answered, the next asks first"
    right.feed(data)
    pump(pair)
    assert [right.take(ObjectArrived).seq for _ in range(2)] == [3, 4]
    assert (left.core.stray, right.core.stray) == (0, 0)


def test_a_reply_comes_ahead_of_its_grant_where_the_opener_holds_none() -> None:
    pair = left, right = linked()
    sender, receiver = stream(pair, backlog=8)
    big = encoded(w=np.zeros(20_000))
    for seq in range(4):
        sender.send(seq, encoded(), 0)
    pump(pair)
    receiver.reply(0, big)
    receiver.reply(1, big)
    assert big.total < sent_at_once(right) < 2 * big.total
    pair = left, right = linked()
    sender, receiver = stream(pair, backlog=8)
    sender.send(0, encoded(), 0)
    pump(pair)
    receiver.reply(0, big)
    pump(pair)
    reply = left.take(ReplyArrived)
    sender.send(1, encoded(), 0)  # while it holds the reply
    pump(pair)
    receiver.reply(1, big)
    assert sent_at_once(right) < 200
    sender.inbound.release(reply.size)


def test_what_comes_ahead_though_it_must_not_is_an_offence() -> None:
    pair = _, right = linked()
    sender, _ = stream(pair)
    sender.send(0, encoded(w=np.zeros(20_000)), 0)
    pump(pair)
    right.take(ObjectArrived)
    with pytest.raises(
        RemoteProtocolError,
        match="object 1 of 80000 bytes comes ahead of its grant: 0 of 0 bytes set aside are taken, 160",
    ):
        right.feed(payload(FrameType.OBJECT, 1, 1, (80_000,), flags=Flag.AHEAD))


def lent(side: Side) -> int:
    """The bytes that *side* holds or has set aside."""
    return side.shared.budget.used


def test_with_room_set_aside_a_window_of_objects_comes_ahead_of_its_grants() -> None:
    pair = left, right = linked()
    sender, receiver = stream(pair, backlog=8)
    big = encoded(w=np.zeros(20_000))
    sender.send(0, big, 0)
    pump(pair)  # with it, the site says what it sets aside
    first = right.take(ObjectArrived)
    assert lent(right) == first.size * 9, "for a backlog of 8, besides the one that is held"
    for seq in range(1, 8):
        sender.send(seq, big, 0)
    data = left.output()
    assert len(data) > 7 * big.total, "all with their data"
    right.feed(data)
    receiver.release(first.size)
    receiver.reply(0, encoded())
    for seq in range(1, 8):
        arrived = right.take(ObjectArrived)
        assert arrived.seq == seq
        receiver.release(arrived.size)
        receiver.reply(seq, encoded())
    assert lent(right) == first.size * 8
    pump(pair)
    assert [left.take(ReplyArrived).seq for _ in range(8)] == list(range(8))
    sender.end(withdraw=False)
    pump(pair)
    receiver.ended("OK", "", b"")
    pump(pair)
    assert lent(right) == 0
    assert (left.core.stray, right.core.stray) == (0, 0)


def test_what_does_not_fit_into_what_is_set_aside_asks_for_its_grant() -> None:
    pair = left, right = linked(right=surroundings(limits=Limits(origin_bytes=2**21, engine_bytes=2**21)))
    sender, receiver = stream(pair, backlog=16)
    big = encoded(w=np.zeros(12_500))  # 100 kB, of 512 KiB set aside
    sender.send(0, big, 0)
    pump(pair)
    first = right.take(ObjectArrived)
    for seq in range(1, 10):
        sender.send(seq, big, 0)
    data = b""
    while more := left.output():
        data += more
    assert 5 * big.total < len(data) < 6 * big.total
    right.feed(data)
    pump(pair)
    arrived = [first, *(right.take(ObjectArrived) for _ in range(9))]
    assert [event.seq for event in arrived] == list(range(10))
    for event in arrived:
        receiver.release(event.size)
        receiver.reply(event.seq, encoded())
    assert lent(right) == 512 * 1024
    sender.abort("TASK_ABORTED", "server", "")
    pump(pair)
    assert lent(right) == 0


def test_nothing_is_set_aside_where_little_is_left() -> None:
    pair = left, right = linked(right=surroundings(limits=Limits(origin_bytes=2**18, engine_bytes=2**18)))
    sender, _ = stream(pair, backlog=8)
    sender.send(0, encoded(w=np.zeros(20_000)), 0)  # more than half of the share
    pump(pair)
    arrived = right.take(ObjectArrived)
    assert lent(right) == arrived.size
    assert left.output() == b""


def test_beyond_what_is_set_aside_nothing_may_come_ahead() -> None:
    pair = _, right = linked()
    sender, _ = stream(pair, backlog=4)
    sender.send(0, encoded(w=np.zeros(20_000)), 0)
    pump(pair)
    right.take(ObjectArrived)
    with pytest.raises(RemoteProtocolError, match="object 1 of 900000 bytes comes ahead of its grant: 0 of 640"):
        right.feed(payload(FrameType.OBJECT, 1, 1, (900_000,), flags=Flag.AHEAD))


def test_who_gives_no_credit_is_not_answered_again_without_end() -> None:
    pair = _, right = linked()
    sender, receiver = stream(pair, backlog=4)
    sender.send(0, encoded(), 0)
    pump(pair)
    right.take(ObjectArrived)
    receiver.outbound.credit = 0
    receiver.reply(0, encoded(a=b"x" * 100))
    again = payload(FrameType.OBJECT, 1, 0)
    right.feed(again * 4)
    assert receiver.outbound.waiting == 5
    assert right.output() == b"", "nothing of it may leave, so that nothing counts as answered"
    with pytest.raises(RemoteProtocolError, match="object 0 from server came again while 5 replies wait for credit"):
        right.feed(again)


def test_small_objects_take_nothing_of_what_is_set_aside_for_large_ones() -> None:
    pair = _, right = linked()
    sender, receiver = stream(pair, backlog=8)
    big, small = encoded(w=np.zeros(20_000)), encoded(w=np.zeros(7_000))
    sender.send(0, big, 0)
    pump(pair)
    right.take(ObjectArrived)
    set_aside = lent(right) - big.total - len(big.envelope)
    assert set_aside == 8 * (big.total + len(big.envelope))
    for seq in range(1, 4):
        sender.send(seq, small, 0)
    sender.send(4, big, 0)
    assert sender._ahead_bytes == big.total + len(big.envelope)
    pump(pair)
    assert [right.take(ObjectArrived).seq for _ in range(4)] == [1, 2, 3, 4]
    assert receiver.inbound.aside == set_aside
