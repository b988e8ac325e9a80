"""T16: a peer that is gone or frozen is noticed within 15 s."""

from __future__ import annotations

import socket

import anyio
import pytest

from fanstream import StreamOptions
from fanstream.protocol.events import Event, Silent
from fanstream.protocol.frames import pack
from fanstream.testing import FaultyNetwork, RawPeer
from tests.federation import (
    Keeper,
    Numbers,
    federation,
    on_memory,
)
from tests.protocol.linked import linked, surroundings
from tests.threats.siege import (
    LARGE,
    Forger,
    T,
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


# --- in the core, and on every transport ---


@pytest.mark.parametrize("side", ["dialler", "listener"])
@pytest.mark.parametrize(("heartbeat", "silence"), [(7.0, 15.0), (1.0, 3.0), (5.0, 60.0)])
def test_silence_is_noticed_in_time_and_not_before(side: str, heartbeat: float, silence: float) -> None:
    left, right = linked(*(surroundings(heartbeat=heartbeat, silence=silence) for _ in range(2)))
    core = (left if side == "dialler" else right).core
    now = 0.0
    told: list[Event] = []
    while not told and now < 100:
        now = core.next_deadline()
        told = core.handle_timeout(now)
        core.next_output(1 << 20, now)
    assert [type(event) for event in told] == [Silent]
    assert now == silence


@pytest.mark.parametrize("byte", [b"\0", pack(T.PONG)])
def test_a_single_byte_is_life(byte: bytes) -> None:
    _, right = linked()
    right.feed(byte, now=14.0)
    assert right.core.handle_timeout(15.0) == []
    assert right.core.handle_timeout(28.9) == []
    assert [type(event) for event in right.core.handle_timeout(29.0)] == [Silent]


@on_memory
@pytest.mark.parametrize("way", ["up", "down", "both"])
async def test_a_link_that_carries_nothing_any_more_is_given_up_by_both_ends(transport: str, way: str) -> None:
    with FaultyNetwork() as network:
        async with federation(transport) as fed:
            Keeper().register(fed.sites["site-1"])
            link = network.link("site-1")
            began = anyio.current_time()
            if way in ("up", "both"):
                link.up.stall()
            if way in ("down", "both"):
                link.down.stall()
            result = await fed.stream(Numbers(3, timeout=60), options=StreamOptions(end_timeout=60, resume_window=0))
            assert anyio.current_time() - began <= 15.0 + 1
            assert result.sites["site-1"].rc == "COMMUNICATION_ERROR"
            link.resume()
            await fed.server.wait_for_sites(["site-1"])
            assert (await fed.stream(Numbers(2))).complete, "and the site is back"


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such option")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_kernel_gives_up_unacknowledged_data_in_time(anyio_backend: str) -> None:
    async with federation("tcp") as fed:
        for engine in fed.engines:
            for link in engine._links:
                sock = link._wire._sock  # type: ignore[attr-defined]  # it is a SocketWire
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000
