"""T2: a site speaks in its own name alone."""

from __future__ import annotations

import pytest

from fanstream.protocol import bodies
from fanstream.testing import FaultyNetwork, Frame, RawPeer
from fanstream.testing.peer import hello
from tests.federation import (
    Keeper,
    delayed,
    hubs,
    on_memory,
    until,
)
from tests.threats.siege import (
    Forger,
    Offence,
    T,
    address,
    besieged,
    expect_goodbye,
    expect_life,
    offend,
    small,
)

pytestmark = pytest.mark.anyio

OFFENCES: dict[str, Offence] = {
    "spoofed opener": (lambda forger: forger.stream(opener="site-1"), "stranger opens a stream in the name of site-1"),
    "spoofed hub": (lambda forger: forger.stream(opener="server"), "stranger opens a stream in the name of server"),
}


@hubs
@pytest.mark.parametrize("offence", OFFENCES)
async def test_an_offence_ends_its_link_by_name_and_no_other(transport: str, offence: str) -> None:
    await offend(transport, *OFFENCES[offence])


@hubs
async def test_the_name_of_the_hub_or_of_an_honest_site_cannot_be_had(transport: str) -> None:
    # An answer to the probe has to take some time: one that comes at the same moment is not seen.
    with FaultyNetwork(delayed(0.001)):
        async with besieged(transport) as fed:
            for name in ("server", "site-1"):
                async with RawPeer.dial(address(fed)) as peer:
                    peer.send(hello(name))
                    goodbye = bodies.decode(bodies.Goodbye, (await peer.receive(T.GOAWAY)).body)
                    assert goodbye.code == "name-in-use"
                    await peer.closed()


@on_memory
@pytest.mark.parametrize("name", ["Stranger", "stranger ", "str\u0430nger", "stranger\0", "STRANGER", "stranger.", "*"])
async def test_names_are_compared_exactly(transport: str, name: str) -> None:
    await offend(transport, lambda forger: forger.stream(opener=name), f"stranger opens a stream in the name of {name}")


@on_memory
async def test_nobody_but_a_hub_says_which_sites_there_are(transport: str) -> None:
    async with besieged(transport) as fed, RawPeer.dial(address(fed)) as peer:
        await peer.greet()
        await until(lambda: "stranger" in fed.server.sites())
        peer.send(Frame(T.PRESENCE, body=bodies.encode(bodies.Presence(True, ["site-9"], ["site-1"]))))
        await expect_life(peer)
        assert fed.server.sites() == {"site-1", "stranger"}
        await fed.server.wait_for_sites(["site-1"])


@on_memory
@pytest.mark.parametrize("name", ["server", "site-1", "site-2", "nobody"])
async def test_a_member_opens_no_stream_in_anothers_name_through_the_hub(transport: str, name: str) -> None:
    async with besieged(transport, 2) as fed:
        keeper = Keeper().register(fed.sites["site-2"])
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            peer.send(*Forger().stream(*small(1), target="site-2", opener=name))
            await expect_goodbye(peer, f"stranger opens a stream in the name of {name}")
        assert keeper.log == [], "site-2 heard nothing of it"
