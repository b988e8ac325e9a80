"""T15: who is slow delays nobody, and a frame that has begun is whole within 30 s."""

from __future__ import annotations

import anyio
import numpy as np
import pytest

from fanstream import Limits, StreamOptions
from fanstream.errors import RemoteProtocolError
from fanstream.protocol import bodies
from fanstream.protocol.frames import pack
from fanstream.testing import FaultyNetwork, Frame, RawPeer
from fanstream.testing.peer import hello
from tests.federation import (
    hubs,
    is_real,
    on_memory,
    over_sockets,
    until,
)
from tests.protocol.linked import encoded, linked, stream, surroundings
from tests.threats.siege import (
    KIB,
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


# --- in the core: how long a frame may take ---


@pytest.mark.parametrize("cut", [1, 23, 24, 500])
def test_a_frame_that_has_begun_has_thirty_seconds(cut: int) -> None:
    _, right = linked()
    data = pack(T.PRESENCE, body=bytes(1000))
    right.feed(data[:cut], now=100.0)
    for now in (101.0, 110.0, 120.0, 129.9):
        right.core.session.last_received = now  # as if a byte had come
        right.core.handle_timeout(now)
    assert right.core.next_deadline() <= 130.0
    with pytest.raises(RemoteProtocolError, match=r"a frame begun 30\.0 s ago is not whole"):
        right.core.handle_timeout(130.0)


@pytest.mark.parametrize("size", [16 * KIB, 160 * KIB, 1024 * KIB])
def test_a_large_chunk_has_a_second_more_for_each_16_kib(size: int) -> None:
    pair = left, right = linked()
    sender, _ = stream(pair)
    sender.send(0, encoded(w=np.zeros(size, np.uint8)), 0)
    data = left.output()
    right.feed(data[:-size], now=100.0)
    assert right.core._frame_deadline(100.0) == 130.0 + size / (16 * KIB)


def test_each_frame_has_its_own_time() -> None:
    _, right = linked()
    frame = pack(T.PRESENCE, body=bodies.encode(bodies.Presence(False, ["a" * 60], [])))
    for number in range(20):
        right.feed(frame[:50] if not number else frame[50:] + frame[:50], now=20.0 * number)
        right.core.handle_timeout(20.0 * number)
    assert right.core.session.accepts_streams


@pytest.mark.parametrize("window", [64 * KIB, 1024 * KIB, 32 * 1024 * KIB])
def test_who_gives_no_credit_is_sent_its_window_and_one_frame(window: int) -> None:
    limits = Limits(window=window, frame=64 * KIB)
    pair = left, _ = linked(right=surroundings(limits=limits))
    sender, _ = stream(pair, backlog=4000)
    payload = encoded(b=bytes(50_000))
    for seq in range(1 + 2 * window // 50_000):
        sender.send(seq, payload, 0)
    assert window <= len(left.output()) + 4096 <= window + 64 * KIB + 4096 + 24 * (2 + 2 * window // 50_000) * 2
