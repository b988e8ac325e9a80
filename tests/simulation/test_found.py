"""What the machines and the simulation have found, each as small as it gets."""

from __future__ import annotations

import pytest

from fanstream.protocol.events import ObjectArrived
from tests.protocol.linked import encoded, linked, opening, pump, small_limits, stream


def test_an_object_that_waits_for_its_reservation_does_not_wait_for_smaller_ones_behind_it() -> None:
    tight = small_limits(origin_bytes=64 * 1024, engine_bytes=64 * 1024)
    pair = _, right = linked(tight(), tight())
    sender, receiver = stream(pair, backlog=4)
    for seq, size in enumerate((100_000, 100_000, 10_000, 20_000)):
        sender.send(seq, encoded(a=bytes(size)), 1000)
    for seq in range(4):
        pump(pair)
        arrived = right.take(ObjectArrived)
        assert arrived.seq == seq
        receiver.release(arrived.size)
    assert right.shared.budget.used == 0


@pytest.mark.xfail(
    strict=True, reason="Scheduler.next_output cuts frames given in parts, and sends chunks before heads"
)
def test_hundreds_of_streams_that_send_at_once_do_not_cut_each_others_frames() -> None:
    pair = left, right = linked()
    legs = [left.core.open(opening(stream=number.to_bytes(16, "big")), 0, b"") for number in range(400)]
    pump(pair)
    right.events.clear()
    for leg in legs:
        leg.send(0, encoded(a=b"x" * 10_000), 1000)
    pump(pair)
    assert [type(event) for event in right.events] == [ObjectArrived] * 400
