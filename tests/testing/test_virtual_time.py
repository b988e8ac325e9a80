from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import anyio.to_thread
import pytest

from fanstream import StreamEngine
from fanstream.testing import VirtualTimeLoop, asyncio_backend, trio_backend
from fanstream.testing.virtual_time import TICK

pytestmark = pytest.mark.anyio

virtual = pytest.mark.parametrize(
    "anyio_backend",
    [pytest.param(asyncio_backend(), id="asyncio"), pytest.param(trio_backend(), id="trio")],
    indirect=True,
    scope="module",
)
on_asyncio = pytest.mark.parametrize(
    "anyio_backend", [asyncio_backend()], indirect=True, ids=["asyncio"], scope="module"
)


class Stopwatch:
    """How much time has passed, virtual and real."""

    def __init__(self) -> None:
        self._began = (anyio.current_time(), time.monotonic())

    @property
    def virtual(self) -> float:
        return anyio.current_time() - self._began[0]

    @property
    def real(self) -> float:
        return time.monotonic() - self._began[1]


@virtual
async def test_an_hour_passes_at_once_and_to_the_digit() -> None:
    watch = Stopwatch()
    await anyio.sleep(3600)
    assert watch.virtual == pytest.approx(3600, abs=1e-5)
    assert watch.real < 1


@virtual
async def test_timers_come_in_their_order() -> None:
    order: list[float] = []
    watch = Stopwatch()

    async def sleeper(seconds: float) -> None:
        await anyio.sleep(seconds)
        order.append(seconds)

    async with anyio.create_task_group() as tg:
        for seconds in (30, 10, 20, 0.5):
            tg.start_soon(sleeper, seconds)
    assert order == [0.5, 10, 20, 30]
    assert watch.virtual == pytest.approx(30)


@virtual
async def test_time_stands_still_while_anything_is_ready() -> None:
    watch = Stopwatch()
    with anyio.move_on_after(0.001):
        for _ in range(1000):
            await anyio.lowlevel.checkpoint()
    assert watch.virtual == 0


@virtual
async def test_a_deadline_ends_a_wait_for_ever_to_the_digit() -> None:
    watch = Stopwatch()
    with pytest.raises(TimeoutError):
        with anyio.fail_after(86_400 * 3):  # longer than any event loop sleeps at a time
            await anyio.sleep_forever()
    assert watch.virtual == pytest.approx(86_400 * 3)


@virtual
async def test_the_clock_does_not_jump_ahead_of_a_worker_thread() -> None:
    watch = Stopwatch()
    with anyio.fail_after(30):
        await anyio.to_thread.run_sync(time.sleep, 0.1)
    assert watch.virtual < 5
    await anyio.sleep(1000)  # and it jumps again
    assert watch.real < 5


@virtual
async def test_timers_come_in_real_time_while_a_thread_waits_for_one() -> None:
    released = threading.Event()
    watch = Stopwatch()

    async def release() -> None:
        await anyio.sleep(0.05)
        released.set()

    async with anyio.create_task_group() as tg:
        tg.start_soon(release)
        assert await anyio.to_thread.run_sync(released.wait, 10)
    assert 0.05 <= watch.virtual < 5
    assert watch.real >= 0.04


@virtual
async def test_threads_one_after_the_other_and_at_once() -> None:
    watch = Stopwatch()
    with anyio.fail_after(60):
        for _ in range(20):
            await anyio.to_thread.run_sync(time.sleep, 0)
            await anyio.sleep(1)
        async with anyio.create_task_group() as tg:
            for _ in range(10):
                tg.start_soon(anyio.to_thread.run_sync, time.sleep, 0.02)
    assert 20 <= watch.virtual < 25
    await anyio.sleep(1000)
    assert watch.real < 5


@virtual
async def test_the_clock_stands_still_while_code_runs_though_a_thread_is_at_work() -> None:
    released = threading.Event()
    watch = Stopwatch()

    def run_long() -> None:
        time.sleep(0.3)  # as where the machine gives the process no time

    async with anyio.create_task_group() as tg:
        tg.start_soon(anyio.to_thread.run_sync, released.wait, 10)
        await anyio.lowlevel.checkpoint()
        with anyio.move_on_after(0.2) as scope:
            run_long()
            await anyio.lowlevel.checkpoint()
        released.set()
    assert not scope.cancelled_caught
    assert watch.virtual < 0.2


@virtual
async def test_the_clock_does_not_jump_ahead_of_a_thread_that_a_generator_waits_for() -> None:
    async def chunks() -> AsyncGenerator[None, None]:
        await anyio.to_thread.run_sync(time.sleep, 0.1)
        yield

    watch = Stopwatch()
    with anyio.fail_after(30):
        async for _ in chunks():
            pass
    assert watch.virtual < 5


@on_asyncio
@pytest.mark.parametrize("own", [False, True])
async def test_the_clock_does_not_jump_ahead_of_an_executor(own: bool) -> None:
    watch = Stopwatch()
    loop = asyncio.get_running_loop()
    with anyio.fail_after(30):
        if own:
            with ThreadPoolExecutor(1) as pool:
                await loop.run_in_executor(pool, time.sleep, 0.1)
        else:
            await loop.run_in_executor(None, time.sleep, 0.1)
    assert watch.virtual < 5


@on_asyncio
async def test_a_thread_may_wake_the_loop() -> None:
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    await anyio.to_thread.run_sync(loop.call_soon_threadsafe, event.set)
    await event.wait()


def test_closing_the_loop_waits_for_its_executor() -> None:
    async def main() -> None:
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.1)

    anyio.run(main, backend="asyncio", backend_options=asyncio_backend()[1])


@on_asyncio
async def test_real_sockets_are_refused_by_name() -> None:
    near, far = socket.socketpair()
    loop = asyncio.get_running_loop()
    with near, far:
        near.setblocking(False)
        waits: list[Callable[[], Any]] = [
            lambda: loop.add_reader(near, print),
            lambda: loop.add_writer(near, print),
        ]
        for wait in waits:
            with pytest.raises(RuntimeError, match="the virtual clock cannot wait for file descriptor"):
                wait()


@on_asyncio
async def test_time_is_moved_by_hand_too_but_not_back() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    watch = Stopwatch()
    loop.advance(5)
    assert watch.virtual == 5
    with pytest.raises(ValueError, match=r"seconds is -1"):
        loop.advance(-1)


@virtual
async def test_sums_and_differences_of_moments_agree() -> None:
    for seconds in (0.1, 1 / 3, 5, 0.005, 1e-9, 17.7):
        began = anyio.current_time()
        await anyio.sleep(seconds)
        now = anyio.current_time()
        assert now % TICK == 0
        assert now >= began + seconds
        assert now - began >= seconds
        assert now - began < seconds + 2 * TICK


@virtual
async def test_engines_live_for_an_hour() -> None:
    watch = Stopwatch()
    async with (
        StreamEngine("server", listen="memory://hour") as server,
        StreamEngine("site-1", connect="memory://hour") as site,
    ):
        await server.wait_for_sites(["site-1"])
        await anyio.sleep(3600)
        assert (server.sites(), site.sites()) == ({"site-1"}, {"server"})
    assert watch.virtual == pytest.approx(3600, abs=1)
    assert watch.real < 10
