"""Durable streams in the core: which life of an opener a site takes, and what is said twice between two of them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from fanstream.errors import RemoteProtocolError
from fanstream.protocol import bodies
from fanstream.protocol.events import Aborted, Ended, ObjectArrived, Opened, Refused, ReplyArrived, Resumed
from fanstream.protocol.opener import OpenerLeg
from fanstream.protocol.receiver import ReceiverLeg

from .linked import encoded, linked, pump, small_limits
from .test_resume import LIFE, Stream, legs_of

NEXT = b"server, again".ljust(16, b".")


class Durable(Stream):
    """A durable stream, whose opener can die and come back."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sender.opening = msgspec.structs.replace(self.sender.opening, epoch=1)
        self.sender.settled = 0
        self.pair[0].core.open_again(self.sender)  # with the epoch, before anything was carried

    def next_life(self, settled: int, *, epoch: int = 2) -> None:
        """The opener is there again, and knows no more than how many objects were settled."""
        self.pair[1].events += self.pair[1].core.lost("cut")
        self.left = small_limits()()
        self.pair = linked(self.left, self.right)
        said = msgspec.structs.replace(self.sender.opening, life=NEXT, epoch=epoch)
        self.sender = self.pair[0].core.take_up(said, b"ctx", life=b"site-1".ljust(16, b"."), settled=settled)
        self.pair[0].core.resume(self.sender)


def durable() -> Durable:
    stream = Durable()
    pump(stream.pair)
    *_, opened = (event for event in stream.pair[1].events if isinstance(event, Opened))
    stream.receiver = opened.leg
    stream.pair[1].events.clear()
    return stream


@pytest.mark.parametrize(
    ("kept", "asked", "life", "taken"),
    [
        (0, 0, LIFE, True),
        (0, 0, NEXT, False),
        (0, 1, NEXT, False),
        (0, 1, LIFE, False),
        (2, 2, LIFE, True),
        (2, 2, NEXT, False),
        (2, 3, NEXT, True),
        (2, 9, NEXT, True),
        (2, 3, LIFE, True),
        (2, 1, LIFE, False),
        (2, 1, NEXT, False),
        (2, 0, LIFE, False),
        (2, -1, LIFE, False),
    ],
)
def test_whom_a_site_goes_on_with(kept: int, asked: int, life: bytes, taken: bool) -> None:
    """The table of the reference."""
    stream = durable()
    stream.receiver.opening = msgspec.structs.replace(stream.receiver.opening, epoch=kept)
    said = stream.receiver.opening
    resumption = bodies.Resumption(said.stream, said.opener, said.targets, life, epoch=asked)
    assert stream.receiver.knows(resumption) is taken


def test_an_earlier_life_is_fenced_once_a_later_one_was_heard() -> None:
    stream = durable()
    stream.send(0, n=0)
    pump(stream.pair)
    older, older_pair = stream.sender, stream.pair
    stream.left = small_limits()()
    stream.pair = linked(stream.left, stream.right)
    said = msgspec.structs.replace(older.opening, life=NEXT, epoch=2)
    stream.sender = stream.pair[0].core.take_up(said, b"ctx", life=b"", settled=0)
    stream.pair[0].core.resume(stream.sender)
    pump(stream.pair)
    assert (stream.receiver.opening.life, stream.receiver.opening.epoch) == (NEXT, 2)
    assert stream.sender.attached
    older.send(1, encoded(n=1), 0)  # on a link that still lives
    pump(older_pair)
    assert older_pair[1].core.stray == 1
    assert [event.seq for event in older_pair[1].events if isinstance(event, ObjectArrived)] == [0]
    older_pair[0].core.lost("cut")
    back = linked(stream.left, stream.right)
    back[0].core.resume(older)
    pump(back)
    assert older.closed
    assert stream.sender.attached
    assert stream.receiver.opening.epoch == 2


def begun(answered: int, sent: int, **data: Any) -> Durable:
    stream = durable()
    for seq in range(sent):
        stream.send(seq, n=seq, **data)
        stream.carry()
    for seq in range(answered):
        stream.receiver.reply(seq, encoded(n=seq))
    pump(stream.pair)
    return stream


def test_replies_are_acknowledged_when_they_are_settled() -> None:
    stream = begun(3, 3)
    stream.send(3, n=3)
    stream.carry()
    assert (stream.sender.inbound.whole, stream.receiver.acked) == (3, 0)
    stream.sender.settled = 2
    stream.send(4, n=4)
    stream.carry()
    assert stream.receiver.acked == 2


def test_the_next_life_hears_all_replies_that_were_not_settled_and_sends_what_is_not_there() -> None:
    stream = begun(3, 5)
    stream.pair[1].events.clear()
    stream.next_life(1)
    pump(stream.pair)
    (resumed,) = (event for event in stream.pair[0].events if isinstance(event, Resumed))
    assert (resumed.seq, stream.sender.sent) == (5, 5)
    assert stream.seqs(ReplyArrived) == [1, 2]
    for seq in range(1, 5):  # made again; the site has them
        stream.sender.send(seq, encoded(n=seq), 0)
    assert stream.pair[0].output() == b""
    stream.sender.send(5, encoded(n=5), 0)
    pump(stream.pair)
    assert stream.seqs(ObjectArrived) == [5]
    assert [side.core.duplicates + side.core.stray for side in stream.pair] == [0, 0]


@pytest.mark.parametrize("landed", [0, 4096, 60_000])
def test_of_half_an_object_nothing_is_kept(landed: int) -> None:
    stream = begun(1, 1)
    stream.pair[1].events.clear()
    stream.sender.send(1, encoded(w=np.zeros(200_000, np.uint8)), 0)
    data = stream.pair[0].output()
    stream.pair[1].feed(data[: len(data) - 60_000 + landed])
    assert stream.receiver.inbound.position[2] > 0
    stream.next_life(1)
    pump(stream.pair)
    assert stream.right.budget.used == stream.receiver.inbound.aside
    (resumed,) = (event for event in stream.pair[0].events if isinstance(event, Resumed))
    assert (resumed.seq, resumed.buffer, resumed.offset) == (1, 0, 0)
    stream.sender.send(1, encoded(w=np.ones(100_000, np.uint8)), 0)
    pump(stream.pair)
    (arrived,) = (event for event in stream.pair[1].events if isinstance(event, ObjectArrived))
    assert np.array_equal(arrived.value["w"], np.ones(100_000, np.uint8))


def test_what_an_earlier_life_has_sent_ahead_still_takes_its_room() -> None:
    """The next life does not know how much that is, so it asks until all of it is answered.

    The first object is held, which is what makes the site look at the room of what comes ahead.
    """
    stream = begun(0, 7, w=np.zeros(200_000, np.uint8))
    inbound = stream.receiver.inbound
    assert inbound.held > 0
    assert inbound.aside - inbound._ahead < 500_000 < inbound.aside
    stream.next_life(0)
    pump(stream.pair)
    assert stream.sender._allowance == inbound.aside
    stream.sender.send(7, encoded(w=np.zeros(500_000, np.uint8)), 0)
    pump(stream.pair)
    assert inbound.expected == 8


def test_an_end_is_said_again_until_it_is_settled() -> None:
    stream = begun(2, 2)
    stream.sender.end(withdraw=False)
    pump(stream.pair)
    stream.receiver.ended("OK", "", b"result")
    pump(stream.pair)
    (ended,) = (event for event in stream.pair[0].events if isinstance(event, Ended))
    assert (ended.rc, stream.sender.over, stream.sender.closed, stream.receiver.closed) == ("OK", True, False, False)
    stream.sender.send(2, encoded(n=2), 0)  # nobody there wants it
    assert stream.pair[0].output() == b""
    stream.next_life(2)
    pump(stream.pair)
    (again,) = (event for event in stream.pair[0].events if isinstance(event, Ended))
    assert (again.rc, again.result) == ("OK", b"result")
    stream.sender.done()
    stream.sender.done()
    pump(stream.pair)
    assert (stream.sender.closed, stream.receiver.closed) == (True, True)
    assert legs_of(stream.right).incoming == {}


@pytest.mark.parametrize("told", [2, 5])
def test_a_withdrawal_is_said_again_with_the_number_of_objects_that_was_told(told: int) -> None:
    """Objects that were sent and have not arrived are of no account, but that the site knows how many there were."""
    stream = begun(1, 2)
    stream.sender.sent = 5
    stream.sender.end(withdraw=True)
    pump(stream.pair)
    stream.next_life(1)
    pump(stream.pair)
    stream.sender.sent = told
    stream.sender.end(withdraw=True)
    if told == 5:
        pump(stream.pair)
        assert stream.receiver.final == 5
    else:
        with pytest.raises(RemoteProtocolError, match="END after 2 objects from server"):
            pump(stream.pair)


def test_a_refusal_is_said_again_until_it_is_settled() -> None:
    stream = durable()
    stream.receiver.refuse("TOPIC_UNKNOWN", "nothing there")
    pump(stream.pair)
    assert [type(event) for event in stream.pair[0].events] == [Refused]
    assert not stream.receiver.closed
    stream.next_life(0)
    pump(stream.pair)
    assert [event.rc for event in stream.pair[0].events if isinstance(event, Refused)] == ["TOPIC_UNKNOWN"]
    stream.sender.done()
    pump(stream.pair)
    assert stream.receiver.closed


def test_a_stream_that_is_aborted_before_it_is_resumed_ends_at_its_site() -> None:
    stream = begun(2, 3)
    stream.pair[1].events.clear()
    stream.next_life(0)
    stream.sender.abort("TASK_ABORTED", "server", "not after all")
    pump(stream.pair)
    assert [type(event) for event in stream.pair[1].events] == [Resumed, Aborted]
    stream.receiver.ended("TASK_ABORTED", "", b"")
    pump(stream.pair)
    assert (stream.sender.closed, stream.receiver.closed) == (True, True)


def test_an_end_whose_way_breaks_is_not_waited_for() -> None:
    stream = begun(1, 1)
    stream.receiver.ended("OK", "", b"")
    pump(stream.pair)
    stream.cut()
    assert stream.sender.closed
    assert legs_of(stream.left).waiting == []


@pytest.mark.parametrize("more", [0, 1])
def test_a_site_cannot_claim_more_than_its_backlog(more: int) -> None:
    stream = begun(1, 1)
    stream.next_life(1)
    stream.receiver.inbound.expected = 1 + stream.backlog + more
    if more:
        with pytest.raises(Exception, match="RESUME at object 10 from site-1, which has answered 1 of 1"):
            pump(stream.pair)
    else:
        pump(stream.pair)
        assert stream.sender.sent == 9


def test_both_kinds_of_leg_name_the_site_at_the_other_end() -> None:
    stream = durable()
    assert isinstance(stream.sender, OpenerLeg)
    assert isinstance(stream.receiver, ReceiverLeg)
    assert (stream.sender.site, stream.receiver.site) == ("site-1", "server")
