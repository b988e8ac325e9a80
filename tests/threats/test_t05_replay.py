"""T5: a stream opens once, and an object is consumed once."""

from __future__ import annotations

import pytest

from fanstream import ReturnCode
from fanstream.protocol import bodies
from fanstream.testing import Frame, RawPeer
from tests.federation import (
    Keeper,
    hubs,
)
from tests.threats.siege import (
    Forger,
    Offence,
    T,
    address,
    after_object,
    besieged,
    expect_life,
    offend,
    small,
)

pytestmark = pytest.mark.anyio

OFFENCES: dict[str, Offence] = {
    "open of an older number": (
        lambda forger: [forger.stream()[0]._replace(alias=7), forger.stream()[0]],
        "OPEN names stream 3",
    ),
    "open on an open stream": (after_object(T.OPEN), "frame of type 16"),
}


@hubs
@pytest.mark.parametrize("offence", OFFENCES)
async def test_an_offence_ends_its_link_by_name_and_no_other(transport: str, offence: str) -> None:
    await offend(transport, *OFFENCES[offence])


@hubs
async def test_a_stream_is_opened_once(transport: str) -> None:
    async with besieged(transport) as fed:
        Keeper().register(fed.server)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            forger = Forger()
            peer.send(*forger.stream(*small(1), stream=b"once" * 4))
            await peer.receive(T.REPLY)
            peer.send(*forger.stream(*small(1), stream=b"once" * 4))
            refused = await peer.receive(T.REFUSED)
            assert bodies.decode(bodies.Cause, refused.body).rc == ReturnCode.BAD_REQUEST_DATA
            await expect_life(peer)


@hubs
async def test_a_duplicate_is_answered_again_and_consumed_once(transport: str) -> None:
    async with besieged(transport) as fed:
        keeper = Keeper().register(fed.server)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            opened, one, two = Forger().stream(*small(2))
            peer.send(opened, one)
            reply = await peer.receive(T.REPLY)
            for _ in range(3):
                peer.send(one)
                assert await peer.receive(T.REPLY) == reply
            peer.send(two, one, Frame(T.END, alias=opened.alias, seq=2))
            ended = await peer.receive(T.ENDED)
            assert bodies.decode(bodies.Ending, ended.body).rc == "OK"
            assert keeper.seen == [0, 1]
            peer.send(one, two, Frame(T.CREDIT, alias=opened.alias, seq=9), Frame(T.ABORT, alias=opened.alias))
            await expect_life(peer)
