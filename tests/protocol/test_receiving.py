from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanstream.errors import RemoteProtocolError
from fanstream.protocol.frames import CHUNK_HEADER, CHUNK_HEADER_SIZE, HEADER, HEADER_SIZE, FrameType, pack
from fanstream.protocol.receiving import BEHIND, STAGE_SIZE, FrameReader

LIMIT = 4 * STAGE_SIZE


def chunk(alias: int, seq: int, data: bytes, *, zero: int = 0) -> bytes:
    return CHUNK_HEADER.pack(len(data) + 16, FrameType.CHUNK, 0, 3, alias, seq, 0, 0, 1, zero, 7) + data


class Recorder:
    """A sink that writes down its calls; chunks of stream 9 are of no use to it."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.landing = bytearray()

    def limit(self, kind: int) -> int:
        return LIMIT

    def frame(self, kind: int, flags: int, target: int, alias: int, seq: int, attempt: int, body: bytes) -> None:
        self.calls.append((kind, flags, target, alias, seq, attempt, body))

    def chunk(self, alias: int, seq: int, buffer: int, offset: int, size: int, target: int) -> memoryview | None:
        self.calls.append(("chunk", alias, seq, buffer, offset, size, target))
        if alias == 9:
            return None
        self.landing = bytearray(size)
        return memoryview(self.landing)

    def chunk_done(self, alias: int, seq: int, size: int) -> None:
        self.calls.append(("done", alias, seq, size, bytes(self.landing)))


def feed(reader: FrameReader, data: bytes, step: int) -> None:
    rest = memoryview(data)
    while rest:
        count = 0
        for buffer in reader.get_buffers():
            size = min(len(buffer), len(rest) - count, step - count)
            buffer[:size] = rest[count : count + size]
            count += size
        reader.advance(count)
        rest = rest[count:]


def calls(data: bytes, step: int) -> list[tuple[object, ...]]:
    recorder = Recorder()
    reader = FrameReader(recorder)
    feed(reader, data, step)
    assert reader.idle
    return recorder.calls


FRAMES = [
    pack(FrameType.PING),
    pack(FrameType.OBJECT, 5, 6, body=b"object", flags=1, target=2),
    chunk(5, 6, b"some data"),
    chunk(9, 6, b"of no use"),
    chunk(5, 7, bytes(range(256)) * 700),
    chunk(9, 7, bytes(range(256)) * 300),
    pack(FrameType.REPLY, 5, 8, body=b"long" * STAGE_SIZE),
    pack(FrameType.END, (1 << 32) - 1, (1 << 64) - 1, target=0xFFFF),
]
EXPECTED = [
    (2, 0, 0, 0, 0, 0, b""),
    (17, 1, 2, 5, 6, 0, b"object"),
    ("chunk", 5, 6, 1, 7, 9, 3),
    ("done", 5, 6, 9, b"some data"),
    ("chunk", 9, 6, 1, 7, 9, 3),
    ("chunk", 5, 7, 1, 7, 179_200, 3),
    ("done", 5, 7, 179_200, bytes(range(256)) * 700),
    ("chunk", 9, 7, 1, 7, 76_800, 3),
    (19, 0, 0, 5, 8, 0, b"long" * STAGE_SIZE),
    (22, 0, 0xFFFF, (1 << 32) - 1, (1 << 64) - 1, 0, b""),
]


@pytest.mark.parametrize("step", [1 << 30, 1, 23, 24, 25, 39, 40, 41, 4096, STAGE_SIZE])
def test_however_the_bytes_are_cut_the_calls_are_the_same(step: int) -> None:
    data = b"".join(FRAMES)
    assert calls(data, step) == EXPECTED


@pytest.mark.parametrize("index", range(len(FRAMES)))
def test_one_frame_whole_byte_by_byte_and_with_a_tail(index: int) -> None:
    frame = FRAMES[index]
    whole = calls(frame, 1 << 30)
    assert calls(frame, 1) == whole
    for tail in (pack(FrameType.PONG), chunk(1, 1, b"tail")):
        for step in (1 << 30, 1):
            assert calls(frame + tail, step) == whole + calls(tail, 1 << 30)


SMALL = st.one_of(
    st.binary(max_size=60).map(lambda body: pack(FrameType.OBJECT, 1, 2, body=body)),
    st.tuples(st.sampled_from([1, 9]), st.binary(min_size=1, max_size=60)).map(lambda pair: chunk(pair[0], 2, pair[1])),
)


@given(st.lists(SMALL, max_size=8), st.lists(st.integers(1, 90), min_size=1, max_size=30))
def test_any_cuts_give_the_same_calls(frames: list[bytes], cuts: list[int]) -> None:
    data = b"".join(frames)
    recorder = Recorder()
    reader = FrameReader(recorder)
    at = index = 0
    while at < len(data):
        size = cuts[index % len(cuts)]
        feed(reader, data[at : at + size], 1 << 30)
        at, index = at + size, index + 1
    assert recorder.calls == calls(data, 1 << 30)
    assert reader.idle


def test_a_long_body_lands_in_its_destination_with_a_little_room_behind() -> None:
    recorder = Recorder()
    reader = FrameReader(recorder)
    data = chunk(5, 0, bytes(STAGE_SIZE * 2))
    feed(reader, data[:CHUNK_HEADER_SIZE], 1 << 30)
    assert not reader.idle
    destination, stage = reader.get_buffers()
    assert destination.obj is recorder.landing
    assert len(stage) == BEHIND


def test_a_frame_that_is_not_whole_is_not_passed_on() -> None:
    for frame in FRAMES[:4]:
        recorder = Recorder()
        reader = FrameReader(recorder)
        feed(reader, frame[:-1], 1 << 30)
        assert not [call for call in recorder.calls if call[0] != "chunk"]
        assert not reader.idle


@pytest.mark.parametrize("step", [1 << 30, 1])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (HEADER.pack(LIMIT + 1, FrameType.OBJECT, 0, 0, 1, 0, 0, 0), "type 17 with 262145 bytes, limit 262144"),
        (HEADER.pack(8, FrameType.OBJECT, 0, 0, 1, 0, 0, 4), "type 17 with a trailer of 4 bytes, expected none"),
        (HEADER.pack(LIMIT + 17, FrameType.CHUNK, 0, 0, 1, 0, 0, 0), "CHUNK of 262145 bytes, expected 1 to 262144"),
        (HEADER.pack(16, FrameType.CHUNK, 0, 0, 1, 0, 0, 0), "CHUNK of 0 bytes"),
        (HEADER.pack(0, FrameType.CHUNK, 0, 0, 1, 0, 0, 0), "CHUNK of -16 bytes"),
        (chunk(1, 0, b""), "CHUNK of 0 bytes"),
        (chunk(1, 0, b"x", zero=6), "CHUNK with 6 in its reserved field, expected 0"),
    ],
)
def test_what_breaks_the_rules_is_named(data: bytes, message: str, step: int) -> None:
    assert len(data) >= HEADER_SIZE
    with pytest.raises(RemoteProtocolError, match=message):
        feed(FrameReader(Recorder()), data, step)
