"""``secure=True``: streams that only their opener and their sites can read, forge or end."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import anyio
import numpy as np
import pytest

from fanstream import (
    EngineSettings,
    FLContext,
    ReturnCode,
    Shareable,
    StreamContext,
    StreamEngine,
    StreamOptions,
    make_reply,
)
from fanstream.errors import SecurityError
from tests.federation import Federation, Keeper, Numbers, everywhere, federation, hubs, on_memory
from tests.security.kits import identities

pytestmark = pytest.mark.anyio

SETTINGS = EngineSettings(registration_grace=0.0, suite="pq-sha256")
CANARY = "canary-7f3a"


def secured(transport: str, sites: int = 1, **kwargs: Any) -> Any:
    kwargs.setdefault("identity", identities())
    kwargs.setdefault("settings", SETTINGS)
    return federation(transport, sites, **kwargs)


class Doubler(Keeper):
    """Answers each object with twice its arrays."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Shareable] = []

    def serve(self, engine: StreamEngine) -> Doubler:
        @engine.consumer("models", "weights")
        async def double(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Shareable:
            self.stream_ctxs.append(dict(stream_ctx))
            self.taken.append(Shareable(dict(shareable)))
            return Shareable({key: value * 2 for key, value in shareable.items() if isinstance(value, np.ndarray)})

        return self


async def exchange(fed: Federation, opener: StreamEngine, targets: list[str], sizes: list[int]) -> None:
    """Send arrays of some sizes sealed, and check what comes back."""
    keepers = {name: Doubler().serve(fed.sites[name]) for name in targets}
    arrays = [np.arange(size, dtype=np.float32) for size in sizes]
    context = {"round": CANARY}
    async with opener.open_stream("models", "weights", targets, stream_ctx=context, secure=True) as stream:
        for array in arrays:
            replies = await stream.send(Shareable({"w": array, "name": CANARY}), timeout=20.0)
            for name in targets:
                assert replies[name].get_return_code() == ReturnCode.OK
                np.testing.assert_array_equal(replies[name]["w"], array * 2)
    assert stream.result is not None
    assert stream.result.complete
    for keeper in keepers.values():
        assert [taken["name"] for taken in keeper.taken] == [CANARY] * len(sizes)
        assert all(got["round"] == CANARY for got in keeper.stream_ctxs)
        for taken, array in zip(keeper.taken, arrays, strict=True):
            np.testing.assert_array_equal(taken["w"], array)


@everywhere
async def test_a_sealed_stream_carries_objects_and_replies(transport: str) -> None:
    async with secured(transport, 2) as fed:
        # From nothing out of band to what is sealed and opened on threads, in more than one sealed chunk.
        sizes = [3, 5000, 40_000] if transport in ("local", "memory") else [3, 5000, 40_000, 700_000]
        await exchange(fed, fed.server, ["site-1", "site-2"], sizes)


@hubs
async def test_a_sealed_stream_runs_through_a_hub(transport: str) -> None:
    async with secured(transport, 3) as fed:
        sizes = [3, 40_000] if transport == "memory" else [3, 40_000, 700_000]
        await exchange(fed, fed.sites["site-1"], ["site-2", "site-3"], sizes)


@hubs
async def test_a_hub_needs_no_identity(transport: str) -> None:
    async with secured(transport, 2, identity=identities(without="server")) as fed:
        await exchange(fed, fed.sites["site-1"], ["site-2"], [10])


@everywhere
@pytest.mark.parametrize("window", [1, 8])
async def test_producers_and_consumers_do_not_notice(transport: str, window: int) -> None:
    async with secured(transport, 2) as fed:
        keepers = [Keeper().register(site) for site in fed.sites.values()]
        producer = Numbers(20)
        result = await fed.stream(producer, secure=True, options=StreamOptions(window=window))
        assert result.complete
        assert [keeper.seen for keeper in keepers] == [list(range(20))] * 2
        assert keepers[0].log[-3:] == ["finalize", "done_cb", "return_consumer"]


@on_memory
async def test_each_end_arrives_as_itself(transport: str) -> None:
    async with secured(transport, 1) as fed:

        async def stop_at_two(n: int) -> Any:
            return (n < 2, make_reply(ReturnCode.OK if n < 2 else ReturnCode.EMPTY_RESULT))

        keeper = Keeper(stop_at_two).register(fed.sites["site-1"])
        early = await fed.stream(Numbers(5), secure=True)
        assert (early.sites["site-1"].rc, keeper.rcs) == (ReturnCode.EMPTY_RESULT, [ReturnCode.EMPTY_RESULT])

        keeper = Keeper().register(fed.sites["site-1"])
        withdrawn = await fed.stream(Numbers(5, judge=lambda n, _: "enough" if n == 1 else None), secure=True)
        assert (withdrawn.rc, withdrawn.value, keeper.rcs) == (ReturnCode.OK, "enough", [ReturnCode.OK])

        refused = await fed.stream(Numbers(2), secure=True, targets=["site-1"], stream_ctx={})
        assert refused.rc == ReturnCode.OK


@on_memory
async def test_an_abort_arrives_with_its_reason(transport: str) -> None:
    async with secured(transport, 1) as fed:
        keeper = Keeper()

        async def block(n: int) -> Any:
            await keeper.block()

        keeper.do = block
        keeper.register(fed.sites["site-1"])
        fl_ctx = fed.server.new_context("job")
        async with anyio.create_task_group() as tg:
            results: list[Any] = []

            async def run() -> None:
                results.append(await fed.stream(Numbers(5, timeout=60.0), secure=True, fl_ctx=fl_ctx))

            tg.start_soon(run)
            await keeper.blocked.wait()
            fl_ctx.get_run_abort_signal().trigger("stop now")
        assert results[0].rc == ReturnCode.TASK_ABORTED
        await fed.settle()
        assert keeper.rcs == [ReturnCode.TASK_ABORTED]


@on_memory
async def test_a_topic_that_nobody_takes_is_refused_by_the_site_itself(transport: str) -> None:
    async with secured(transport, 2) as fed:
        Keeper().register(fed.sites["site-1"])
        result = await fed.stream(Numbers(2), secure=True)
        assert result.sites["site-2"].rc == ReturnCode.TOPIC_UNKNOWN
        optional = await fed.stream(Numbers(2), secure=True, optional=True)
        assert optional.rc == ReturnCode.OK


@on_memory
async def test_end_results_travel_sealed(transport: str) -> None:
    class Telling(Keeper):
        async def done(self, stream_ctx: StreamContext, fl_ctx: FLContext, **kwargs: Any) -> Any:
            return {"secret": CANARY}

    async with secured(transport, 1) as fed:
        Telling().register(fed.sites["site-1"])
        result = await fed.stream(Numbers(1), secure=True)
        assert result.sites["site-1"].end_result == {"secret": CANARY}


@on_memory
@pytest.mark.parametrize("cut_at", [0.15, 0.25, 0.35])
async def test_a_sealed_stream_outlives_its_links(transport: str, cut_at: float) -> None:
    from fanstream.testing import FaultyNetwork

    async def slowly(n: int) -> Any:
        await anyio.sleep(0.1)

    with FaultyNetwork() as network:
        async with secured(transport, 2) as fed:
            keeper = Keeper(slowly).register(fed.sites["site-2"])
            producer = Numbers(8, timeout=60.0)
            async with anyio.create_task_group() as tg:

                async def run() -> None:
                    options = StreamOptions(window=3)
                    result = await fed.stream(
                        producer, ["site-2"], opener=fed.sites["site-1"], secure=True, options=options
                    )
                    assert result.complete

                tg.start_soon(run)
                for name in ("site-1", "site-2", "site-1"):
                    await anyio.sleep(cut_at)
                    network.link(name).cut()
            assert keeper.seen == list(range(8))
            assert producer.rcs("site-2") == [ReturnCode.OK] * 8
            assert keeper.rcs == [ReturnCode.OK]


# --- who cannot is refused, and nothing is sent ---


@on_memory
async def test_an_engine_without_identity_cannot_open_one(transport: str) -> None:
    async with secured(transport, 1, identity=identities(without="server")) as fed:
        keeper = Keeper().register(fed.sites["site-1"])
        with pytest.raises(SecurityError, match=r"secure=True: server has no identity"):
            await fed.stream(Numbers(1), secure=True)
        assert keeper.log == []


@on_memory
@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        (identities(without="site-2"), "site-2 has no identity"),
        (lambda name: identities("banks" if name == "site-2" else "hospitals")(name), "site-2 cannot be sealed"),
    ],
    ids=["none", "another federation's"],
)
async def test_a_site_that_cannot_be_sealed_for_is_named_and_nothing_is_sent(
    transport: str, identity: Any, reason: str
) -> None:
    async with secured(transport, 2, identity=identity) as fed:
        keepers = [Keeper().register(site) for site in fed.sites.values()]
        with pytest.raises(SecurityError, match=f"secure=True: {reason}.*nothing was sent"):
            await fed.stream(Numbers(1), secure=True)
        assert [keeper.log for keeper in keepers] == [[], []]
        assert (await fed.stream(Numbers(1))).complete  # as it can be had without


@on_memory
async def test_a_site_that_cannot_be_reached_is_left_out_as_always(transport: str) -> None:
    async with secured(transport, 1) as fed:
        Keeper().register(fed.sites["site-1"])
        result = await fed.stream(Numbers(2), ["site-1", "nowhere"], secure=True)
        assert result.sites["nowhere"].rc == ReturnCode.COMMUNICATION_ERROR
        assert result.sites["nowhere"].outcomes == {"unreachable": 2}
        assert result.sites["site-1"].outcomes == {"replied": 2}


@on_memory
async def test_a_site_may_take_sealed_streams_only(transport: str) -> None:
    settings = SETTINGS.model_copy(update={"sealed_only": True})
    async with secured(transport, 1, settings=settings) as fed:
        keeper = Keeper().register(fed.sites["site-1"])
        plain = await fed.stream(Numbers(1))
        assert plain.sites["site-1"].rc == ReturnCode.BAD_REQUEST_DATA
        assert keeper.log == []
        assert (await fed.stream(Numbers(1), secure=True)).complete


@on_memory
async def test_wildcards_do_not_reach_the_engines_own_channels(transport: str) -> None:
    async with secured(transport, 1, identity=identities(without="site-1")) as fed:
        keeper = Keeper()
        fed.sites["site-1"].register_stream_processing("*", "*", keeper)
        with pytest.raises(SecurityError, match="site-1 has no identity"):
            await fed.stream(Numbers(1), secure=True)
        assert keeper.log == []


# --- nothing shows ---


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


@on_memory
async def test_no_secret_shows_in_logs_or_on_the_wire(
    transport: str, everything_logged: pytest.LogCaptureFixture
) -> None:
    from fanstream.testing import FaultyNetwork, Frame, LinkControl

    seen: list[bytes] = []

    def tap(link: LinkControl) -> None:
        def look(frame: Frame) -> list[Frame]:
            seen.append(frame.body)
            return [frame]

        link.up.rewrite = link.down.rewrite = look

    class Telling(Keeper):
        async def done(self, stream_ctx: StreamContext, fl_ctx: FLContext, **kwargs: Any) -> Any:
            return CANARY

    async def fail(n: int) -> Any:
        if n == 1:
            raise RuntimeError("a consumer's own failure")
        return True, Shareable({"answer": CANARY})

    settings = SETTINGS.model_copy(update={"public_props": {"owner": CANARY}})
    with FaultyNetwork(tap):
        async with secured(transport, 1, settings=settings) as fed:
            fed.sites["site-1"].register_stream_processing("models", "weights", keeper := Telling(fail))

            async def rounds() -> AsyncIterator[tuple[Shareable, float]]:
                for n in range(3):
                    yield Shareable({"n": n, "secret": CANARY, "w": np.full(20_000, 7.0)}), 5.0

            fl_ctx = fed.server.new_context("job")
            fl_ctx.put("site-secret", CANARY, private=False, sticky=True)
            await fed.stream(rounds(), stream_ctx={"secret": CANARY}, fl_ctx=fl_ctx, secure=True)
            assert keeper.seen == [0, 1]
    assert len(seen) > 10
    assert not [body for body in seen if CANARY.encode() in body or np.full(10, 7.0).tobytes() in body]
    for record in everything_logged.records:
        assert CANARY not in everything_logged.handler.format(record)
