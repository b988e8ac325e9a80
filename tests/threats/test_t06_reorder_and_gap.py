"""T6: order is kept, and a gap is never skipped."""

from __future__ import annotations

import pytest

from fanstream.protocol import bodies
from fanstream.testing import Frame, RawPeer
from tests.federation import (
    hubs,
)
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
