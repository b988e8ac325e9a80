"""T2: a site speaks in its own name alone."""

from __future__ import annotations

import pytest

from fanstream.protocol import bodies
from fanstream.testing import FaultyNetwork, RawPeer
from fanstream.testing.peer import hello
from tests.federation import (
    delayed,
    hubs,
)
from tests.threats.siege import (
    Offence,
    T,
    address,
    besieged,
    offend,
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
