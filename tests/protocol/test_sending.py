from __future__ import annotations

import pytest

from fanstream.codec import Encoded
from fanstream.errors import RemoteProtocolError
from fanstream.protocol.frames import CHUNK_HEADER, HEADER, HEADER_SIZE, PAYLOAD_SIZE, SMALL_OBJECT, FrameType
from fanstream.protocol.sending import Buffer, Outbound, Scheduler

FRAME = 100


class Announcements:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def payload(*sizes: int, envelope: bytes = b"") -> Encoded:
    buffers = tuple(memoryview(bytes([index + 1]) * size) for index, size in enumerate(sizes))
    return Encoded(envelope, buffers, sizes, sum(sizes))


def make(window: int = 10_000) -> tuple[Scheduler, Outbound]:
    scheduler = Scheduler(lambda: None, FRAME)
    return scheduler, outbound(scheduler, 1, window=window)


def empty(out: Outbound) -> bool:
    return not (out._heads or out._granted or out._ungranted)


def outbound(scheduler: Scheduler, alias: int, *, window: int = 10_000, small: int = 1000) -> Outbound:
    return Outbound(scheduler, FrameType.OBJECT, alias, 0, window=window)


def frames(out: list[Buffer]) -> list[tuple[int, int, int, int]]:
    """Cut output into (type, alias, seq, bytes of the body)."""
    data = b"".join(out)
    found = []
    at = 0
    while at < len(data):
        length, kind, _, _, alias, seq, _, _ = HEADER.unpack_from(data, at)
        found.append((kind, alias, seq, length))
        at += HEADER_SIZE + length
    assert at == len(data)
    return found


def drain(scheduler: Scheduler, limit: int = 1 << 20) -> list[tuple[int, int, int, int]]:
    found = []
    while out := scheduler.next_output(limit, 0.0):
        found += frames(out)
    return found


def test_control_goes_before_small_frames_and_those_before_bulk() -> None:
    scheduler, out = make()
    out.send(0, payload(50))
    scheduler.small(b"sm", b"all")
    scheduler.control(b"control-1,")
    scheduler.control(b"control-2,")
    written = b"".join(scheduler.next_output(1 << 20, 0.0))
    assert written.startswith(b"control-1,control-2,")
    assert written.index(b"small") < written.index(bytes([1]) * 50)
    assert scheduler.next_output(1 << 20, 0.0) == []


def test_output_is_announced_once_until_it_has_run_out() -> None:
    announced = Announcements()
    scheduler = Scheduler(announced, FRAME)
    scheduler.control(b"a")
    scheduler.small(b"b", b"")
    assert announced.count == 1
    assert scheduler.next_output(100, 0.0) == [b"a", b"b"]
    scheduler.control(b"c")
    assert announced.count == 1  # the shell asks until nothing is left
    assert scheduler.next_output(100, 0.0) == [b"c"]
    assert scheduler.next_output(100, 0.0) == []
    scheduler.small(b"d", b"")
    assert announced.count == 2


def test_many_small_frames_leave_room_for_a_control_frame() -> None:
    scheduler = Scheduler(lambda: None, FRAME)
    for _ in range(1500):
        scheduler.small(b"x", b"")
    assert scheduler.next_output(1, 0.0) == [b"x" * 1024]
    scheduler.control(b"now")
    assert scheduler.next_output(1, 0.0) == [b"now", b"x" * 476]


def test_an_object_is_a_head_and_chunks_of_its_buffers_in_order() -> None:
    scheduler, out = make()
    out.send(0, payload(150, 30, envelope=b"env"), flags=1, timeout_ms=9, acked=4)
    head = PAYLOAD_SIZE + 2 * 8 + 3
    assert drain(scheduler) == [
        (FrameType.OBJECT, 1, 0, head),
        (FrameType.CHUNK, 1, 0, 116),
        (FrameType.CHUNK, 1, 0, 66),
        (FrameType.CHUNK, 1, 0, 46),
    ]
    assert out.credit == 10_000 - head - 180
    assert empty(out)


def test_a_whole_buffer_is_not_copied() -> None:
    scheduler, out = make()
    encoded = payload(80)
    out.send(0, encoded)
    assert any(buffer is encoded.buffers[0] for buffer in scheduler.next_output(1 << 20, 0.0))


def test_offsets_say_where_each_chunk_belongs() -> None:
    scheduler, out = make()
    out.send(7, payload(250))
    headers = [bytes(part) for part in scheduler.next_output(1 << 20, 0.0) if len(part) == CHUNK_HEADER.size]
    assert [CHUNK_HEADER.unpack(header)[8:] for header in headers] == [(0, 0, 0), (0, 0, 100), (0, 0, 200)]


def test_large_buffers_wait_for_their_grant() -> None:
    scheduler = Scheduler(lambda: None, 2 * SMALL_OBJECT)
    out = outbound(scheduler, 1, window=1 << 20)
    out.send(0, payload(SMALL_OBJECT + 1))
    out.send(1, payload(SMALL_OBJECT))
    assert [frame[:3] for frame in drain(scheduler)] == [(17, 1, 0), (17, 1, 1), (18, 1, 1)]
    assert not empty(out)
    assert not out.grant(1)
    assert out.grant(0)
    assert not out.grant(0)
    assert [frame[:3] for frame in drain(scheduler)] == [(18, 1, 0)]
    assert empty(out)


def test_the_window_may_be_overdrawn_by_one_frame_and_then_waits_for_credit() -> None:
    scheduler, out = make(window=PAYLOAD_SIZE + 8 + 1)
    out.send(0, payload(250))
    assert [frame[:3] for frame in drain(scheduler)] == [(17, 1, 0), (18, 1, 0)]
    out.send(1, payload())
    assert out.credit == 1 - 100
    out.add_credit(99)
    assert drain(scheduler) == []
    out.add_credit(1)
    assert [frame[:3] for frame in drain(scheduler)] == [(17, 1, 1)]
    out.add_credit(1000)
    assert [frame[:3] for frame in drain(scheduler)] == [(18, 1, 0), (18, 1, 0)]


def test_a_head_never_overtakes_a_head() -> None:
    scheduler, out = make(window=1)
    for seq in range(3):
        out.send(seq, payload())
    assert [frame[2] for frame in drain(scheduler)] == [0]
    out.add_credit(10_000)
    out.send(3, payload())
    assert [frame[2] for frame in drain(scheduler)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("size", "envelope", "asks"),
    [(SMALL_OBJECT, b"", False), (SMALL_OBJECT, b"e", True), (SMALL_OBJECT - 1, b"e", False)],
)
def test_envelope_and_buffers_together_decide_whether_a_grant_is_asked_for(
    size: int, envelope: bytes, asks: bool
) -> None:
    scheduler, out = make(window=100_000)
    out.send(0, payload(size, envelope=envelope))
    chunks = [frame for frame in drain(scheduler) if frame[0] == FrameType.CHUNK]
    assert (not chunks) == asks
    assert out.grant(0) == asks


def test_streams_take_fair_turns() -> None:
    scheduler, first = make()
    second = outbound(scheduler, 3)
    first.send(0, payload(300))
    second.send(0, payload(300))
    chunks = [frame for frame in drain(scheduler) if frame[0] == FrameType.CHUNK]
    assert [alias for _, alias, _, _ in chunks] == [1, 3, 1, 3, 1, 3]


def test_the_limit_ends_an_output() -> None:
    scheduler, out = make()
    out.send(0, payload(900))
    scheduler.next_output(1, 0.0)
    assert [frame[3] - 16 for frame in frames(scheduler.next_output(150, 0.0))] == [100, 100]


def test_what_is_cleared_is_not_sent() -> None:
    scheduler, out = make(window=1)
    out.send(0, payload(5))
    out.send(1, payload(5))
    out.send(2, payload(SMALL_OBJECT + 1))
    drain(scheduler)
    out.clear()
    out.add_credit(1000)
    assert drain(scheduler) == []
    assert empty(out)
    assert not out.grant(2)


def test_what_was_written_is_told_when_output_is_asked_for_again() -> None:
    scheduler = Scheduler(lambda: None, FRAME)
    written: list[str] = []
    scheduler.control(b"a")
    scheduler.next_output(100, 0.0)
    scheduler.when_written(lambda: written.append("a"))
    assert written == []
    scheduler.next_output(100, 0.0)
    scheduler.next_output(100, 0.0)
    assert written == ["a"]


def pace(scheduler: Scheduler, bytes_per_second: float, seconds: float, now: float = 0.0) -> float:
    """Write whatever comes for a while, as fast as a link of that rate takes it; return the time at the end."""
    end = now + seconds
    while now < end:
        size = sum(map(len, scheduler.next_output(1 << 21, now)))
        assert size
        now += size / bytes_per_second
    return now


def test_on_a_slow_link_a_chunk_takes_no_longer_than_50_ms() -> None:
    scheduler = Scheduler(lambda: None, 1 << 20)
    out = outbound(scheduler, 1, window=1 << 40)
    for seq in range(2):
        out.send(seq, payload(100_000_000))
        out.grant(seq)
    now = pace(scheduler, 2e6, 3.0)
    assert 0.8 * 100_000 < scheduler.chunk <= 100_000
    assert sum(map(len, scheduler.next_output(1 << 21, now))) < 2.1 * scheduler.chunk
    now = pace(scheduler, 1000, 1000.0, now)
    assert scheduler.chunk == 16 * 1024, "no smaller, whatever the rate"
    pace(scheduler, 1e9, 0.1, now)
    assert scheduler.chunk == 1 << 20


def test_a_link_with_little_to_send_is_not_taken_for_a_slow_one() -> None:
    scheduler, out = make()
    for second in range(100):
        out.send(second, payload(10))
        assert scheduler.next_output(1 << 20, float(second))
        assert scheduler.next_output(1 << 20, float(second)) == []
        out.add_credit(1000)
    assert scheduler.chunk == FRAME


def test_answers_that_were_handed_out_do_not_add_up() -> None:
    scheduler = Scheduler(lambda: None, FRAME)
    for _ in range(10):
        scheduler.owe_answer(200 * 1024)
        scheduler.small(b"the ", b"answer")  # and no control frame beside it
        assert scheduler.next_output(1 << 20, 0.0) == [b"the answer"]
    scheduler.owe_answer(200 * 1024)
    with pytest.raises(RemoteProtocolError, match="bytes of answers wait for the peer"):
        scheduler.owe_answer(200 * 1024)
