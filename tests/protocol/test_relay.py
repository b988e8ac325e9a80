"""What a hub holds and lets go; ``test_core.py`` has whole streams go through one."""

from __future__ import annotations

import pytest

from fanstream.options import Limits
from fanstream.protocol.frames import FrameType, pack
from fanstream.protocol.relay import FIRST_WINDOW, RelayPool
from fanstream.shareable import ReturnCode
from fanstream.testing.frames import FrameCutter

from .linked import Hub, Side, connect, encoded, surroundings


def test_a_pool_gives_no_more_than_it_has() -> None:
    pool = RelayPool(100, 10)
    assert [pool.take(size) for size in (60, 60, 60)] == [60, 40, 0]
    pool.give(50)
    assert pool.take(60) == 50


def test_a_pool_keeps_few_blocks_once_nothing_is_forwarded() -> None:
    pool = RelayPool(100, 10)
    pool.take(60)
    blocks = [pool.block(10) for _ in range(20)]
    for block in blocks:
        pool.recycle(block)
    pool.give(50)
    again = [pool.block(10) for _ in range(20)]
    assert {id(block) for block in again} == {id(block) for block in blocks}  # there while a stream may want them
    for block in again:
        pool.recycle(block)
    pool.give(10)
    assert sum(any(block is old for old in blocks) for block in [pool.block(10) for _ in range(20)]) == 2


def test_an_abort_drops_what_waits_for_the_site() -> None:
    hub = Hub()
    sender, _receiver = hub.stream()
    sender.send(0, encoded(w=bytes(1_000_000)), 0)
    near, far = hub.pairs[0][1], hub.pairs[1][1]
    near.feed(hub.server.output())  # as much as the hub's window takes; the site reads nothing yet
    sender.abort(ReturnCode.TASK_ABORTED, "server", "enough")
    near.feed(hub.server.output())
    assert [frame.kind for frame in FrameCutter().feed(far.output())] == [FrameType.ABORT]


@pytest.mark.parametrize("frame", [4096, 10_000])
def test_chunks_are_split_for_a_link_that_takes_smaller_ones(frame: int) -> None:
    hub = Hub()
    hub.site = Side("site-1", dialler=True, shared=surroundings(limits=Limits(frame=frame)))
    hub.far = Side("hub", dialler=False, shared=hub.shared, hub=True)
    hub.pairs = (hub.pairs[0], connect(hub.site, hub.far))
    sender, _receiver = hub.stream()
    sender.send(0, encoded(w=bytes(50_000)), 0)
    hub.pairs[0][1].feed(hub.server.output())
    chunks = [frame for frame in FrameCutter().feed(hub.far.output()) if frame.kind == FrameType.CHUNK]
    assert max(len(piece.body) for piece in chunks) == frame + 16
    assert sum(len(piece.body) - 16 for piece in chunks) == 50_000


def test_what_has_landed_of_a_chunk_is_seen_to_move_through_a_hub() -> None:
    """The hub's link takes longer for one chunk than anybody waits."""
    hub = Hub()
    sender, receiver = hub.stream()
    sender.send(0, encoded(w=bytes(50_000)), 0)
    near, far = hub.pairs[0][1], hub.pairs[1][1]
    near.feed(hub.server.output())
    pieces = far.core.next_output(1 << 20, 0.0)  # the hub has not asked again: nothing says that it was written
    data = b"".join(pieces)
    marks = [sender.progress]
    for second in range(1, 11):
        hub.site.feed(data[len(data) * (second - 1) // 10 : len(data) * second // 10], now=second + 1.0)
        far.feed(hub.site.output())
        hub.server.feed(near.output())
        marks.append(sender.progress)
    assert len(set(marks)) == 10, "the last tenth ends it"
    assert sender.outbound.credit + receiver.inbound._landed == FIRST_WINDOW + 192 * 1024
    far.output()
    hub.pump()
    assert sender.outbound.credit == FIRST_WINDOW + 192 * 1024, "once it is written, nothing is owed twice"


def test_credit_for_what_a_hub_has_not_sent_goes_no_further() -> None:
    hub = Hub()
    sender, _receiver = hub.stream()
    near, far = hub.pairs[0][1], hub.pairs[1][1]
    (leg,) = far.core.legs.values()
    credit = sender.outbound.credit
    far.feed(pack(FrameType.CREDIT, leg.alias, 1 << 40))
    hub.server.feed(near.output())
    assert sender.outbound.credit == credit
