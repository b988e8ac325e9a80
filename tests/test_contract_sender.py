"""The contract of design.md, section 4, at the opener."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import anyio
import pytest

from fanstream import (
    Drop,
    EngineSettings,
    FLContext,
    ObjectProducer,
    Quorum,
    ReturnCode,
    Shareable,
    StreamContext,
    StreamEngine,
    StreamOptions,
    make_reply,
)
from fanstream.errors import CodecError, SecurityError
from tests.federation import (
    QUICK,
    Keeper,
    Numbers,
    Watching,
    check_elapsed,
    everywhere,
    federation,
    is_real,
    long_or_short,
    until,
)

pytestmark = [pytest.mark.anyio, everywhere]

both_windows = pytest.mark.parametrize("window", [1, 4])


class BoomError(Exception):
    pass


async def test_calls_alternate_with_window_1(transport: str) -> None:
    async with federation(transport, 2) as fed:
        for site in fed.sites.values():
            Keeper().register(site)
        producer = Numbers(3)
        result = await fed.stream(producer)
        assert producer.log == ["produce", "process"] * 3 + ["produce"]
        assert result.rc == "OK"
        assert result.complete
        assert result.outcomes == {"replied": 6}
        assert [replies["site-2"]["n"] for replies in producer.replies] == [0, 1, 2]


async def test_a_larger_window_runs_ahead_and_judges_in_order(transport: str) -> None:
    async with federation(transport, 2) as fed:
        gate = anyio.Event()

        async def wait(_n: int) -> None:
            await gate.wait()

        for site in fed.sites.values():
            Keeper(wait).register(site)
        producer = Numbers(10)

        async def open_gate() -> None:
            await until(lambda: producer.made == 4)
            await anyio.sleep(0.02)
            assert producer.made == 4, "no further than the window"
            assert "process" not in producer.log
            gate.set()

        async with anyio.create_task_group() as tg:
            tg.start_soon(open_gate)
            result = await fed.stream(producer, options=StreamOptions(window=4))
        assert [replies["site-1"]["n"] for replies in producer.replies] == list(range(10))
        assert result.complete


@both_windows
async def test_none_ends_the_stream_and_drains_it(transport: str, window: int) -> None:
    async with federation(transport, 1) as fed:
        keeper = Keeper().register(fed.sites["site-1"])
        result = await fed.stream(Numbers(6), options=StreamOptions(window=window))
        assert keeper.seen == [0, 1, 2, 3, 4, 5]
        assert keeper.rcs == ["OK"]
        assert (result.rc, result.value, result.complete) == ("OK", None, True)


async def test_none_at_once_is_an_empty_stream(transport: str) -> None:
    async with federation(transport, 1) as fed:
        keeper = Keeper().register(fed.sites["site-1"])
        result = await fed.stream(Numbers(0))
        assert (result.rc, result.objects, keeper.log) == ("OK", 0, [])


@pytest.mark.parametrize(("value", "rc"), [("enough", "OK"), (0, "ERROR")])
async def test_a_value_withdraws_what_was_not_consumed(transport: str, value: Any, rc: str) -> None:
    async with federation(transport, 1) as fed:
        keeper = Keeper()

        async def consume(n: int) -> None:
            if n == 1:
                await keeper.block()

        keeper.do = consume
        keeper.register(fed.sites["site-1"])

        async def judge() -> Any:
            await keeper.blocked.wait()
            return value

        producer = Numbers(9, judge=lambda seq, replies: judge())
        result = await fed.stream(producer, options=StreamOptions(window=4))
        assert (result.rc, result.value, result.complete) == (rc, value, False)
        assert result.outcomes == {"replied": 1, "aborted": result.objects - 1}
        assert keeper.seen == [0, 1]
        assert keeper.rcs == ["OK"]
        assert result.sites["site-1"].rc == "OK"


@both_windows
@pytest.mark.parametrize("where", ["produce", "process_replies"])
async def test_what_the_producer_raises_reaches_the_caller_as_itself(transport: str, where: str, window: int) -> None:
    class Failing(Numbers):
        async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, Any]:
            if where == "produce" and self.made == 2:
                raise BoomError("third")
            return await super().produce(stream_ctx, fl_ctx)

        async def process_replies(
            self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext
        ) -> Any:
            if where == "process_replies":
                raise BoomError("first")

    async with federation(transport, 2) as fed:
        keepers = [Keeper().register(site) for site in fed.sites.values()]
        with pytest.raises(BoomError):
            await fed.stream(Failing(5), options=StreamOptions(window=window))
        await fed.settle()
        for keeper in keepers:
            assert keeper.log.count("finalize") == keeper.log.count("get_consumer")
            assert set(keeper.rcs) <= {"TASK_ABORTED"}


class Once(ObjectProducer):
    """Produces one thing, whatever it is."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        return self.thing

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        return "judged"


@both_windows
async def test_wrong_types_and_timeouts_are_refused(transport: str, window: int) -> None:
    obj = Shareable({"n": 0})
    wrong: list[tuple[Any, type[Exception]]] = [
        (obj, TypeError),
        ((obj,), TypeError),
        (({"n": 0}, 5), TypeError),
        ((obj, "5"), TypeError),
        ((obj, None), TypeError),
        ((obj, True), TypeError),
        ((obj, 0), ValueError),
        ((obj, -1.5), ValueError),
        ((obj, math.nan), ValueError),
        ((obj, math.inf), ValueError),
        ((obj, timedelta(0)), ValueError),
        ((Shareable({"n": object()}), 5), CodecError),
    ]
    async with federation(transport, 1) as fed:
        Keeper().register(fed.sites["site-1"])
        for thing, error in wrong:
            with pytest.raises(error):
                await fed.stream(Once(thing), options=StreamOptions(window=window))
        await fed.settle()


async def test_timeouts_may_be_int_float_or_timedelta(transport: str) -> None:
    async with federation(transport, 1) as fed:
        Keeper().register(fed.sites["site-1"])
        result = await fed.stream(Numbers(3, timeout=[5, 5.0, timedelta(seconds=5)]))
        assert result.complete


async def test_a_slow_site_times_out_and_its_late_reply_is_counted(transport: str) -> None:
    async with federation(transport, 2) as fed:
        gate = anyio.Event()

        async def wait(_n: int) -> None:
            await gate.wait()

        Keeper().register(fed.sites["site-1"])
        slow = Keeper(wait).register(fed.sites["site-2"])
        timeout = long_or_short(transport, 30, 0.1)
        producer = Watching(2, timeout=[timeout, 5], judge=lambda seq, replies: gate.set())
        began = anyio.current_time()
        result = await fed.stream(producer)
        check_elapsed(transport, began, timeout)
        assert producer.rcs("site-1") == ["OK", "OK"]
        assert producer.rcs("site-2") == ["TIMEOUT", "OK"]
        assert producer.replies[1]["site-2"]["n"] == 1
        assert producer.late == [("site-2", 0)]
        assert ("site-2", 1) in producer.early
        assert slow.seen == [0, 1], "expired objects are consumed all the same"
        assert result.sites["site-2"].outcomes == {"timed_out": 1, "replied": 1}
        assert result.sites["site-2"].late == 1
        assert (result.rc, result.complete) == ("TIMEOUT", False)


async def test_an_unreachable_site_is_a_communication_error_at_once(transport: str) -> None:
    async with federation(transport, 1) as fed:
        Keeper().register(fed.sites["site-1"])
        producer = Numbers(3, timeout=30)
        started = anyio.current_time()
        result = await fed.stream(producer, ["site-1", "ghost"])
        if not is_real(transport):
            check_elapsed(transport, started, 0)
        assert anyio.current_time() - started < 5
        assert producer.rcs("site-1") == ["OK"] * 3
        assert producer.rcs("ghost") == ["COMMUNICATION_ERROR"] * 3
        assert result.sites["ghost"].outcomes == {"unreachable": 3}
        assert (result.rc, result.complete) == ("COMMUNICATION_ERROR", False)


async def test_connect_grace_waits_for_a_site(transport: str) -> None:
    async with federation(transport, 0) as fed:
        results: list[Any] = []
        ended = anyio.Event()

        async def stream() -> None:
            options = StreamOptions(connect_grace=10)
            results.append(await fed.stream(Numbers(2), ["site-1"], options=options))
            ended.set()

        async with anyio.create_task_group() as tg:
            tg.start_soon(stream)
            await until(lambda: len(fed.server._outgoing) == 1)
            async with StreamEngine("site-1", connect=fed.server.addresses or None) as site:
                Keeper().register(site)
                await ended.wait()
        assert results[0].complete


async def test_a_site_that_ends_early_is_sent_no_more(transport: str) -> None:
    async with federation(transport, 2) as fed:

        async def enough(n: int) -> Any:
            return n < 1, make_reply(ReturnCode.OK)

        Keeper().register(fed.sites["site-1"])
        early = Keeper(enough).register(fed.sites["site-2"])
        producer = Numbers(4)
        result = await fed.stream(producer)
        assert producer.rcs("site-2") == ["OK", "OK", None, None]
        assert producer.rcs("site-1") == ["OK"] * 4
        assert early.seen == [0, 1]
        assert result.sites["site-2"].outcomes == {"replied": 2, "not_sent": 2}
        assert (result.rc, result.value) == ("OK", None)


async def test_all_sites_finished_early_ends_the_stream(transport: str) -> None:
    async with federation(transport, 2) as fed:

        async def enough(n: int) -> Any:
            return False, make_reply(ReturnCode.OK)

        for site in fed.sites.values():
            Keeper(enough).register(site)
        producer = Numbers(1_000_000)
        result = await fed.stream(producer)
        assert (result.rc, result.value, result.objects) == ("OK", None, 1)
        assert result.complete


async def test_nothing_registered_is_topic_unknown(transport: str) -> None:
    async with federation(transport, 2, settings=QUICK) as fed:
        Keeper().register(fed.sites["site-1"])
        producer = Numbers(2)
        result = await fed.stream(producer)
        assert producer.rcs("site-2") == ["TOPIC_UNKNOWN"] * 2
        assert producer.rcs("site-1") == ["OK"] * 2
        assert result.sites["site-2"].outcomes == {"refused": 2}
        assert result.rc == "TOPIC_UNKNOWN"


async def test_optional_skips_a_site_quietly(transport: str) -> None:
    async with federation(transport, 2, settings=QUICK) as fed:
        Keeper().register(fed.sites["site-1"])
        producer = Numbers(2)
        result = await fed.stream(producer, optional=True)
        assert producer.rcs("site-2") == [None, None]
        assert result.sites["site-2"].outcomes == {"not_sent": 2}
        assert result.rc == "OK"


async def test_registration_grace_lets_a_receiver_start_later(transport: str) -> None:
    async with federation(transport, 1) as fed:
        producer = Numbers(1)

        async def later() -> None:
            await until(lambda: bool(fed.sites["site-1"]._incoming))
            Keeper().register(fed.sites["site-1"])

        async with anyio.create_task_group() as tg:
            tg.start_soon(later)
            result = await fed.stream(producer)
        assert result.complete


async def test_registration_grace_ends(transport: str) -> None:
    grace = long_or_short(transport, EngineSettings().registration_grace, 0.1)
    async with federation(transport, 1, settings=EngineSettings(registration_grace=grace)) as fed:
        producer = Numbers(1, timeout=30)
        began = anyio.current_time()
        await fed.stream(producer)
        check_elapsed(transport, began, grace)
        assert producer.rcs("site-1") == ["TOPIC_UNKNOWN"]


async def test_connect_grace_ends(transport: str) -> None:
    grace = long_or_short(transport, 45, 0.1)
    async with federation(transport, 0) as fed:
        producer = Numbers(1, timeout=30)
        began = anyio.current_time()
        await fed.stream(producer, ["ghost"], options=StreamOptions(connect_grace=grace))
        check_elapsed(transport, began, grace)
        assert producer.rcs("ghost") == ["COMMUNICATION_ERROR"]


async def test_targets_are_checked_before_anything_is_sent(transport: str) -> None:
    wrong: list[tuple[Any, type[Exception]]] = [
        ([], ValueError),
        (["site-1", "site-1"], ValueError),
        (["../etc"], ValueError),
        ([""], ValueError),
        (["server"], ValueError),
        ("site-1", TypeError),
        ([1], TypeError),
        (None, TypeError),
    ]
    async with federation(transport, 1) as fed:
        keeper = Keeper().register(fed.sites["site-1"])
        producer = Numbers(1)
        context = fed.server.new_context()
        for targets, error in wrong:
            with pytest.raises(error, match="targets"):
                await fed.server.stream_objects("models", "weights", {}, targets, producer, context)
        assert producer.log == []
        assert keeper.log == []


async def test_other_arguments_are_checked_too(transport: str) -> None:
    async with federation(transport, 1) as fed:
        stream = fed.server.stream_objects
        context = fed.server.new_context()
        with pytest.raises(TypeError, match="channel"):
            await stream(1, "weights", {}, ["site-1"], Numbers(1), context)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="topic"):
            await stream("models", "*", {}, ["site-1"], Numbers(1), context)
        with pytest.raises(TypeError, match="stream_ctx"):
            await stream("models", "weights", None, ["site-1"], Numbers(1), context)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="producer"):
            await stream("models", "weights", {}, ["site-1"], object(), context)
        with pytest.raises(TypeError, match="fl_ctx"):
            await stream("models", "weights", {}, ["site-1"], Numbers(1), None)  # type: ignore[arg-type]
        with pytest.raises(CodecError):
            await stream("models", "weights", {"x": object()}, ["site-1"], Numbers(1), context)


async def test_secure_is_refused_before_anything_is_sent(transport: str) -> None:
    async with federation(transport, 1) as fed:
        keeper = Keeper().register(fed.sites["site-1"])
        producer = Numbers(1)
        with pytest.raises(SecurityError):
            await fed.stream(producer, secure=True)
        assert producer.log == []
        assert keeper.log == []


@pytest.mark.parametrize("gather", ["first", Quorum(2)])
async def test_gather_is_complete_by_its_policy(transport: str, gather: Any) -> None:
    needed = 1 if gather == "first" else 2
    async with federation(transport, 3) as fed:
        gate = anyio.Event()

        async def wait(_n: int) -> None:
            await gate.wait()

        for number, site in enumerate(fed.sites.values()):
            Keeper(wait if number >= needed else None).register(site)

        def judge(seq: int, replies: dict[str, Shareable]) -> None:
            assert len(replies) == needed
            gate.set()

        producer = Numbers(1, timeout=10, judge=judge)
        result = await fed.stream(producer, options=StreamOptions(gather=gather))
        assert result.rc == "OK"
        assert result.outcomes == {"replied": 3}, "a reply between quorum and deadline counts as replied"


async def test_a_quorum_is_not_met_at_the_deadline(transport: str) -> None:
    async with federation(transport, 2) as fed:
        gate = anyio.Event()

        async def wait(_n: int) -> None:
            await gate.wait()

        Keeper().register(fed.sites["site-1"])
        Keeper(wait).register(fed.sites["site-2"])
        timeout = long_or_short(transport, 30, 0.1)
        producer = Numbers(1, timeout=timeout, judge=lambda seq, replies: gate.set())
        began = anyio.current_time()
        result = await fed.stream(producer, options=StreamOptions(gather=Quorum(2)))
        check_elapsed(transport, began, timeout)
        assert result.rc == "TIMEOUT"
        assert producer.rcs("site-2") == ["TIMEOUT"]


async def test_a_quorum_of_more_than_the_targets_is_refused(transport: str) -> None:
    async with federation(transport, 1) as fed:
        with pytest.raises(ValueError, match="2 replies of 1 targets"):
            await fed.stream(Numbers(1), options=StreamOptions(gather=Quorum(2)))


async def test_drop_gives_up_a_site_after_n_timeouts(transport: str) -> None:
    async with federation(transport, 2) as fed:
        slow = Keeper()

        async def block(_n: int) -> None:
            await slow.block()

        slow.do = block
        Keeper().register(fed.sites["site-1"])
        slow.register(fed.sites["site-2"])
        timeout = long_or_short(transport, 30, 0.5)
        producer = Numbers(5, timeout=[timeout, timeout, 30, 30, 30])
        began = anyio.current_time()
        result = await fed.stream(producer, options=StreamOptions(straggler=Drop(2), max_lag=8))
        check_elapsed(transport, began, 2 * timeout)
        assert producer.rcs("site-2")[:2] == ["TIMEOUT", "TIMEOUT"]
        assert producer.rcs("site-1") == ["OK"] * 5
        assert result.sites["site-2"].outcomes == {"timed_out": 2, "not_sent": 3}
        assert result.sites["site-2"].rc == "TIMEOUT"
        await fed.settle()
        assert slow.rcs == ["TASK_ABORTED"]


async def test_stall_timeout_drops_a_site_that_holds_the_stream(transport: str) -> None:
    async with federation(transport, 2) as fed:
        slow = Keeper()

        async def block(_n: int) -> None:
            await slow.block()

        slow.do = block
        Keeper().register(fed.sites["site-1"])
        slow.register(fed.sites["site-2"])
        timeout = long_or_short(transport, 20, 0.05)
        stall_timeout = long_or_short(transport, StreamOptions().stall_timeout, 0.2)
        producer = Numbers(5, timeout=timeout)
        began = anyio.current_time()
        result = await fed.stream(producer, options=StreamOptions(stall_timeout=stall_timeout))
        check_elapsed(transport, began, 2 * timeout + stall_timeout)
        assert producer.rcs("site-1") == ["OK"] * 5
        assert result.sites["site-2"].outcomes == {"timed_out": 2, "not_sent": 3}
        assert result.sites["site-2"].rc == "TIMEOUT"


async def test_up_to_the_backlog_a_site_delays_no_other(transport: str) -> None:
    async with federation(transport, 2) as fed:
        gate = anyio.Event()

        async def wait(_n: int) -> None:
            await gate.wait()

        Keeper().register(fed.sites["site-1"])
        slow = Keeper(wait).register(fed.sites["site-2"])
        timeout = long_or_short(transport, 20, 0.05)
        producer = Numbers(4, timeout=timeout, judge=lambda seq, replies: gate.set() if seq == 3 else None)
        began = anyio.current_time()
        result = await fed.stream(producer, options=StreamOptions(max_lag=3))
        check_elapsed(transport, began, 4 * timeout)
        assert producer.rcs("site-2") == ["TIMEOUT"] * 4
        assert slow.seen == [0, 1, 2, 3]
        assert result.sites["site-2"].late == 4


async def test_end_timeout_bounds_the_wait_for_acknowledgements(transport: str) -> None:
    async with federation(transport, 2) as fed:
        gate = anyio.Event()

        class Slow(Keeper):
            async def done(self, stream_ctx: StreamContext, fl_ctx: FLContext, **kwargs: Any) -> Any:
                await gate.wait()

        Keeper().register(fed.sites["site-1"])
        Slow().register(fed.sites["site-2"])
        end_timeout = long_or_short(transport, StreamOptions().end_timeout, 0.2)
        began = anyio.current_time()
        result = await fed.stream(Numbers(1), options=StreamOptions(end_timeout=end_timeout))
        check_elapsed(transport, began, end_timeout)
        gate.set()
        assert result.sites["site-1"].rc == "OK"
        assert result.sites["site-2"].rc == "TIMEOUT"
        assert (result.rc, result.complete) == ("TIMEOUT", False)
        assert result.outcomes == {"replied": 2}


async def test_accounts_balance_whatever_happens_to_each_site(transport: str) -> None:
    async with federation(transport, 4, settings=QUICK) as fed:

        async def fail(n: int) -> Any:
            raise BoomError(n)

        async def enough(n: int) -> Any:
            return False, make_reply(ReturnCode.OK)

        Keeper().register(fed.sites["site-1"])
        Keeper(fail).register(fed.sites["site-2"])
        Keeper(enough).register(fed.sites["site-3"])
        result = await fed.stream(Numbers(3), [*fed.sites, "ghost"])
        assert {name: site.outcomes for name, site in result.sites.items()} == {
            "site-1": {"replied": 3},
            "site-2": {"replied": 1, "not_sent": 2},
            "site-3": {"replied": 1, "not_sent": 2},
            "site-4": {"refused": 3},
            "ghost": {"unreachable": 3},
        }
        assert sum(result.outcomes.values()) == 15
