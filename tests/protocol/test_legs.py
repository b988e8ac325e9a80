"""What one end of a stream takes from the other, frame by frame; ``test_core.py`` has both ends talk."""

from __future__ import annotations

import pytest

from fanstream.errors import RemoteProtocolError
from fanstream.protocol.events import ObjectArrived
from fanstream.protocol.frames import CHUNK_HEADER, PAYLOAD, Flag, FrameType, pack
from fanstream.testing.frames import Frame, FrameCutter

from .linked import CODEC, Pair, Side, encoded, linked, pump, stream

APART = 5_000  # bytes that travel beside their envelope, and ask for no grant
LARGE = 100_000  # bytes that ask for one


def said(side: Side) -> list[Frame]:
    """Take what a side has to say, as frames."""
    return FrameCutter().feed(side.output())


def kinds(side: Side) -> list[int]:
    return [frame.kind for frame in said(side)]


def head(seq: int, *sizes: int, total: int | None = None, acked: int = 0, flags: int = 0) -> bytes:
    """Make an object that announces buffers, by hand."""
    envelope = CODEC.encode({f"b{number}": bytes(size) for number, size in enumerate(sizes)}).envelope
    body = PAYLOAD.pack(0, len(sizes), sum(sizes) if total is None else total, acked)
    body += b"".join(size.to_bytes(8, "little") for size in sizes) + envelope
    return pack(FrameType.OBJECT, 1, seq, body=body, flags=flags)


def chunk(seq: int, buffer: int, offset: int, size: int) -> bytes:
    return CHUNK_HEADER.pack(size + 16, FrameType.CHUNK, 0, 0, 1, seq, 0, 0, buffer, 0, offset) + bytes(size)


def answered(pair: Pair, number: int) -> None:
    """Have objects sent and answered."""
    left, right = pair
    sender, receiver = stream(pair, backlog=8)
    for seq in range(number):
        sender.send(seq, encoded(n=seq), 0)
        pump(pair)
        receiver.release(right.take(ObjectArrived).size)
        receiver.reply(seq, encoded(answer=seq))
    left.events.clear()


def test_a_reply_to_an_object_that_was_not_sent_breaks_the_rules() -> None:
    left, _right = pair = linked()
    stream(pair)
    with pytest.raises(RemoteProtocolError, match="REPLY 0 from site-1: 0 was next, 0 objects were sent"):
        left.feed(pack(FrameType.REPLY, 1, 0, body=PAYLOAD.pack(0, 0, 0, 0)))
    assert left.events == []


def test_replies_are_answered_again_until_the_opener_has_acknowledged_them() -> None:
    """The one whose number was acknowledged is the first that the opener may still need."""
    _left, right = pair = linked()
    answered(pair, 3)
    right.output()
    right.feed(head(3, acked=1))
    for seq, again in ((0, False), (1, True), (2, True)):
        right.feed(head(seq))
        assert [frame.seq for frame in said(right) if frame.kind == FrameType.REPLY] == ([seq] if again else [])


def test_what_is_taken_back_is_not_sent_though_it_is_granted() -> None:
    left, _right = pair = linked()
    sender, _receiver = stream(pair, backlog=8)
    for seq in (0, 1):  # the first goes ahead, the second waits to be granted
        sender.send(seq, encoded(w=bytes(LARGE)), 0)
    left.output()
    sender.end(withdraw=True)
    left.feed(pack(FrameType.GRANT, 1, 1))
    assert kinds(left) == [FrameType.END]


def test_nothing_follows_an_object_that_was_said_to_be_the_last() -> None:
    _left, right = pair = linked()
    stream(pair, backlog=8)
    right.feed(head(0, flags=Flag.FINAL))
    with pytest.raises(RemoteProtocolError, match="object 1 from server after the end at 1"):
        right.feed(head(1))


@pytest.mark.parametrize("total", [APART - 1, APART + 1, 0])
def test_sizes_have_to_add_up(total: int) -> None:
    _left, right = pair = linked()
    stream(pair)
    with pytest.raises(RemoteProtocolError, match=f"buffers have {APART} bytes, {total} announced"):
        right.feed(head(0, APART, total=total))


def test_a_chunk_ends_within_its_buffer() -> None:
    _left, right = pair = linked()
    stream(pair)
    right.feed(head(0, APART, APART), chunk(0, 0, 0, 4_000))
    with pytest.raises(RemoteProtocolError, match="CHUNK of 1001 bytes, 1000 left in buffer 0"):
        right.feed(chunk(0, 0, 4_000, 1_001))
