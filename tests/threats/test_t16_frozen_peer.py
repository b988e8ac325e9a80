"""T16: a peer that is gone or frozen is noticed within 15 s."""

from __future__ import annotations

import anyio
import pytest

from fanstream.testing import RawPeer
from tests.federation import (
    Keeper,
    on_memory,
)
from tests.threats.siege import (
    LARGE,
    Forger,
    address,
    besieged,
)

pytestmark = pytest.mark.anyio


@on_memory
async def test_half_a_frame_and_then_silence_ends_the_link_as_any_silence(transport: str) -> None:
    async with besieged(transport) as fed:
        keeper = Keeper().register(fed.server)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            opened, one, data = Forger().stream(LARGE)
            peer.send(opened, one, data.pack()[:5000])
            began = anyio.current_time()
            await peer.closed()
            assert anyio.current_time() - began == pytest.approx(15, abs=0.01)
        assert keeper.log == []
