"""T15: who is slow delays nobody, and a frame that has begun is whole within 30 s."""

from __future__ import annotations

import anyio
import pytest

from fanstream import StreamOptions
from fanstream.testing import FaultyNetwork, Frame, RawPeer
from fanstream.testing.peer import hello
from tests.federation import (
    hubs,
    is_real,
    on_memory,
    over_sockets,
    until,
)
from tests.threats.siege import (
    Arrays,
    T,
    address,
    besieged,
    dial_unread,
)

pytestmark = pytest.mark.anyio


@hubs
@pytest.mark.parametrize("grants", [False, True], ids=["never grants", "grants and never credits"])
async def test_a_receiver_that_holds_everything_up_delays_itself_alone(transport: str, grants: bool) -> None:
    real = is_real(transport)
    timeout, end_timeout = (0.2, 0.2) if real else (30, 10)
    async with besieged(transport) as fed, RawPeer.dial(address(fed)) as peer:
        await peer.greet(frame=4096, window=4096, relay_window=4096)
        await until(lambda: "stranger" in fed.server.sites())
        producer = Arrays(3, timeout=timeout)
        received = 0

        async def read() -> None:
            nonlocal received
            while True:
                frame = await peer.receive()
                if frame.kind == T.OBJECT and grants:
                    peer.send(Frame(T.GRANT, alias=frame.alias, seq=frame.seq))
                if frame.kind == T.CHUNK:
                    received += len(frame.body)
                if frame.kind == T.PING:
                    peer.send(Frame(T.PONG))

        async with anyio.create_task_group() as tg:
            tg.start_soon(read)
            began = anyio.current_time()
            options = StreamOptions(max_lag=3, end_timeout=end_timeout)
            result = await fed.stream(producer, ["site-1", "stranger"], options=options)
            took = anyio.current_time() - began
            tg.cancel_scope.cancel()
        assert producer.rcs("site-1") == ["OK"] * 3
        assert producer.rcs("stranger") == ["TIMEOUT"] * 3
        assert result.sites["stranger"].outcomes == {"timed_out": 3}
        assert received <= 2 * 4096 + 100, "the window, and one frame"
        if not real:
            assert took == pytest.approx(3 * timeout + end_timeout, abs=0.01)


@on_memory
async def test_a_peer_that_never_reads_delays_itself_alone(transport: str) -> None:
    with FaultyNetwork() as network:
        async with besieged(transport) as fed, RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            await until(lambda: "stranger" in fed.server.sites())
            network.link("stranger").down.stall()

            async def breathe() -> None:
                while True:
                    peer.send(Frame(T.PING))
                    await anyio.sleep(5)

            async with anyio.create_task_group() as tg:
                tg.start_soon(breathe)
                producer = Arrays(4, timeout=20)
                result = await fed.stream(producer, ["site-1", "stranger"], options=StreamOptions(max_lag=4))
                tg.cancel_scope.cancel()
            assert producer.rcs("site-1") == ["OK"] * 4
            assert result.sites["stranger"].outcomes == {"timed_out": 4}


@over_sockets
async def test_a_peer_that_never_reads_a_socket_delays_itself_alone(transport: str) -> None:
    async with besieged(transport) as fed:
        wire = dial_unread(fed)
        try:
            wire.send(hello("stranger").pack())
            await until(lambda: "stranger" in fed.server.sites())
            producer = Arrays(4, timeout=0.2)
            options = StreamOptions(max_lag=4, end_timeout=0.2)
            result = await fed.stream(producer, ["site-1", "stranger"], options=options)
            assert producer.rcs("site-1") == ["OK"] * 4
            assert result.sites["stranger"].outcomes == {"timed_out": 4}
        finally:
            wire.close()


@on_memory
async def test_a_started_frame_finishes_in_thirty_seconds(transport: str) -> None:
    async with besieged(transport) as fed, RawPeer.dial(address(fed)) as peer:
        await peer.greet()
        whole = Frame(T.PRESENCE, body=bytes(1000)).pack()
        began = anyio.current_time()
        async with anyio.create_task_group() as tg:

            async def drip() -> None:
                for at in range(40):
                    peer.send(whole[at : at + 1])
                    await anyio.sleep(5)
                tg.cancel_scope.cancel()

            tg.start_soon(drip)
            await peer.closed()
            tg.cancel_scope.cancel()
        assert anyio.current_time() - began < 40
