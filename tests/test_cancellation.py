"""Every call that waits is cancelled at each of its suspensions in turn: nothing is left, and the next call works.

``test_abort.py`` does the same to ``stream_objects``, in more ways, and ``streamers/test_file.py`` to those who receive
a file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import sniffio

from fanstream import AbortSignal, EngineSettings, Shareable, StreamEngine, StreamOptions
from fanstream.streamers import register_containers, register_files, stream_container, stream_file
from tests.federation import Federation, Keeper, Numbers, everywhere, federation, on_memory, over_sockets, until
from tests.striking import Strike

pytestmark = pytest.mark.anyio

SETTINGS = EngineSettings(retry_first=0.01, retry_max=0.02, registration_grace=0)
SITES = ["site-1", "site-2"]


def tasks() -> int:
    """Count the tasks of the running loop."""
    if sniffio.current_async_library() == "asyncio":
        return len(asyncio.all_tasks())
    import trio.lowlevel

    return trio.lowlevel.current_statistics().tasks_living


# --- what is cancelled: a coroutine that ends by itself if it is left alone ---


async def open_a_stream(fed: Federation) -> None:
    async with fed.server.open_stream("models", "weights", SITES) as stream:
        for n in range(2):
            assert len(await stream.send(Shareable({"n": n}), timeout=5)) == 2


async def send_side_by_side(fed: Federation) -> None:
    async with (
        fed.server.open_stream("models", "weights", SITES, options=StreamOptions(window=2)) as stream,
        anyio.create_task_group() as tg,
    ):
        for n in range(4):
            tg.start_soon(stream.send, Shareable({"n": n}), 5)


async def iterate_over_replies(fed: Federation) -> None:
    async with fed.server.open_stream("models", "weights", SITES) as stream:
        assert {site async for site, _reply in stream.replies(Shareable({"n": 0}), timeout=5)} == set(SITES)


async def wait_for_buffers(fed: Federation) -> None:
    async with fed.server.open_stream("models", "weights", SITES) as stream, anyio.create_task_group() as tg:
        tg.start_soon(stream.send, Shareable({"n": 0, "data": b"x" * 100_000}), 5)
        await anyio.lowlevel.checkpoint()
        await stream.released(0)


async def produce_from_a_generator(fed: Federation) -> None:
    async def numbers() -> Any:
        for n in range(2):
            yield Shareable({"n": n}), 5.0

    assert (await fed.stream(numbers())).complete


async def wait_for_a_signal(fed: Federation) -> None:
    signal = AbortSignal()
    async with anyio.create_task_group() as tg:
        tg.start_soon(signal.child().wait)
        await anyio.lowlevel.checkpoint()
        signal.trigger("enough")


async def wait_for_a_site_that_comes(fed: Federation) -> None:
    waited_for = anyio.Event()

    async def come() -> None:
        async with StreamEngine("extra", connect=fed.server.addresses or None, settings=SETTINGS):
            await waited_for.wait()

    async with anyio.create_task_group() as tg:
        tg.start_soon(come)
        await fed.server.wait_for_sites(["extra"])
        waited_for.set()


async def enter_and_leave_an_engine(fed: Federation) -> None:
    async with StreamEngine("extra", connect=fed.server.addresses or None, settings=SETTINGS) as extra:
        await extra.wait_for_sites(["server"])


async def leave_a_hub(fed: Federation) -> None:
    async with (
        StreamEngine("extra", listen="memory://extra") as extra,
        StreamEngine("other", connect="memory://extra", settings=SETTINGS),
    ):
        await extra.wait_for_sites(["other"])


async def shut_down_while_streaming(fed: Federation) -> None:
    keeper = Keeper()
    keeper.do = lambda _n: keeper.block()
    keeper.register(fed.server, "blocked")
    async with StreamEngine("extra", connect=fed.server.addresses or None, settings=SETTINGS) as extra:
        await extra.wait_for_sites(["server"])
        async with anyio.create_task_group() as tg:
            tg.start_soon(extra.stream_objects, "models", "blocked", {}, ["server"], Numbers(2), extra.new_context())
            await keeper.blocked.wait()
            await extra.shutdown_streamer()


async def iterate_over_incoming_streams(fed: Federation) -> None:
    async with anyio.create_task_group() as tg:
        streams = fed.sites["site-1"].incoming("models", "asked")
        tg.start_soon(
            fed.server.stream_objects, "models", "asked", {}, ["site-1"], Numbers(2), fed.server.new_context()
        )
        try:
            async for stream in streams:
                assert [obj["n"] async for obj in stream] == [0, 1]
                break
        finally:
            tg.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await streams.aclose()


async def stream_a_container(fed: Federation) -> None:
    result, _ = await stream_container(
        fed.server, "models", "containers", ["site-1"], {"a": 1, "b": [2]}, fed.server.new_context()
    )
    assert result.complete


Call = Callable[[Federation], Awaitable[None]]
CALLS: list[Call] = [
    open_a_stream,
    send_side_by_side,
    iterate_over_replies,
    wait_for_buffers,
    produce_from_a_generator,
    wait_for_a_signal,
    wait_for_a_site_that_comes,
    enter_and_leave_an_engine,
    shut_down_while_streaming,
    iterate_over_incoming_streams,
    stream_a_container,
]
MOST = 400  # suspensions of one call


async def strike_everywhere(fed: Federation, call: Call) -> int:
    """Cancel *call* at each suspension in turn; return how many there were."""
    await call(fed)  # once unharmed: engines without an address dial at their first stream
    await fed.settle()
    before, links = tasks(), len(fed.server._links)
    for n in range(1, MOST):
        with anyio.CancelScope() as scope:
            strike = Strike(n, scope)
            coroutine: Any = call(fed)
            await strike.watch(coroutine)
        try:
            await until(lambda: len(fed.server._links) == links and tasks() == before)
        except TimeoutError:
            pytest.fail(f"at suspension {n}: {tasks()} tasks of {before}, {len(fed.server._links)} links of {links}")
        await fed.settle()
        if strike.struck_at is None:
            return n - 1
        assert strike.suspended >= n
    pytest.fail(f"more than {MOST} suspensions")


@everywhere
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
async def test_cancelled_at_every_suspension_nothing_is_left(transport: str, call: Call) -> None:
    async with federation(transport, 2, seconds=50, settings=SETTINGS) as fed:
        for site in fed.sites.values():
            Keeper().register(site)
            register_containers(site, "models", "containers", lambda *_: None)
        assert await strike_everywhere(fed, call) >= 1
        await call(fed)
        assert (await fed.stream(Numbers(2))).complete


@on_memory
async def test_a_hub_is_left_at_every_suspension(transport: str) -> None:
    async with federation(transport, 0, settings=SETTINGS) as fed:
        assert await strike_everywhere(fed, leave_a_hub) >= 5


@over_sockets  # a virtual clock does not see the worker thread behind a call that is watched
async def test_a_file_is_cancelled_at_every_suspension(transport: str, tmp_path: Path) -> None:
    source, inbox = tmp_path / "source", tmp_path / "in"
    source.write_bytes(bytes(3000))
    inbox.mkdir()

    async def stream(fed: Federation) -> None:
        result, _ = await stream_file(
            fed.server, "models", "files", ["site-1"], source, fed.server.new_context(), chunk_size=1000
        )
        assert result.complete

    async with federation(transport, 2, seconds=50, settings=SETTINGS) as fed:
        register_files(fed.sites["site-1"], "models", "files", inbox)
        assert await strike_everywhere(fed, stream) >= 5
    assert not list(inbox.glob("*.part"))
