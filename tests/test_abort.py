"""Abort as cancellation: signals, cancelled callers, and nothing left behind wherever they strike."""

from __future__ import annotations

import threading
import time
from collections.abc import Coroutine, Generator
from typing import Any

import anyio
import pytest

from fanstream import (
    AbortSignal,
    ConsumerFactory,
    FLContext,
    ObjectConsumer,
    Shareable,
    StreamContext,
    StreamOptions,
    StreamResult,
    make_reply,
)
from tests.federation import Blocked, Keeper, Numbers, everywhere, federation, hubs, until

pytestmark = pytest.mark.anyio

PROMISED = 0.1  # seconds, plus a round trip
SLACK = 0.3  # for a busy machine


class BlockedLater(Blocked):
    """Produces one object that nobody answers, and then nothing, for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, float]:
        self.made += 1
        if self.made == 1:
            return Shareable({"n": 0}), 60
        return await super().produce(stream_ctx, fl_ctx)


def blocking_keeper() -> Keeper:
    keeper = Keeper()

    async def block(_n: int) -> None:
        await keeper.block()

    keeper.do = block
    return keeper


@everywhere
@pytest.mark.parametrize("how", ["run signal", "from a thread", "engine's signal", "cancellation"])
async def test_blocked_producers_and_consumers_are_cancelled_in_time(transport: str, how: str) -> None:
    async with federation(transport, 2) as fed:
        keepers = [blocking_keeper().register(site) for site in fed.sites.values()]
        producer = BlockedLater()
        fl_ctx = fed.server.new_context()
        results: list[StreamResult] = []
        scope = anyio.CancelScope()
        ended_at = 0.0

        async def stream() -> None:
            nonlocal ended_at
            with scope:
                results.append(await fed.stream(producer, fl_ctx=fl_ctx, options=StreamOptions(window=2)))
            ended_at = anyio.current_time()

        async with anyio.create_task_group() as tg:
            tg.start_soon(stream)
            await producer.started.wait()
            for keeper in keepers:
                await keeper.blocked.wait()
            asked = anyio.current_time()
            if how == "cancellation":
                scope.cancel()
            elif how == "from a thread":
                threading.Thread(target=fl_ctx.get_run_abort_signal().trigger, args=("enough",)).start()
            elif how == "run signal":
                fl_ctx.get_run_abort_signal().trigger("enough")
            else:
                fed.server.run_abort_signal.trigger("enough")
        await until(lambda: all(keeper.rcs for keeper in keepers))
        assert producer.cancelled
        assert ended_at - asked < PROMISED + SLACK
        for keeper in keepers:
            assert keeper.ended_at is not None
            assert keeper.ended_at - asked < PROMISED + SLACK
            assert keeper.log == ["get_consumer", "consume", "consumed", "finalize", "done_cb", "return_consumer"]
            assert keeper.rcs == ["TASK_ABORTED"]
        if how == "cancellation":
            assert scope.cancelled_caught
            assert results == []
        else:
            assert (results[0].rc, results[0].value, results[0].complete) == ("TASK_ABORTED", None, False)
            assert results[0].outcomes == {"aborted": 2}


@everywhere
async def test_a_signal_triggered_before_the_stream_aborts_it_at_once(transport: str) -> None:
    async with federation(transport, 1) as fed:
        Keeper().register(fed.sites["site-1"])
        fl_ctx = fed.server.new_context()
        fl_ctx.get_run_abort_signal().trigger("before")
        result = await fed.stream(Numbers(3), fl_ctx=fl_ctx)
        assert result.rc == "TASK_ABORTED"
        assert not result.complete


@everywhere
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("where", ["produce", "process_replies"])
async def test_a_signal_triggered_by_the_producer_itself(transport: str, where: str, window: int) -> None:
    class Suicidal(Numbers):
        async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, Any]:
            if where == "produce" and self.made == 1:
                fl_ctx.get_run_abort_signal().trigger("no more")
            return await super().produce(stream_ctx, fl_ctx)

        async def process_replies(
            self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext
        ) -> Any:
            if where == "process_replies":
                fl_ctx.get_run_abort_signal().trigger("no more")
                return "a value that comes too late"
            return None

    async with federation(transport, 1) as fed:
        Keeper().register(fed.sites["site-1"])
        result = await fed.stream(Suicidal(5), options=StreamOptions(window=window))
        assert (result.rc, result.value) == ("TASK_ABORTED", None)


@everywhere
async def test_a_signal_ends_the_wait_for_a_site(transport: str) -> None:
    async with federation(transport, 0) as fed:
        fl_ctx = fed.server.new_context()

        async def trigger() -> None:
            await until(lambda: bool(fed.server._outgoing))
            fl_ctx.get_run_abort_signal().trigger()

        async with anyio.create_task_group() as tg:
            tg.start_soon(trigger)
            options = StreamOptions(connect_grace=30)
            result = await fed.stream(Numbers(1), ["site-1"], fl_ctx=fl_ctx, options=options)
        assert result.rc == "TASK_ABORTED"


@everywhere
async def test_one_streams_abort_leaves_others_alone(transport: str) -> None:
    async with federation(transport, 1) as fed:
        keeper = blocking_keeper().register(fed.sites["site-1"], "blocked")
        Keeper().register(fed.sites["site-1"])
        doomed = fed.server.new_context()
        results: list[StreamResult] = []

        async def blocked() -> None:
            results.append(
                await fed.server.stream_objects("models", "blocked", {}, ["site-1"], Numbers(1, timeout=60), doomed)
            )

        def judge(seq: int, replies: dict[str, Shareable]) -> None:
            if seq == 5:
                doomed.get_run_abort_signal().trigger()

        async with anyio.create_task_group() as tg:
            tg.start_soon(blocked)
            await keeper.blocked.wait()
            assert (await fed.stream(Numbers(20, judge=judge))).complete
        assert results[0].rc == "TASK_ABORTED"


@everywhere
async def test_a_receivers_run_signal_ends_its_incoming_streams(transport: str) -> None:
    async with federation(transport, 2) as fed:
        keeper = blocking_keeper().register(fed.sites["site-1"])
        Keeper().register(fed.sites["site-2"])

        async def trigger() -> None:
            await keeper.blocked.wait()
            fed.sites["site-1"].run_abort_signal.trigger("this site's run is over")

        async with anyio.create_task_group() as tg:
            tg.start_soon(trigger)
            producer = Numbers(3, timeout=30)
            result = await fed.stream(producer)
        assert keeper.rcs == ["TASK_ABORTED"]
        assert result.sites["site-1"].rc == "TASK_ABORTED"
        assert producer.rcs("site-2") == ["OK"] * 3


@everywhere
async def test_a_synchronous_consumer_polls_the_signal_and_is_never_abandoned(transport: str) -> None:
    entered = threading.Event()
    log: list[str] = []

    class Polling(ObjectConsumer):
        def consume(  # type: ignore[override]
            self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
        ) -> tuple[bool, Shareable]:
            entered.set()
            deadline = time.monotonic() + 5
            while not fl_ctx.get_run_abort_signal().triggered and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(0.2)
            log.append("returned")
            return True, make_reply("OK")

        async def finalize(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
            log.append(f"finalize {stream_ctx['__RC__']}")

    class Factory(ConsumerFactory):
        async def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
            return Polling()

    async with federation(transport, 1) as fed:
        fed.sites["site-1"].register_stream_processing("models", "weights", Factory())
        fl_ctx = fed.server.new_context()
        asked = 0.0

        async def trigger() -> None:
            nonlocal asked
            await until(entered.is_set)
            asked = anyio.current_time()
            fl_ctx.get_run_abort_signal().trigger()

        async with anyio.create_task_group() as tg:
            tg.start_soon(trigger)
            result = await fed.stream(Numbers(1, timeout=30), fl_ctx=fl_ctx)
            assert anyio.current_time() - asked < PROMISED + SLACK, "told that the site is ending"
        assert result.rc == "TASK_ABORTED"
        await until(lambda: len(log) == 2)
        assert log == ["returned", "finalize TASK_ABORTED"]


class CancelAt:
    """Awaits a coroutine, and cancels a scope when it suspends for the n-th time."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], n: int, scope: anyio.CancelScope) -> None:
        self._coroutine = coroutine
        self._n = n
        self._scope = scope
        self.suspended = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Any = self._coroutine.send
        given: Any = None
        while True:
            try:
                asked = step(given)
            except StopIteration as done:
                return done.value
            self.suspended += 1
            if self.suspended == self._n:
                self._scope.cancel()
            try:
                given = yield asked
                step = self._coroutine.send
            except BaseException as exc:  # noqa: BLE001 - handed to the coroutine
                step, given = self._coroutine.throw, exc


@everywhere
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("ending", ["drain", "withdraw", "error"])
async def test_cancelled_at_every_suspension_point_nothing_is_left(transport: str, window: int, ending: str) -> None:
    async with federation(transport, 2, seconds=50) as fed:
        keepers = [Keeper().register(site) for site in fed.sites.values()]
        struck = 0
        for n in range(1, 200):

            def judge(seq: int, replies: dict[str, Shareable]) -> Any:
                if seq == 1 and ending == "error":
                    raise LookupError
                return "enough" if seq == 1 and ending == "withdraw" else None

            with anyio.CancelScope() as scope:
                coroutine = fed.stream(Numbers(3, judge=judge), options=StreamOptions(window=window))
                run = CancelAt(coroutine, n, scope)
                try:
                    await run
                except LookupError:
                    assert ending == "error"
            struck += scope.cancelled_caught
            await fed.settle()
            for keeper in keepers:
                ends = [keeper.log.count(step) for step in ("get_consumer", "finalize", "done_cb", "return_consumer")]
                assert len(set(ends)) == 1, f"at suspension {n}: {keeper.log}"
                assert keeper.log.count("consume") == keeper.log.count("consumed")
            if run.suspended < n:
                break
        else:
            pytest.fail("the stream never came to its end")
        assert struck >= 1
        keepers[0].seen.clear()
        assert (await fed.stream(Numbers(2))).complete, "and the engines still work"
        assert keepers[0].seen == [0, 1]


@hubs
async def test_cancelled_through_a_hub_nothing_is_left(transport: str) -> None:
    async with federation(transport, 3, seconds=50) as fed:
        site = fed.sites["site-1"]
        for name in ("site-2", "site-3"):
            Keeper().register(fed.sites[name])
        for n in range(1, 200):
            with anyio.CancelScope() as scope:
                run = CancelAt(fed.stream(Numbers(2), ["site-2", "site-3"], opener=site), n, scope)
                await run
            await fed.settle()
            if run.suspended < n:
                break


@everywhere
async def test_signals_form_a_tree(transport: str) -> None:
    run = AbortSignal()
    stream, other = run.child(), run.child()
    stream.trigger("mine")
    assert (stream.triggered, run.triggered, other.triggered) == (True, False, False)
    run.trigger("all")
    run.trigger("again")
    assert (run.reason, other.reason, stream.reason) == ("all", "all", "mine")
    assert run.child().triggered
    with anyio.fail_after(1):
        await other.wait()
        with run.scope() as scope:
            await anyio.sleep_forever()
    assert scope.cancelled_caught
