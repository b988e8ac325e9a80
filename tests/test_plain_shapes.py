"""Streams without classes: generators, open streams, decorated functions, incoming streams, plain functions."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import anyio
import pytest

from fanstream import (
    FLContext,
    ObjectProducer,
    Shareable,
    StreamContext,
    StreamOptions,
    StreamResult,
    make_reply,
)
from tests.federation import Keeper, everywhere, federation

pytestmark = [pytest.mark.anyio, everywhere]


class BoomError(Exception):
    pass


async def test_an_async_generator_is_a_producer(transport: str) -> None:
    got: list[dict[str, Shareable]] = []
    closed: list[bool] = []

    async def numbers() -> AsyncGenerator[Any, dict[str, Shareable]]:
        try:
            got.append((yield Shareable({"n": 0})))
            got.append((yield Shareable({"n": 1}), 5))
            got.append((yield Shareable({"n": 2}), timedelta(seconds=5)))
        finally:
            await anyio.lowlevel.checkpoint()
            closed.append(True)

    async with federation(transport, 2) as fed:
        for site in fed.sites.values():
            Keeper().register(site)
        result = await fed.stream(numbers())
        assert result.complete
        assert [[replies[name]["n"] for name in fed.sites] for replies in got] == [[0, 0], [1, 1], [2, 2]]
        assert closed == [True]


async def test_what_a_generator_raises_reaches_the_caller(transport: str) -> None:
    async def failing() -> AsyncGenerator[Any, Any]:
        yield Shareable({"n": 0})
        raise BoomError

    async with federation(transport, 1) as fed:
        Keeper().register(fed.sites["site-1"])
        with pytest.raises(BoomError):
            await fed.stream(failing())


async def test_a_generator_is_closed_on_abort(transport: str) -> None:
    closed: list[bool] = []

    async def endless(signal: Any) -> AsyncGenerator[Any, Any]:
        try:
            yield Shareable({"n": 0})
            signal.trigger()
            await anyio.sleep_forever()
        finally:
            closed.append(True)

    async with federation(transport, 1) as fed:
        Keeper().register(fed.sites["site-1"])
        fl_ctx = fed.server.new_context()
        result = await fed.stream(endless(fl_ctx.get_run_abort_signal()), fl_ctx=fl_ctx)
        assert result.rc == "TASK_ABORTED"
        assert closed == [True]


async def test_a_generator_needs_window_1_and_must_be_called(transport: str) -> None:
    async def numbers() -> AsyncGenerator[Any, Any]:
        yield Shareable({"n": 0})

    async with federation(transport, 1) as fed:
        generator = numbers()
        with pytest.raises(ValueError, match="window"):
            await fed.stream(generator, options=StreamOptions(window=2))
        await generator.aclose()
        with pytest.raises(TypeError, match="call it"):
            await fed.stream(numbers)


async def test_an_open_stream_sends_one_by_one(transport: str) -> None:
    async with federation(transport, 2) as fed:
        for site in fed.sites.values():
            Keeper().register(site)
        async with fed.server.open_stream("models", "weights", list(fed.sites)) as stream:
            for n in range(3):
                replies = await stream.send(Shareable({"n": n}), timeout=5)
                assert {name: reply["n"] for name, reply in replies.items()} == {"site-1": n, "site-2": n}
        assert stream.result is not None
        assert stream.result.complete
        assert stream.result.outcomes == {"replied": 6}


async def test_many_tasks_send_on_one_open_stream(transport: str) -> None:
    async with federation(transport, 1) as fed:
        keeper = Keeper().register(fed.sites["site-1"])
        answers: dict[int, int] = {}
        async with fed.server.open_stream("models", "weights", ["site-1"]) as stream:

            async def send(n: int) -> None:
                answers[n] = (await stream.send(Shareable({"n": n})))["site-1"]["n"]

            async with anyio.create_task_group() as tg:
                for n in range(20):
                    tg.start_soon(send, n)
        assert answers == {n: n for n in range(20)}
        assert sorted(keeper.seen) == list(range(20))


async def test_replies_are_offered_as_they_arrive(transport: str) -> None:
    async with federation(transport, 2) as fed:
        gate = anyio.Event()

        async def wait(_n: int) -> None:
            await gate.wait()

        Keeper(wait).register(fed.sites["site-1"])
        Keeper().register(fed.sites["site-2"])
        order: list[str] = []
        async with fed.server.open_stream("models", "weights", list(fed.sites)) as stream:
            async for site, reply in stream.replies(Shareable({"n": 0}), 10):
                assert reply.get_return_code() == "OK"
                order.append(site)
                gate.set()
        assert order == ["site-2", "site-1"]


async def test_an_exception_in_the_block_aborts_the_stream(transport: str) -> None:
    async with federation(transport, 1) as fed:
        keeper = Keeper().register(fed.sites["site-1"])

        async def fail() -> None:
            async with fed.server.open_stream("models", "weights", ["site-1"]) as stream:
                await stream.send(Shareable({"n": 0}))
                raise BoomError

        with pytest.raises(BoomError):
            await fail()
        await fed.settle()
        assert keeper.rcs == ["TASK_ABORTED"]


async def test_a_signal_aborts_an_open_stream_where_it_waits(transport: str) -> None:
    async with federation(transport, 1) as fed:
        keeper = Keeper()

        async def block(_n: int) -> None:
            await keeper.block()

        keeper.do = block
        keeper.register(fed.sites["site-1"])
        fl_ctx = fed.server.new_context()

        async def trigger() -> None:
            await keeper.blocked.wait()
            fl_ctx.get_run_abort_signal().trigger()

        async with anyio.create_task_group() as tg:
            tg.start_soon(trigger)
            async with fed.server.open_stream("models", "weights", ["site-1"], fl_ctx) as stream:
                await stream.send(Shareable({"n": 0}), 30)
        assert stream.result is not None
        assert stream.result.rc == "TASK_ABORTED"


async def test_wrong_objects_and_timeouts_are_refused_before_sending(transport: str) -> None:
    async with federation(transport, 1) as fed:
        keeper = Keeper().register(fed.sites["site-1"])
        async with fed.server.open_stream("models", "weights", ["site-1"]) as stream:
            with pytest.raises(TypeError):
                await stream.send({"n": 0})  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="timeout"):
                await stream.send(Shareable({"n": 0}), -1)
            assert (await stream.send(Shareable({"n": 7})))["site-1"]["n"] == 7
        assert keeper.seen == [7]


async def test_a_site_that_has_finished_gets_nothing_and_replies_are_empty(transport: str) -> None:
    async with federation(transport, 1) as fed:

        async def enough(n: int) -> Any:
            return False, make_reply("OK")

        Keeper(enough).register(fed.sites["site-1"])
        async with fed.server.open_stream("models", "weights", ["site-1"]) as stream:
            assert list(await stream.send(Shareable({"n": 0}))) == ["site-1"]
            assert await stream.send(Shareable({"n": 1})) == {}


async def test_decorated_functions_are_consumers(transport: str) -> None:
    threads: list[int] = []
    async with federation(transport, 3) as fed:

        @fed.sites["site-1"].consumer("models", "weights")
        async def takes(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
            assert shareable["n"] == 1

        @fed.sites["site-2"].consumer("models", "weights")
        def plain(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Shareable:
            threads.append(threading.get_ident())
            return make_reply("OK", {"plain": True})

        @fed.sites["site-3"].consumer("models", "weights")
        async def once(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[bool, Shareable]:
            return False, make_reply("EMPTY_RESULT")

        async with fed.server.open_stream("models", "weights", list(fed.sites)) as stream:
            replies = await stream.send(Shareable({"n": 1}))
        assert {name: reply.get_return_code() for name, reply in replies.items()} == {
            "site-1": "OK",
            "site-2": "OK",
            "site-3": "EMPTY_RESULT",
        }
        assert replies["site-2"].get_header("plain") is True
        assert threading.get_ident() not in threads


async def test_incoming_streams_are_iterated_over(transport: str) -> None:
    async with federation(transport, 1) as fed:
        seen: list[int] = []
        rcs: list[str | None] = []
        openers: list[str] = []

        async def receive() -> None:
            streams = fed.sites["site-1"].incoming("models", "weights")
            async for stream in streams:
                openers.append(stream.opener)
                async for obj in stream:
                    seen.append(obj["n"])
                    if obj["n"] == 1:
                        stream.reply(make_reply("OK", {"own": "answer"}))
                rcs.append(stream.rc)
                break
            await streams.aclose()

        answers: list[Any] = []
        async with anyio.create_task_group() as tg:
            tg.start_soon(receive)
            async with fed.server.open_stream("models", "weights", ["site-1"]) as stream:
                for n in range(3):
                    replies = await stream.send(Shareable({"n": n}), 5)
                    answers.append(replies["site-1"].get_header("own"))
        assert (seen, rcs, openers) == ([0, 1, 2], ["OK"], ["server"])
        assert answers == [None, "answer", None]
        assert stream.result is not None
        assert stream.result.complete


async def test_an_incoming_stream_ends_at_the_receivers_wish(transport: str) -> None:
    async with federation(transport, 1) as fed:
        results: list[StreamResult | None] = []

        async def send() -> None:
            async with fed.server.open_stream("models", "weights", ["site-1"]) as stream:
                await stream.send(Shareable({"n": 0}), 5)
                assert await stream.send(Shareable({"n": 1}), 5) == {}
            results.append(stream.result)

        async with anyio.create_task_group() as tg:
            streams = fed.sites["site-1"].incoming("models", "weights")
            tg.start_soon(send)
            async for stream in streams:
                async for _obj in stream:
                    stream.reply(make_reply("OK"), go_on=False)
                break
        assert results[0] is not None
        assert results[0].rc == "OK"


@pytest.mark.parametrize("window", [1, 4])
async def test_a_synchronous_producer_runs_in_a_worker_thread(transport: str, window: int) -> None:
    threads: set[int] = set()
    replied: list[int] = []

    class Plain(ObjectProducer):
        made = 0

        def produce(  # type: ignore[override]
            self, stream_ctx: StreamContext, fl_ctx: FLContext
        ) -> tuple[Shareable | None, float]:
            threads.add(threading.get_ident())
            self.made += 1
            return (Shareable({"n": self.made - 1}), 5) if self.made <= 4 else (None, 0)

        def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
            threads.add(threading.get_ident())
            replied.append(replies["site-1"]["n"])

    async with federation(transport, 1) as fed:
        Keeper().register(fed.sites["site-1"])
        result = await fed.stream(Plain(), options=StreamOptions(window=window))
        assert result.complete
        assert replied == [0, 1, 2, 3]
        assert threads
        assert threading.get_ident() not in threads


async def test_what_a_synchronous_producer_raises_reaches_the_caller(transport: str) -> None:
    class Failing:
        def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
            raise BoomError

        def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
            return None

    async with federation(transport, 1) as fed:
        Keeper().register(fed.sites["site-1"])
        for window in (1, 2):
            with pytest.raises(BoomError):
                await fed.stream(Failing(), options=StreamOptions(window=window))


async def test_a_generator_sees_the_last_replies_when_every_site_has_finished(transport: str) -> None:
    async with federation(transport, 1) as fed:

        async def enough(n: int) -> Any:
            return False, Shareable({"last": n})

        Keeper(enough).register(fed.sites["site-1"])
        seen: list[Any] = []

        async def numbers() -> AsyncGenerator[Shareable, dict[str, Shareable]]:
            replies = yield Shareable({"n": 7})
            seen.append(replies["site-1"]["last"])
            yield Shareable({"n": 8})
            seen.append("never")

        result = await fed.stream(numbers(), ["site-1"])
        assert (seen, result.objects, result.rc) == ([7], 1, "OK")
