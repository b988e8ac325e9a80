from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import repeat
from typing import Any

import anyio
import numpy as np
import pytest

from fanstream import EngineSettings, Shareable, StreamEngine
from fanstream.testing import Fault, FaultProxy, Faults, ProxiedConnection
from fanstream.testing.proxy import CAPACITY
from tests.federation import Keeper, Numbers, check_account

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"], indirect=True),
]

PATTERN = bytes(range(256)) * 256


class Ends:
    """Both ends of a proxied connection, as bare sockets."""

    def __init__(self, near: socket.socket, far: socket.socket, control: ProxiedConnection) -> None:
        self._loop = asyncio.get_running_loop()
        self.near = near
        self.far = far
        self.control = control

    async def say(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.near, data)

    async def hear(self, count: int) -> bytes:
        """Read *count* bytes at the far end, or what comes before its end."""
        return await self._read(self.far, count)

    async def hear_back(self, count: int) -> bytes:
        return await self._read(self.near, count)

    async def _read(self, sock: socket.socket, count: int) -> bytes:
        heard = b""
        while len(heard) < count and (data := await self._loop.sock_recv(sock, count - len(heard))):
            heard += data
        return heard


def bound(kind: str, folder: str) -> tuple[socket.socket, str]:
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(f"{folder}/s")
        return sock, f"unix://{folder}/s"
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock, f"tcp://127.0.0.1:{sock.getsockname()[1]}"


async def dialled(address: str) -> socket.socket:
    scheme, _, where = address.partition("://")
    sock = socket.socket(socket.AF_UNIX if scheme == "unix" else socket.AF_INET)
    sock.setblocking(False)
    host, _, port = where.rpartition(":")
    await asyncio.get_running_loop().sock_connect(sock, where if scheme == "unix" else (host, int(port)))
    return sock


@asynccontextmanager
async def proxied(kind: str = "tcp", *, up: Fault | None = None, down: Fault | None = None) -> AsyncIterator[Ends]:
    with anyio.fail_after(20), tempfile.TemporaryDirectory() as folder:
        listener, target = bound(kind, folder)
        listener.listen()
        listener.setblocking(False)
        with listener:
            async with FaultProxy(target, [Faults(up or Fault(), down or Fault())]) as proxy:
                near = await dialled(proxy.address)
                far, _ = await asyncio.get_running_loop().sock_accept(listener)
                with near, far:
                    yield Ends(near, far, await proxy.connection())


both = pytest.mark.parametrize("kind", ["tcp", "unix"])


@both
async def test_without_faults_bytes_go_both_ways_and_the_end_goes_with_them(kind: str) -> None:
    async with proxied(kind) as ends:
        async with anyio.create_task_group() as tg:
            tg.start_soon(ends.say, PATTERN * 20)
            assert await ends.hear(len(PATTERN) * 20) == PATTERN * 20
        ends.near.shutdown(socket.SHUT_WR)
        assert await ends.hear(1) == b""
        ends.far.sendall(b"still there")
        assert await ends.hear_back(11) == b"still there"
        assert ends.control.alive
        ends.far.close()
        assert await ends.hear_back(1) == b""
        assert (ends.control.up.carried, ends.control.down.carried) == (len(PATTERN) * 20, 11)


@both
@pytest.mark.parametrize("count", [0, 1, 1000])
async def test_a_cut_comes_after_exactly_so_many_bytes(kind: str, count: int) -> None:
    async with proxied(kind, up=Fault(cut_after=count)) as ends:
        ends.near.sendall(PATTERN[:1000])
        assert await ends.hear(count) == PATTERN[:count]
        for end in (ends.hear, ends.hear_back):
            with suppress(ConnectionResetError):  # where the proxy had not read all
                assert await end(1) == b""
        assert not ends.control.alive


async def test_a_reset_is_one_at_both_ends() -> None:
    async with proxied(down=Fault(reset_after=5)) as ends:
        ends.far.sendall(b"hello, world")
        assert await ends.hear_back(5) == b"hello"
        with pytest.raises(ConnectionResetError):
            await ends.hear_back(1)
        with pytest.raises(ConnectionResetError):
            await ends.hear(1)


@both
async def test_a_half_close_ends_one_way_and_leaves_the_other(kind: str) -> None:
    async with proxied(kind, up=Fault(half_close_after=3)) as ends:
        await ends.say(b"abcdef")
        assert await ends.hear(10) == b"abc"
        await ends.say(PATTERN * 100)  # dropped, and nobody waits for room
        ends.far.sendall(b"heard")
        assert await ends.hear_back(5) == b"heard"


async def test_a_stall_holds_all_that_follows_until_it_is_resumed() -> None:
    async with proxied(up=Fault(stall_after=4)) as ends:
        ends.near.sendall(b"abcdefgh")
        ends.near.shutdown(socket.SHUT_WR)
        assert await ends.hear(4) == b"abcd"
        with anyio.move_on_after(0.05) as waited:
            await ends.hear(1)
        assert waited.cancelled_caught
        ends.control.resume()
        assert await ends.hear(10) == b"efgh"


async def test_a_stalled_way_holds_no_more_than_its_capacity() -> None:
    async with proxied() as ends:
        ends.control.stall()
        with anyio.move_on_after(0.3) as waited:
            await ends.say(bytes(64 * CAPACITY))
        assert waited.cancelled_caught, "a sender comes to wait"
        assert ends.control.up._size < 2 * CAPACITY


@pytest.mark.parametrize("at", [0, 1, 70_000])
async def test_one_bit_of_one_byte_is_flipped(at: int) -> None:
    async with proxied(up=Fault(flip_at=at)) as ends:
        said = PATTERN * 2
        async with anyio.create_task_group() as tg:
            tg.start_soon(ends.say, said)
            heard = await ends.hear(len(said))
        changed = [place for place, (one, other) in enumerate(zip(said, heard, strict=True)) if one != other]
        assert changed == [at]
        assert heard[at] == said[at] ^ 1


async def test_pieces_arrive_one_by_one() -> None:
    async with proxied(up=Fault(piece=1, rate=20)) as ends:
        ends.near.sendall(b"abc")
        assert [await ends._loop.sock_recv(ends.far, 100) for _ in range(3)] == [b"a", b"b", b"c"]


async def test_a_rate_and_a_delay_take_their_time() -> None:
    async with proxied(up=Fault(rate=200_000), down=Fault(delay=0.1)) as ends:
        began = anyio.current_time()
        ends.near.sendall(bytes(40_000))
        await ends.hear(40_000)
        assert 0.15 < anyio.current_time() - began < 2
        began = anyio.current_time()
        ends.far.sendall(b"x")
        await ends.hear_back(1)
        assert 0.099 < anyio.current_time() - began < 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cut_after": -1}, "cut_after is -1"),
        ({"flip_at": -1}, "flip_at is -1"),
        ({"piece": 0}, "piece is 0"),
        ({"rate": 0.0}, "rate is 0"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"delay": -1.0}, "delay is -1"),
        ({"delay": float("inf")}, "delay is inf"),
    ],
)
async def test_values_out_of_range(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fault(**wrong)


async def test_a_memory_address_has_nothing_to_proxy() -> None:
    with pytest.raises(ValueError, match="FaultyNetwork"):
        FaultProxy("memory://hub")


# --- between engines ---


@asynccontextmanager
async def federated(kind: str, *script: Faults) -> AsyncIterator[tuple[StreamEngine, StreamEngine, FaultProxy]]:
    """A hub and a site that reaches it through a proxy."""
    settings = EngineSettings(retry_first=0.01, retry_max=0.02, registration_grace=0)
    with tempfile.TemporaryDirectory() as folder, anyio.fail_after(20):
        listen = f"unix://{folder}/s" if kind == "unix" else "tcp://127.0.0.1:0"
        async with (
            StreamEngine("server", listen=listen, settings=settings) as server,
            FaultProxy(server.addresses[0], script) as proxy,
            StreamEngine("site-1", connect=proxy.address, settings=settings) as site,
        ):
            yield server, site, proxy


@both
@pytest.mark.parametrize("piece", [1, 7, None])
async def test_a_stream_through_the_proxy_is_whole_however_it_is_cut(kind: str, piece: int | None) -> None:
    fault = Fault(piece=piece)
    async with federated(kind, Faults(fault, fault)) as (server, site, _proxy):
        arrived: list[Any] = []

        @site.consumer("models", "weights")
        async def keep(shareable: Shareable, stream_ctx: Any, fl_ctx: Any) -> None:
            arrived.append(shareable["w"])

        await server.wait_for_sites(["site-1"])
        weights = np.arange(5_000 if piece else 2_000_000)
        async with server.open_stream("models", "weights", ["site-1"]) as stream:
            await stream.send(Shareable({"w": weights}), timeout=15)
        assert stream.result is not None
        assert stream.result.complete
        assert np.array_equal(arrived[0], weights)


@pytest.mark.parametrize("fault", ["cut_after", "reset_after", "half_close_after"])
async def test_a_broken_link_is_dialled_again_and_the_account_holds(fault: str) -> None:
    async with federated("tcp", *repeat(Faults(up=Fault(**{fault: 700})), 3)) as (server, site, proxy):
        keeper = Keeper().register(site)
        for number in (1, 2, 3):
            await proxy.connection(number - 1)
            await server.wait_for_sites(["site-1"])
            result = await server.stream_objects(
                "models", "weights", {}, ["site-1"], Numbers(60, timeout=2.0), server.new_context()
            )
            check_account(result)
            await proxy.connection(number)  # it was broken, and is dialled again
        await server.wait_for_sites(["site-1"])
        keeper.seen.clear()
        result = await server.stream_objects("models", "weights", {}, ["site-1"], Numbers(3), server.new_context())
        assert result.complete
        assert keeper.seen == [0, 1, 2]


async def test_a_refused_site_gets_in_once_it_may() -> None:
    async with federated("tcp") as (server, _site, proxy):
        first = await proxy.connection(0)
        proxy.refusing = True
        first.cut()
        with anyio.move_on_after(0.1) as waited:
            await proxy.connection(1)
        assert waited.cancelled_caught
        proxy.refusing = False
        await proxy.connection(1)
        await server.wait_for_sites(["site-1"])


async def test_a_target_may_come_later() -> None:
    with socket.socket() as free:  # keeps the port from others, and listens when it is told to
        free.bind(("127.0.0.1", 0))
        free.setblocking(False)
        async with FaultProxy(f"tcp://127.0.0.1:{free.getsockname()[1]}") as proxy:
            with await dialled(proxy.address) as near:
                assert await asyncio.get_running_loop().sock_recv(near, 1) == b""
            free.listen()
            with await dialled(proxy.address):
                far, _ = await asyncio.get_running_loop().sock_accept(free)
                far.close()
