"""Abort as cancellation: signals, cancelled callers, and nothing left behind wherever they strike."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import anyio.to_thread
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
from fanstream.outgoing.producing import ProducerRun
from fanstream.testing import FaultyNetwork
from tests.federation import (
    Blocked,
    Federation,
    Keeper,
    Numbers,
    delayed,
    everywhere,
    federation,
    hubs,
    is_real,
    over_sockets,
    until,
    within_the_process,
)
from tests.striking import Strike

pytestmark = pytest.mark.anyio

PROMISED = 0.1  # seconds, beside the time under way
DELAY = 0.04  # seconds each way, on links within the process
SLACK = 2.0  # for a busy machine, where the clock is real


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


class Aborting:
    """Two blocked sites and a blocked producer, aborted in one of several ways; and when each heard of it."""

    def __init__(self, fed: Federation, how: str) -> None:
        self.fed = fed
        self.how = how
        self.keepers = [blocking_keeper().register(site) for site in fed.sites.values()]
        self.producer = BlockedLater()
        self.fl_ctx = fed.server.new_context()
        self.results: list[StreamResult] = []
        self.scope = anyio.CancelScope()
        self.opener_took = 0.0
        self.sites_took: list[float] = []

    async def run(self) -> None:
        ended_at = 0.0

        async def stream() -> None:
            nonlocal ended_at
            with self.scope:
                options = StreamOptions(window=2)
                self.results.append(await self.fed.stream(self.producer, fl_ctx=self.fl_ctx, options=options))
            ended_at = anyio.current_time()

        async with anyio.create_task_group() as tg:
            tg.start_soon(stream)
            await self.producer.started.wait()
            for keeper in self.keepers:
                await keeper.blocked.wait()
            asked = anyio.current_time()
            await self._abort()
        await until(lambda: all(keeper.rcs for keeper in self.keepers))
        self.opener_took = ended_at - asked
        self.sites_took = [keeper.ended_at - asked for keeper in self.keepers if keeper.ended_at is not None]

    async def _abort(self) -> None:
        if self.how == "cancellation":
            self.scope.cancel()
        elif self.how == "from a thread":
            await anyio.to_thread.run_sync(self.fl_ctx.get_run_abort_signal().trigger, "enough")
        elif self.how == "run signal":
            self.fl_ctx.get_run_abort_signal().trigger("enough")
        else:
            self.fed.server.run_abort_signal.trigger("enough")

    def check(self) -> None:
        assert self.producer.cancelled
        for keeper in self.keepers:
            assert keeper.log == ["get_consumer", "consume", "consumed", "finalize", "done_cb", "return_consumer"]
            assert keeper.rcs == ["TASK_ABORTED"]
        if self.how == "cancellation":
            assert self.scope.cancelled_caught
            assert self.results == []
        else:
            (result,) = self.results
            assert (result.rc, result.value, result.complete) == ("TASK_ABORTED", None, False)
            assert result.outcomes == {"aborted": 2}


@within_the_process
@pytest.mark.parametrize("how", ["run signal", "from a thread", "engine's signal", "cancellation"])
async def test_blocked_producers_and_consumers_are_cancelled_when_the_abort_arrives(transport: str, how: str) -> None:
    with FaultyNetwork(delayed(DELAY)):
        async with federation(transport, 2) as fed:
            aborting = Aborting(fed, how)
            await aborting.run()
            aborting.check()
            # The clock stands still but for the way: nothing was waited for. A thread is waited for in real time.
            spare = SLACK if how == "from a thread" else 1e-5
            assert aborting.sites_took == [pytest.approx(DELAY, abs=spare)] * 2
            assert aborting.opener_took == pytest.approx(2 * DELAY, abs=spare)


@over_sockets
@pytest.mark.parametrize("how", ["run signal", "from a thread", "engine's signal", "cancellation"])
async def test_blocked_producers_and_consumers_are_cancelled_in_time(transport: str, how: str) -> None:
    async with federation(transport, 2) as fed:
        aborting = Aborting(fed, how)
        await aborting.run()
        aborting.check()
        assert max(aborting.opener_took, *aborting.sites_took) < PROMISED + SLACK


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


class Pausing(Numbers):
    """Suspends in each of its methods, and ends its stream at the second object if it is told to."""

    def __init__(self, ending: str) -> None:
        super().__init__(3, judge=lambda seq, replies: self._end())
        self._ending = ending

    async def _end(self) -> Any:
        await anyio.lowlevel.checkpoint()
        if len(self.replies) == 2:
            if self._ending == "error":
                raise LookupError
            if self._ending == "withdraw":
                return "enough"
        return None

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, Any]:
        await anyio.lowlevel.checkpoint()
        return await super().produce(stream_ctx, fl_ctx)


async def cancel_everywhere(
    transport: str, fed: Federation, ending: str, stream: Callable[[Strike], Awaitable[Any]]
) -> None:
    """Have *stream* struck at each of its suspensions in turn; nothing may be left after any of them."""
    keepers = [Keeper().register(site) for site in fed.sites.values()]
    await fed.stream(Numbers(0))  # engines without an address dial at their first stream: test_links.py cancels that
    caught = 0
    for n in range(1, 400):
        with anyio.CancelScope() as scope:
            strike = Strike(n, scope)
            try:
                await stream(strike)
            except LookupError:
                assert ending == "error"
        if strike.struck_at is not None:
            took = anyio.current_time() - strike.struck_at
            assert took < PROMISED + (SLACK if is_real(transport) else 0), f"at suspension {n}"
        caught += scope.cancelled_caught
        await fed.settle()
        for keeper in keepers:
            ends = [keeper.log.count(step) for step in ("get_consumer", "finalize", "done_cb", "return_consumer")]
            assert len(set(ends)) == 1, f"at suspension {n}: {keeper.log}"
            assert keeper.log.count("consume") == keeper.log.count("consumed")
        if strike.struck_at is None:
            break
    else:
        pytest.fail("the stream never came to its end")
    assert caught >= 1
    keepers[0].seen.clear()
    assert (await fed.stream(Numbers(2))).complete, "and the engines still work"
    assert keepers[0].seen == [0, 1]


@everywhere
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("ending", ["drain", "withdraw", "error"])
async def test_cancelled_at_every_suspension_point_nothing_is_left(transport: str, window: int, ending: str) -> None:
    async with federation(transport, 2, seconds=50) as fed:

        async def stream(strike: Strike) -> None:
            await strike.watch(fed.stream(Pausing(ending), options=StreamOptions(window=window)))

        await cancel_everywhere(transport, fed, ending, stream)


@everywhere
@pytest.mark.interpreted
@pytest.mark.parametrize("task", ["_produce_one", "_judge_one"])
@pytest.mark.parametrize("ending", ["drain", "withdraw", "error"])
async def test_cancelled_at_every_suspension_of_either_task_nothing_is_left(
    transport: str, task: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[[ProducerRun], Coroutine[Any, Any, bool]] = getattr(ProducerRun, task)
    async with federation(transport, 2, seconds=50) as fed:

        async def stream(strike: Strike) -> None:
            async def watched(run: ProducerRun) -> bool:
                return await strike.watch(original(run))  # type: ignore[no-any-return]

            with monkeypatch.context() as patch:
                patch.setattr(ProducerRun, task, watched)
                await fed.stream(Pausing(ending), options=StreamOptions(window=2))

        await cancel_everywhere(transport, fed, ending, stream)


@hubs
async def test_cancelled_through_a_hub_nothing_is_left(transport: str) -> None:
    async with federation(transport, 3, seconds=50) as fed:
        site = fed.sites["site-1"]
        for name in ("site-2", "site-3"):
            Keeper().register(fed.sites[name])
        for n in range(1, 200):
            with anyio.CancelScope() as scope:
                strike = Strike(n, scope)
                await strike.watch(fed.stream(Numbers(2), ["site-2", "site-3"], opener=site))
            await fed.settle()
            if strike.struck_at is None:
                break
        else:
            pytest.fail("the stream never came to its end")


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
    with anyio.fail_after(10):
        await other.wait()
        with run.scope() as scope:
            await anyio.sleep_forever()
    assert scope.cancelled_caught
