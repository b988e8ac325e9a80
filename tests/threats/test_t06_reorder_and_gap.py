"""T6: order is kept, and a gap is never skipped."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fanstream.errors import RemoteProtocolError
from fanstream.protocol import bodies
from fanstream.protocol.events import ObjectArrived
from fanstream.testing import Frame, RawPeer
from fanstream.testing.frames import FrameCutter
from tests.federation import (
    hubs,
)
from tests.protocol.linked import encoded, linked, small_limits, stream
from tests.threats.siege import (
    Forger,
    Offence,
    T,
    address,
    after_object,
    besieged,
    chunk,
    expect_life,
    large,
    offend,
    second_object,
    small,
)

pytestmark = pytest.mark.anyio

OFFENCES: dict[str, Offence] = {
    "gap": (second_object(lambda two: two._replace(seq=2)), "object 2 from stranger skips 1"),
    "far gap": (second_object(lambda two: two._replace(seq=2**64 - 1)), "skips 1"),
    "object after the end": (
        lambda forger: [*forger.stream(*small(1)), Frame(T.END, alias=1, seq=1), Frame(T.OBJECT, alias=1, seq=1)],
        "object 1 from stranger after the end at 1",
    ),
    "end before what was sent": (after_object(T.END, seq=0), "END after 0 objects from stranger, which has sent 1"),
    "end after another end": (
        lambda forger: [*forger.stream(*small(1)), Frame(T.END, alias=1, seq=3), Frame(T.END, alias=1, seq=2)],
        "END after 2 objects",
    ),
    "chunk at a later offset": (large(lambda data: chunk(data, offset=1)), "CHUNK at buffer 0, offset 1; expected"),
    "chunk at a far offset": (large(lambda data: chunk(data, offset=2**64 - 1)), "CHUNK at buffer 0, offset"),
    "chunk of another buffer": (large(lambda data: chunk(data, buffer=1)), "CHUNK at buffer 1, offset 0"),
    "chunk of no object": (large(lambda data: data._replace(seq=7)), "CHUNK for object 7"),
}


@hubs
@pytest.mark.parametrize("offence", OFFENCES)
async def test_an_offence_ends_its_link_by_name_and_no_other(transport: str, offence: str) -> None:
    await offend(transport, *OFFENCES[offence])


@hubs
async def test_an_offence_through_a_hub_ends_that_stream_alone(transport: str) -> None:
    async with besieged(transport, 2) as fed:
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            opened, one, two = Forger().stream(*small(2), target="site-2")
            peer.send(opened, one, two._replace(seq=5))
            refused = await peer.receive(T.REFUSED)
            cause = bodies.decode(bodies.Cause, refused.body)
            assert (cause.rc, cause.who) == ("BAD_REQUEST_DATA", "site-2")
            assert "object 5 from stranger skips 1" in cause.reason
            await expect_life(peer)
        assert len(fed.sites["site-2"]._links) == 1, "the link between hub and site lives"


# --- in the core ---


@pytest.mark.parametrize(
    "order", [order for order in itertools.permutations(range(4)) if order != (0, 1, 2, 3)], ids=str
)
def test_objects_out_of_order_are_never_delivered_out_of_order(order: tuple[int, ...]) -> None:
    pair = left, right = linked()
    sender, _ = stream(pair, backlog=8)
    frames = []
    for seq in range(4):
        sender.send(seq, encoded(n=seq), 0)
        frames.append(left.output())
    straight = next(at for at, seq in enumerate(order) if at != seq)
    with pytest.raises(RemoteProtocolError, match=f"object {order[straight]} from server skips {straight}"):
        right.feed(*(frames[seq] for seq in order))
    assert [event.seq for event in right.core.take_events() + right.events if isinstance(event, ObjectArrived)] == list(
        range(straight)
    )


@pytest.mark.parametrize("missing", range(4))
def test_a_piece_that_is_missing_is_not_skipped(missing: int) -> None:
    pair = left, right = linked(left=small_limits()(), right=small_limits()())
    sender, _ = stream(pair, backlog=8)
    sender.send(0, encoded(w=np.arange(2000.0)), 0)
    head, *pieces = FrameCutter().feed(left.output())
    assert len(pieces) == 4
    right.feed(head.pack())
    del pieces[missing]
    if missing == 3:
        right.feed(*(piece.pack() for piece in pieces))
    else:
        with pytest.raises(RemoteProtocolError, match=r"CHUNK at buffer 0, offset \d+; expected buffer 0, offset"):
            right.feed(*(piece.pack() for piece in pieces))
    assert right.events == [], "half an object is none"


@pytest.mark.parametrize("again", range(3))
def test_a_piece_that_comes_twice_is_an_offence(again: int) -> None:
    pair = left, right = linked(left=small_limits()(), right=small_limits()())
    sender, _ = stream(pair, backlog=8)
    sender.send(0, encoded(w=np.arange(2000.0)), 0)
    head, *pieces = FrameCutter().feed(left.output())
    pieces.insert(again, pieces[again])
    with pytest.raises(RemoteProtocolError, match="CHUNK at buffer 0, offset"):
        right.feed(head.pack(), *(piece.pack() for piece in pieces))
    assert right.events == []
