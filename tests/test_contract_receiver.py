"""The contract of design.md, section 4, at the receiving sites."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest

from fanstream import (
    ConsumerFactory,
    EngineSettings,
    FLContext,
    ObjectConsumer,
    ReturnCode,
    Shareable,
    StreamContext,
    StreamContextKey,
    StreamEngine,
    StreamOptions,
    StreamResult,
    make_reply,
)
from fanstream.errors import BrokenError, ClosedError
from tests.federation import (
    QUICK,
    Blocked,
    Keeper,
    Numbers,
    check_elapsed,
    everywhere,
    federation,
    hubs,
    is_real,
    long_or_short,
    until,
)

pytestmark = pytest.mark.anyio

WHOLE_LIFE = ["get_consumer", "consume", "consumed", "finalize", "done_cb", "return_consumer"]


class BoomError(Exception):
    pass


@everywhere
async def test_one_consumer_for_each_stream_consumes_in_order(transport: str) -> None:
    async with federation(transport, 1) as fed:
        keeper = Keeper().register(fed.sites["site-1"])
        await fed.stream(Numbers(20), options=StreamOptions(window=8))
        await fed.stream(Numbers(2))
        assert keeper.seen == [*range(20), 0, 1]
        assert keeper.log.count("get_consumer") == 2
        moments = [entry for entry in keeper.log if entry.startswith("consume")]
        assert moments == ["consume", "consumed"] * 22, "one at a time"


@everywhere
async def test_the_end_comes_once_in_order_with_one_fl_ctx(transport: str) -> None:
    async with federation(transport, 1) as fed:
        keeper = Keeper().register(fed.sites["site-1"], label="x")
        fl_ctx = fed.server.new_context("job-7")
        fl_ctx.set_prop("round", 3, private=False)
        fl_ctx.set_prop("secret", 4, private=True)
        result = await fed.stream(Numbers(1), fl_ctx=fl_ctx, stream_ctx={"model": "m"})
        assert keeper.log == WHOLE_LIFE, "all of it before stream_objects returns"
        assert keeper.rcs == ["OK"]
        assert keeper.kwargs == [{"label": "x"}]
        assert len({id(context) for context in keeper.contexts}) == 1
        context = keeper.contexts[0]
        peer = context.get_peer_context()
        assert peer is not None
        assert (context.get_identity_name(), peer.get_identity_name()) == ("site-1", "server")
        assert (context.get_job_id(), peer.get_job_id()) == ("job-7", "job-7")
        assert (peer.get_prop("round"), peer.get_prop("secret")) == (3, None)
        assert keeper.stream_ctxs[0]["model"] == "m"
        assert keeper.stream_ctxs[0][StreamContextKey.CHANNEL] == "models"
        assert keeper.stream_ctxs[0][StreamContextKey.TOPIC] == "weights"
        assert result.complete


@everywhere
async def test_other_streams_are_not_held_up(transport: str) -> None:
    async with federation(transport, 1) as fed:
        gate = anyio.Event()

        class SlowToStart(Keeper):
            async def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
                await gate.wait()
                return await super().get_consumer(stream_ctx, fl_ctx)

        SlowToStart().register(fed.sites["site-1"])
        Keeper().register(fed.sites["site-1"], "other")
        async with anyio.create_task_group() as tg:
            tg.start_soon(fed.stream, Numbers(1))
            result = await fed.server.stream_objects(
                "models", "other", {}, ["site-1"], Numbers(3), fed.server.new_context()
            )
            assert result.complete
            gate.set()


@everywhere
async def test_what_consume_raises_stays_here_but_for_a_correlation_id(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with federation(transport, 2) as fed:

        async def fail(n: int) -> Any:
            raise BoomError("a private detail")

        keeper = Keeper(fail).register(fed.sites["site-1"])
        Keeper().register(fed.sites["site-2"])
        producer = Numbers(2)
        result = await fed.stream(producer)
        reply = producer.replies[0]["site-1"]
        assert reply.get_return_code() == "EXECUTION_EXCEPTION"
        reason = reply.get_header("reason")
        assert "correlation id" in reason
        correlation = reason.rsplit(" ", 1)[1]
        assert "private" not in repr(dict(reply)) + repr(result)
        assert "BoomError" not in repr(dict(reply)) + repr(result)
        assert correlation in caplog.text
        assert "a private detail" in caplog.text
        assert producer.rcs("site-1") == ["EXECUTION_EXCEPTION", None]
        assert keeper.log == WHOLE_LIFE
        assert keeper.rcs == ["EXECUTION_EXCEPTION"]
        assert result.sites["site-1"].rc == result.rc == "EXECUTION_EXCEPTION"
        assert result.sites["site-1"].outcomes == {"replied": 1, "not_sent": 1}


@everywhere
async def test_nonsense_from_consume_is_an_execution_exception(transport: str) -> None:
    async with federation(transport, 1) as fed:
        nonsense: list[Any] = ["x", (True,), (True, {"n": 1}), (True, Shareable({"x": object()}))]
        for thing in nonsense:

            async def answer(n: int, thing: Any = thing) -> Any:
                return thing

            keeper = Keeper(answer).register(fed.sites["site-1"])
            producer = Numbers(2)
            await fed.stream(producer)
            assert producer.rcs("site-1") == ["EXECUTION_EXCEPTION"]
            assert keeper.log == WHOLE_LIFE


@everywhere
async def test_a_failing_get_consumer_is_an_execution_exception(transport: str) -> None:
    class Failing(ConsumerFactory):
        async def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
            raise BoomError("no")

    async with federation(transport, 1) as fed:
        fed.sites["site-1"].register_stream_processing("models", "*", Failing())
        producer = Numbers(2)
        result = await fed.stream(producer)
        assert producer.rcs("site-1")[0] == "EXECUTION_EXCEPTION"
        assert result.rc == "EXECUTION_EXCEPTION"


@everywhere
async def test_the_rc_of_the_last_reply_is_that_of_an_end_by_the_site(transport: str) -> None:
    async with federation(transport, 1) as fed:

        async def unsafe(n: int) -> Any:
            return False, make_reply(ReturnCode.UNSAFE_JOB)

        class Resulting(Keeper):
            async def done(self, stream_ctx: StreamContext, fl_ctx: FLContext, **kwargs: Any) -> Any:
                await super().done(stream_ctx, fl_ctx, **kwargs)
                return {"accuracy": 0.5}

        keeper = Resulting(unsafe).register(fed.sites["site-1"])

        def judge(seq: int, replies: dict[str, Shareable]) -> None:
            assert keeper.log == WHOLE_LIFE, "the end runs before the reply leaves"

        producer = Numbers(3, judge=judge)
        result = await fed.stream(producer)
        assert producer.rcs("site-1") == ["UNSAFE_JOB"]
        assert keeper.rcs == ["UNSAFE_JOB"]
        assert result.sites["site-1"].rc == "UNSAFE_JOB"
        assert result.sites["site-1"].end_result == {"accuracy": 0.5}


@everywhere
async def test_each_step_of_the_end_runs_even_if_the_one_before_raised(transport: str) -> None:
    class FailingConsumer(ObjectConsumer):
        async def consume(self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
            return True, None

        async def finalize(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
            raise BoomError("finalize")

    class Failing(Keeper):
        async def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
            return FailingConsumer()

        async def done(self, stream_ctx: StreamContext, fl_ctx: FLContext, **kwargs: Any) -> Any:
            self.log.append("done_cb")
            raise BoomError("done_cb")

    async with federation(transport, 1) as fed:
        keeper = Failing().register(fed.sites["site-1"])
        producer = Numbers(1)
        result = await fed.stream(producer)
        assert keeper.log == ["done_cb", "return_consumer"]
        assert producer.rcs("site-1") == ["OK"]
        assert result.sites["site-1"].rc == result.rc == "EXECUTION_EXCEPTION"
        assert result.outcomes == {"replied": 1}
        assert not result.complete


@everywhere
async def test_an_end_that_overruns_is_an_execution_exception(transport: str) -> None:
    class Slow(Keeper):
        async def done(self, stream_ctx: StreamContext, fl_ctx: FLContext, **kwargs: Any) -> Any:
            await anyio.sleep_forever()

    timeout = long_or_short(transport, EngineSettings().finalize_timeout, 0.1)
    async with federation(transport, 1, settings=EngineSettings(finalize_timeout=timeout)) as fed:
        Slow().register(fed.sites["site-1"])
        began = anyio.current_time()
        result = await fed.stream(Numbers(1), options=StreamOptions(end_timeout=60))
        check_elapsed(transport, began, timeout)
        assert result.sites["site-1"].rc == "EXECUTION_EXCEPTION"


@everywhere
async def test_a_value_of_stream_done_cb_is_the_end_result(transport: str) -> None:
    def done(stream_ctx: StreamContext, fl_ctx: FLContext, **kwargs: Any) -> Any:
        return {"seen": kwargs["seen"], "rc": stream_ctx[StreamContextKey.RC], "w": np.arange(3)}

    async with federation(transport, 1) as fed:
        fed.sites["site-1"].register_stream_processing("models", "weights", Keeper(), stream_done_cb=done, seen=4)
        result = await fed.stream(Numbers(1))
        end_result = result.sites["site-1"].end_result
        assert (end_result["seen"], end_result["rc"], end_result["w"].tolist()) == (4, "OK", [0, 1, 2])


@everywhere
async def test_consumed_cb_gets_what_consume_returned(transport: str) -> None:
    calls: list[tuple[bool, int, str]] = []

    async def consumed(pair: tuple[bool, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext, *, tag: str) -> None:
        calls.append((pair[0], pair[1]["n"], tag))

    async with federation(transport, 1) as fed:
        fed.sites["site-1"].register_stream_processing("models", "weights", Keeper(), consumed_cb=consumed, tag="t")
        await fed.stream(Numbers(2))
        assert calls == [(True, 0, "t"), (True, 1, "t")]


@everywhere
async def test_end_stream_ends_the_stream_from_any_thread(transport: str) -> None:
    async with federation(transport, 1) as fed:
        keeper = Keeper()

        async def end(n: int) -> None:
            end_stream = keeper.stream_ctxs[0][StreamContextKey.END_STREAM]
            await anyio.to_thread.run_sync(end_stream, "EMPTY_RESULT")
            await anyio.sleep_forever()

        keeper.do = end
        keeper.register(fed.sites["site-1"])
        stream_ctx: StreamContext = {}
        result = await fed.stream(Numbers(2, timeout=30), stream_ctx=stream_ctx)
        assert keeper.rcs == ["EMPTY_RESULT"]
        assert keeper.log == WHOLE_LIFE
        assert result.sites["site-1"].rc == "EMPTY_RESULT"
        assert StreamContextKey.END_STREAM not in stream_ctx


@everywhere
async def test_idle_timeout_ends_a_quiet_stream(transport: str) -> None:
    idle_timeout = long_or_short(transport, 20, 0.1)
    async with federation(transport, 1, settings=EngineSettings(idle_timeout=idle_timeout)) as fed:
        keeper = Keeper().register(fed.sites["site-1"])

        async def wait() -> None:
            began = anyio.current_time()
            await until(lambda: bool(keeper.rcs), idle_timeout + 5)
            assert keeper.ended_at is not None
            if not is_real(transport):
                assert keeper.ended_at - began == pytest.approx(idle_timeout, abs=0.002)

        result = await fed.stream(Numbers(2, judge=lambda seq, replies: wait() if seq == 0 else None))
        assert keeper.rcs == ["TIMEOUT"]
        assert result.sites["site-1"].rc == "TIMEOUT"


@everywhere
async def test_a_lost_link_ends_the_stream_at_both_ends(transport: str) -> None:
    async with federation(transport, 2) as fed:
        keeper = Keeper()

        async def block(_n: int) -> None:
            await keeper.block()

        keeper.do = block
        keeper.register(fed.sites["site-1"])
        Keeper().register(fed.sites["site-2"])
        producer = Numbers(2, timeout=10)

        async def cut() -> None:
            await keeper.blocked.wait()
            link = next(link for link in fed.server._links if link.peer == "site-1")
            link.drop(BrokenError("cut by the test"))

        async with anyio.create_task_group() as tg:
            tg.start_soon(cut)
            result = await fed.stream(producer, options=StreamOptions(resume_window=0))
        assert producer.rcs("site-1") == ["COMMUNICATION_ERROR"] * 2
        assert producer.rcs("site-2") == ["OK"] * 2
        assert result.sites["site-1"].outcomes["lost"] >= 1
        assert result.rc == "COMMUNICATION_ERROR"
        await until(lambda: bool(keeper.rcs))
        assert keeper.rcs == ["COMMUNICATION_ERROR"]


@everywhere
async def test_shutdown_streamer_ends_everything_and_refuses_more(transport: str) -> None:
    async with federation(transport, 2, settings=QUICK) as fed:
        site = fed.sites["site-1"]
        keeper = Keeper()

        async def block(_n: int) -> None:
            await keeper.block()

        keeper.do = block
        keeper.register(site)
        results: list[StreamResult] = []

        async def inward() -> None:
            results.append(await fed.stream(Numbers(1, timeout=30), ["site-1"]))

        outward = Blocked()

        async def from_site() -> None:
            results.append(await fed.stream(outward, ["server"], opener=site))

        async with anyio.create_task_group() as tg:
            tg.start_soon(inward)
            tg.start_soon(from_site)
            await keeper.blocked.wait()
            await outward.started.wait()
            await site.shutdown_streamer()
            await site.shutdown_streamer()
            assert keeper.rcs == ["TASK_ABORTED"]
        assert [result.rc for result in results] == ["TASK_ABORTED", "TASK_ABORTED"]
        with pytest.raises(ClosedError):
            await fed.stream(Numbers(1), ["server"], opener=site)
        producer = Numbers(1)
        await fed.stream(producer, ["site-1"])
        assert producer.rcs("site-1") == ["SERVICE_UNAVAILABLE"]
        assert "server" in site.sites(), "links stay"


@everywhere
async def test_registering_again_replaces_and_unregister_takes_back(transport: str) -> None:
    async with federation(transport, 1, settings=QUICK) as fed:
        site = fed.sites["site-1"]
        first, second, any_topic = Keeper(), Keeper(), Keeper()
        old = site.register_stream_processing("models", "weights", first)
        new = site.register_stream_processing("models", "weights", second)
        site.register_stream_processing("models", "*", any_topic)
        old.unregister()
        await fed.stream(Numbers(1))
        new.unregister()
        await fed.stream(Numbers(1))
        assert (first.seen, second.seen, any_topic.seen) == ([], [0], [0])


@everywhere
async def test_a_synchronous_consumer_runs_in_a_worker_thread(transport: str) -> None:
    threads: set[int] = set()

    class Plain(ObjectConsumer):
        def consume(  # type: ignore[override]
            self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
        ) -> tuple[bool, Shareable]:
            threads.add(threading.get_ident())
            return True, make_reply("OK", {"n": shareable["n"]})

    class Factory(ConsumerFactory):
        def get_consumer(  # type: ignore[override]
            self, stream_ctx: StreamContext, fl_ctx: FLContext
        ) -> ObjectConsumer:
            return Plain()

    async with federation(transport, 1) as fed:
        fed.sites["site-1"].register_stream_processing("models", "weights", Factory())
        producer = Numbers(3)
        result = await fed.stream(producer)
        assert result.complete
        assert [replies["site-1"].get_header("n") for replies in producer.replies] == [0, 1, 2]
        assert threads
        assert threading.get_ident() not in threads


@everywhere
async def test_what_the_engines_body_raises_passes_unwrapped(transport: str) -> None:
    with pytest.raises(BoomError):
        async with federation(transport, 1):
            raise BoomError


@everywhere
async def test_cookies_are_echoed(transport: str) -> None:
    class WithCookie(Numbers):
        async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, Any]:
            obj, timeout = await super().produce(stream_ctx, fl_ctx)
            if obj is not None:
                obj.add_cookie("trace", 7)
            return obj, timeout

    async with federation(transport, 1) as fed:
        Keeper().register(fed.sites["site-1"])
        producer = WithCookie(1)
        await fed.stream(producer)
        assert producer.replies[0]["site-1"].get_cookie("trace") == 7


@hubs
async def test_site_to_site_through_a_hub(transport: str) -> None:
    async with federation(transport, 3) as fed:
        keepers = [Keeper().register(fed.sites[name]) for name in ("site-2", "site-3")]
        served = Keeper().register(fed.server)
        targets = ["server", "site-2", "site-3"]
        producer = Numbers(5)
        result = await fed.stream(producer, targets, opener=fed.sites["site-1"], options=StreamOptions(window=3))
        assert result.complete
        assert result.outcomes == {"replied": 15}
        for keeper in [*keepers, served]:
            assert keeper.seen == [0, 1, 2, 3, 4]
            peer = keeper.contexts[0].get_peer_context()
            assert peer is not None
            assert peer.get_identity_name() == "site-1"


@hubs
async def test_a_stream_through_a_hub_to_nobody_is_a_communication_error(transport: str) -> None:
    async with federation(transport, 1) as fed:
        producer = Numbers(2)
        result = await fed.stream(producer, ["ghost"], opener=fed.sites["site-1"])
        assert producer.rcs("ghost") == ["COMMUNICATION_ERROR"] * 2
        assert result.outcomes == {"unreachable": 2}


class Arrays(Numbers):
    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, Any]:
        obj, timeout = await super().produce(stream_ctx, fl_ctx)
        if obj is not None:
            obj["w"] = np.arange(1_000_000, dtype=np.float64) + obj["n"]  # 8 MB
        return obj, timeout


class Doubling(ConsumerFactory, ObjectConsumer):
    async def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        return self

    async def consume(
        self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> tuple[bool, Shareable]:
        reply = make_reply("OK")
        reply["w"] = shareable["w"] * 2
        return True, reply


@hubs
@pytest.mark.parametrize("window", [1, 3])
async def test_large_arrays_through_a_hub(transport: str, window: int) -> None:
    async with federation(transport, 3) as fed:
        for engine in fed.engines:
            engine.register_stream_processing("models", "weights", Doubling())
        targets = ["server", "site-2", "site-3"]
        producer = Arrays(6)
        options = StreamOptions(window=window)
        result = await fed.stream(producer, targets, opener=fed.sites["site-1"], options=options)
        assert result.complete
        for n, replies in enumerate(producer.replies):
            for name in targets:
                w = replies[name]["w"]
                assert (w.size, w[0], w[-1]) == (1_000_000, 2 * n, 2 * (n + 999_999))


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], indirect=True, ids=["asyncio"])
async def test_garbage_on_one_link_leaves_the_others_alone() -> None:
    async with federation("tcp", 1) as fed:
        Keeper().register(fed.sites["site-1"])
        port = int(fed.server.addresses[0].rsplit(":", 1)[1])
        async with await anyio.connect_tcp("127.0.0.1", port) as stranger:
            await stranger.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
            with anyio.move_on_after(5) as waited:
                try:
                    while True:
                        await stranger.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    pass
            assert not waited.cancelled_caught
        result = await fed.stream(Numbers(2))
        assert result.complete


@everywhere
async def test_an_engine_used_outside_its_block_says_so(transport: str) -> None:
    engine = StreamEngine("lonely")
    with pytest.raises(ClosedError):
        await engine.wait_for_sites(["site-1"])
    async with federation(transport, 1) as fed:
        server = fed.server
    with pytest.raises(ClosedError):
        await server.stream_objects("models", "weights", {}, ["site-1"], Numbers(1), FLContext("server"))
