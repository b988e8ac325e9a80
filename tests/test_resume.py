"""Links that break under running streams: what goes on, what ends, when, and what is told to whom."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from fanstream import EngineSettings, Shareable, StreamEngine, StreamOptions, StreamResult
from fanstream.errors import BrokenError
from fanstream.options import Limits
from fanstream.protocol import bodies
from fanstream.protocol.frames import FrameType
from fanstream.testing import FaultyNetwork, Frame, LinkControl
from tests.federation import Keeper, Numbers, delayed, federation, on_memory, over_sockets, until, within_the_process

pytestmark = pytest.mark.anyio

SMALL = EngineSettings(limits=Limits(frame=4096, window=64 * 1024), retry_max=1.0)


class Arrays(Numbers):
    """The same, with an array besides each number, of which each element is that number."""

    def __init__(self, number: int, size: int, **kwargs: Any) -> None:
        super().__init__(number, **kwargs)
        self.size = size

    async def produce(self, stream_ctx: Any, fl_ctx: Any) -> tuple[Shareable | None, Any]:
        obj, timeout = await super().produce(stream_ctx, fl_ctx)
        if obj is not None:
            obj["w"] = np.full(self.size, obj["n"], np.float32)
        return obj, timeout


class Checked(Keeper):
    """Consumers that look at each array, and answer with it."""

    def __init__(self, pause: float = 0.02) -> None:
        super().__init__()
        self.pause = pause
        self.wrong: list[int] = []

    def register(self, engine: StreamEngine, topic: str = "weights", **kwargs: Any) -> Checked:
        @engine.consumer("models", topic)
        async def consume(shareable: Shareable, stream_ctx: Any, fl_ctx: Any) -> Shareable:
            n = shareable["n"]
            self.seen.append(n)
            await anyio.sleep(self.pause)
            if not np.all(shareable["w"] == n):
                self.wrong.append(n)
            return Shareable({"w": shareable["w"]})

        return self


async def cut_again_and_again(network: FaultyNetwork, every: float) -> None:
    """Cut every link that is there, one after the other."""
    while True:
        await anyio.sleep(every)
        for link in network.links:
            if link.alive:
                link.cut()


@within_the_process
@pytest.mark.parametrize("window", [1, 8])
@pytest.mark.parametrize("size", [3, 40_000])
async def test_nothing_is_lost_or_doubled_however_often_links_break(transport: str, window: int, size: int) -> None:
    with FaultyNetwork(delayed(0.003)) as network:
        async with federation(transport, 2, settings=SMALL) as fed:
            checked = [Checked().register(site) for site in fed.sites.values()]
            producer = Arrays(40, size, timeout=600)
            async with anyio.create_task_group() as tg:
                tg.start_soon(cut_again_and_again, network, 0.1234)
                result = await fed.stream(producer, options=StreamOptions(window=window))
                tg.cancel_scope.cancel()
            assert len(network.links) > 8
            for one in checked:
                assert (one.seen, one.wrong) == (list(range(40)), [])
            assert result.complete, result
            assert min(site.resumed for site in result.sites.values()) > 2
            assert all(replies[name]["w"][0] == n for n, replies in enumerate(producer.replies) for name in fed.sites)


@over_sockets
@pytest.mark.parametrize("from_hub", [True, False])
async def test_nothing_is_lost_or_doubled_over_sockets(transport: str, from_hub: bool) -> None:
    async with federation(transport, 2) as fed:
        names = ["site-1", "site-2"] if from_hub else ["server", "site-2"]
        opener = fed.server if from_hub else fed.sites["site-1"]
        engines = {"server": fed.server, **fed.sites}
        checked = [Checked(pause=0.001).register(engines[name]) for name in names]
        producer = Arrays(60, 300_000, timeout=60)
        broken = 0

        async def judge(n: int, replies: Any) -> None:
            nonlocal broken
            if n % 7 == 3:  # whatever is under way at this moment is lost
                for link in list(fed.server._links):
                    link.drop(BrokenError("cut by the test"))
                    broken += 1

        producer.judge = judge
        result = await fed.stream(producer, names, opener=opener, options=StreamOptions(window=4))
        for one in checked:
            assert (one.seen, one.wrong) == (list(range(60)), [])
        assert result.complete, result
        assert broken >= 9
        assert all(replies[name]["w"][-1] == n for n, replies in enumerate(producer.replies) for name in names)


@on_memory
@pytest.mark.parametrize("size", [3, 40_000])
async def test_a_stream_between_sites_goes_on_however_often_their_links_to_the_hub_break(
    transport: str, size: int
) -> None:
    with FaultyNetwork(delayed(0.003)) as network:
        async with federation(transport, 3, settings=SMALL) as fed:
            checked = [Checked().register(fed.sites[name]) for name in ("site-2", "site-3")]
            producer = Arrays(30, size, timeout=600)
            async with anyio.create_task_group() as tg:
                tg.start_soon(cut_again_and_again, network, 0.1234)
                result = await fed.stream(
                    producer, ["site-2", "site-3"], opener=fed.sites["site-1"], options=StreamOptions(window=4)
                )
                tg.cancel_scope.cancel()
            for one in checked:
                assert (one.seen, one.wrong) == (list(range(30)), [])
            assert result.complete, result
            shared = fed.server._links._shared
            assert shared.relays.used == 0 or any(link.core.legs for link in fed.server._links)


@on_memory
async def test_a_stream_between_sites_outlives_its_hub(transport: str) -> None:
    listen = "memory://restarted-hub"
    async with (
        StreamEngine("site-1", connect=listen, settings=SMALL) as site_1,
        StreamEngine("site-2", connect=listen, settings=SMALL) as site_2,
    ):
        checked = Checked().register(site_2)
        producer = Arrays(200, 3_000, timeout=600)
        results: list[StreamResult] = []

        async def stream() -> None:
            results.append(
                await site_1.stream_objects(
                    "models", "weights", {}, ["site-2"], producer, site_1.new_context(),
                    options=StreamOptions(window=2, connect_grace=60),
                )
            )  # fmt: skip

        async with anyio.create_task_group() as tg:
            tg.start_soon(stream)
            hubs = 0
            while not results:
                async with StreamEngine("hub", listen=listen, settings=SMALL):
                    hubs += 1
                    seen = len(checked.seen)
                    with anyio.move_on_after(60):
                        while not results and len(checked.seen) < seen + 50:  # noqa: ASYNC110 - no event of its own
                            await anyio.sleep(0.001)
        assert results[0].complete, results[0]
        assert (checked.seen, checked.wrong) == (list(range(200)), [])
        assert hubs >= 4


@within_the_process
async def test_consume_goes_on_while_the_way_is_broken_and_its_reply_comes_afterwards(transport: str) -> None:
    with FaultyNetwork(delayed(0.05)) as network:
        async with federation(transport, 1) as fed:
            moments: list[float] = []

            async def consume(n: int) -> None:
                network.links[-1].cut()
                network.refused.update(("server", "site-1"))
                await anyio.sleep(20)
                moments.append(anyio.current_time())
                network.refused.clear()

            keeper = Keeper(consume).register(fed.sites["site-1"])
            producer = Numbers(1, timeout=59)
            result = await fed.stream(producer)
            assert (producer.rcs("site-1"), keeper.seen, keeper.rcs) == (["OK"], [0], ["OK"])
            assert result.complete
            assert anyio.current_time() - moments[0] < 16 + 1, "the longest pause between attempts to dial is 15 s"


@within_the_process
async def test_a_way_that_does_not_come_back_in_time_is_lost_at_both_ends(transport: str) -> None:
    with FaultyNetwork(delayed(0.05)) as network:
        async with federation(transport, 1) as fed:
            keeper = Keeper()

            async def block(_n: int) -> None:
                await keeper.block()

            keeper.do = block
            keeper.register(fed.sites["site-1"])
            producer = Numbers(2, timeout=300)
            moments: list[float] = []

            async def cut() -> None:
                await keeper.blocked.wait()
                moments.append(anyio.current_time())
                network.links[-1].cut()
                network.refused.update(("server", "site-1"))

            async with anyio.create_task_group() as tg:
                tg.start_soon(cut)
                result = await fed.stream(producer, options=StreamOptions(resume_window=40))
            assert anyio.current_time() - moments[0] == pytest.approx(40, abs=1e-3)
            assert producer.rcs("site-1") == ["COMMUNICATION_ERROR"] * 2
            site = result.sites["site-1"]
            assert (site.outcomes, site.rc) == ({"lost": 1, "unreachable": 1}, "COMMUNICATION_ERROR")
            assert site.reason == "site-1 did not come back within 40 s"
            assert keeper.rcs == ["COMMUNICATION_ERROR"]
            network.refused.clear()


@within_the_process
async def test_a_receiver_waits_no_longer_than_its_own_limit(transport: str) -> None:
    settings = EngineSettings(limits=Limits(resume_window=5))
    with FaultyNetwork(delayed(0.05)) as network:
        async with federation(transport, 1, settings=settings) as fed:
            keeper = Keeper()

            async def block(_n: int) -> None:
                moments.append(anyio.current_time())
                network.links[-1].cut()
                network.refused.update(("server", "site-1"))
                await keeper.block()

            moments: list[float] = []
            keeper.do = block
            keeper.register(fed.sites["site-1"])
            result = await fed.stream(Numbers(1, timeout=100), options=StreamOptions(resume_window=10))
            assert result.rc == "COMMUNICATION_ERROR"
            assert keeper.ended_at == pytest.approx(moments[0] + 5, abs=1e-3)
            assert anyio.current_time() == pytest.approx(moments[0] + 10, abs=1e-3)
            network.refused.clear()


def without_resumption(link: LinkControl) -> None:
    """Let no RESUME through, so that whoever tries to go on waits for an answer."""
    link.up.rewrite = link.down.rewrite = lambda frame: [] if frame.kind == FrameType.RESUME else [frame]


@on_memory
async def test_ways_that_come_and_go_before_the_stream_goes_on_do_not_prolong_its_window(transport: str) -> None:
    with FaultyNetwork(without_resumption) as network:
        async with federation(transport, 1, settings=EngineSettings(retry_max=1.0)) as fed:
            moments: list[float] = []

            async def block(_n: int) -> None:
                moments.append(anyio.current_time())
                await cut_again_and_again(network, 3)

            Keeper(block).register(fed.sites["site-1"])
            result = await fed.stream(Numbers(1, timeout=100), options=StreamOptions(resume_window=10))
            assert result.outcomes == {"lost": 1}
            assert anyio.current_time() == pytest.approx(moments[0] + 3 + 10, abs=1e-3)
            assert len(network.links) > 4


@within_the_process
async def test_deadlines_go_on_while_the_way_is_broken(transport: str) -> None:
    with FaultyNetwork(delayed(0.05)) as network:
        async with federation(transport, 1, settings=EngineSettings(retry_max=1.0)) as fed:
            keeper = Keeper().register(fed.sites["site-1"])
            producer = Numbers(3, timeout=2)

            async def outage() -> None:
                network.links[-1].cut()
                network.refused.update(("server", "site-1"))
                await anyio.sleep(5)
                network.refused.clear()

            async def judge(n: int, replies: Any) -> None:
                if n == 0:
                    tg.start_soon(outage)
                    await anyio.lowlevel.checkpoint()

            producer.judge = judge
            async with anyio.create_task_group() as tg:
                result = await fed.stream(producer, options=StreamOptions(max_lag=4))
            assert producer.rcs("site-1") == ["OK", "TIMEOUT", "TIMEOUT"]
            assert keeper.seen == [0, 1, 2], "what timed out is consumed all the same"
            site = result.sites["site-1"]
            assert (site.outcomes, site.late, site.rc) == ({"replied": 1, "timed_out": 2}, 2, "OK")


@within_the_process
async def test_an_abort_reaches_a_site_whose_way_comes_back(transport: str) -> None:
    with FaultyNetwork(delayed(0.05)) as network:
        async with federation(transport, 1) as fed:
            keeper = Keeper()
            ctx = fed.server.new_context("job")

            async def block(_n: int) -> None:
                network.links[-1].cut()
                network.refused.update(("server", "site-1"))
                await keeper.block()

            keeper.do = block
            keeper.register(fed.sites["site-1"])

            async def abort() -> None:
                await keeper.blocked.wait()
                await anyio.sleep(1)
                moments.append(anyio.current_time())
                ctx.get_run_abort_signal().trigger("enough")

            moments: list[float] = []
            async with anyio.create_task_group() as tg:
                tg.start_soon(abort)
                result = await fed.stream(Numbers(1, timeout=30), fl_ctx=ctx)
            assert result.rc == "TASK_ABORTED"
            assert anyio.current_time() == moments[0], "there is nobody whose acknowledgement could be awaited"
            assert keeper.rcs == []
            network.refused.clear()
            with anyio.fail_after(30):
                while not keeper.rcs:  # noqa: ASYNC110 - no event of its own
                    await anyio.sleep(0.1)
            assert keeper.rcs == ["TASK_ABORTED"]


@within_the_process
@pytest.mark.parametrize("seconds", [5, 30])
@pytest.mark.parametrize("value", [None, "enough"])
async def test_the_end_is_heard_when_the_way_is_back(transport: str, seconds: float, value: str | None) -> None:
    with FaultyNetwork(delayed(0.05)) as network:
        async with federation(transport, 1, settings=EngineSettings(retry_max=1.0)) as fed:
            keeper = Keeper().register(fed.sites["site-1"])
            producer = Numbers(1)
            moments: list[float] = []

            async def outage() -> None:
                network.links[-1].cut()
                network.refused.update(("server", "site-1"))
                moments.append(anyio.current_time())
                await anyio.sleep(seconds)
                network.refused.clear()

            async def judge(n: int, replies: Any) -> str | None:
                tg.start_soon(outage)
                await anyio.sleep(0.01)
                return value

            producer.judge = judge
            async with anyio.create_task_group() as tg:
                result = await fed.stream(producer)
                took = anyio.current_time() - moments[0]
            site = result.sites["site-1"]
            if value is None and seconds < 10:
                assert (result.rc, result.complete) == ("OK", True)
            else:
                assert took == pytest.approx(0.01 if value else 10.01, abs=1e-3)
                assert (site.rc, site.outcomes) == ("COMMUNICATION_ERROR", {"replied": 1})
                assert site.reason == "its way was broken when the stream ended"
                assert result.rc == ("OK" if value else "COMMUNICATION_ERROR")
            await until(lambda: bool(keeper.rcs), 60)
            assert keeper.rcs == ["OK"]


@on_memory
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_it_may_break_at_every_byte(transport: str, direction: str) -> None:
    """The link is cut after so many bytes more each time, from the first ones to the last that a stream needs."""
    objects, at = 4, 0
    with FaultyNetwork() as network:
        async with federation(transport, 1, settings=SMALL) as fed:
            checked = Checked(pause=0).register(fed.sites["site-1"])
            while True:
                before = len(network.links)
                checked.seen.clear()
                getattr(network.links[-1], direction).cut_after(at)
                result = await fed.stream(Arrays(objects, 2_000, timeout=60), options=StreamOptions(window=2))
                assert result.complete, (at, result)
                assert checked.seen == list(range(objects)), at
                if len(network.links) == before:
                    break
                at += 1 if at < 64 else 199
            await anyio.sleep(200)  # a site remembers a stream for so long of which the opener's last word was lost
    assert at > 1000


@on_memory
@pytest.mark.parametrize("opener", ["server", "site-2"])
async def test_a_site_that_claims_more_than_there_is_loses_its_stream_alone(transport: str, opener: str) -> None:
    def lie(frame: Frame) -> list[Frame]:
        if frame.kind == FrameType.RESUME:
            return [frame._replace(body=bodies.encode(bodies.Position(7, 9)))]
        return [frame]

    def on_link(link: LinkControl) -> None:
        link.up.delay = link.down.delay = 0.05
        if len(network.links) > 3:  # the first of each site is honest
            link.up.rewrite = lie

    with FaultyNetwork(on_link) as network:
        async with federation(transport, 3, settings=SMALL) as fed:
            checked = {name: Checked().register(fed.sites[name]) for name in ("site-1", "site-3")}

            async def judge(n: int, replies: Any) -> None:
                if n == 1:
                    network.link("site-1").cut()

            producer = Arrays(6, 30_000, timeout=60, judge=judge)
            engine = fed.server if opener == "server" else fed.sites["site-2"]
            result = await fed.stream(producer, ["site-1", "site-3"], opener=engine, options=StreamOptions(window=4))
            assert result.sites["site-1"].rc == "COMMUNICATION_ERROR"
            assert "is to go on at buffer 7, offset 9" in result.sites["site-1"].reason
            assert checked["site-3"].seen == list(range(6))
            assert result.sites["site-3"].outcomes == {"replied": 6}
            assert fed.server.sites() == set(fed.sites), "no link is to blame"


@on_memory
async def test_suspended_streams_count_against_their_openers_limit(transport: str) -> None:
    settings = EngineSettings(limits=Limits(streams=5), retry_max=0.1)
    with FaultyNetwork(delayed(0.01)) as network:
        async with federation(transport, 1, settings=settings) as fed:
            keeper = Keeper()

            async def block(_n: int) -> None:
                await keeper.block()

            keeper.do = block
            keeper.register(fed.server)
            site = fed.sites["site-1"]
            codes: list[str] = []

            async def stream() -> None:
                result = await fed.stream(
                    Numbers(1, timeout=300), ["server"], opener=site, options=StreamOptions(connect_grace=5)
                )
                codes.append(result.sites["server"].rc)

            async with anyio.create_task_group() as tg:
                for _ in range(4):
                    tg.start_soon(stream)
                while len(keeper.seen) < 4:  # noqa: ASYNC110 - no event of its own
                    await anyio.sleep(0.01)
                for _ in range(3):
                    network.link("site-1").cut()
                    await site.wait_for_sites(["server"])
                    tg.start_soon(stream)
                    await anyio.sleep(1)
                assert codes == ["SERVICE_UNAVAILABLE"] * 2
                site.run_abort_signal.trigger("enough")
            assert fed.server._links._resuming.count("site-1") == 0


@on_memory
async def test_another_life_of_the_opener_ends_its_old_streams_at_once(transport: str) -> None:
    listen = "memory://opener-hub"
    with FaultyNetwork(delayed(0.05)) as network:
        async with StreamEngine("hub", listen=listen) as hub:
            keeper = Keeper()

            async def block(_n: int) -> None:
                await keeper.block()

            keeper.do = block
            keeper.register(hub)
            async with anyio.create_task_group() as tg:

                async def first_life() -> None:
                    async with StreamEngine("site-1", connect=listen) as site:
                        await site.wait_for_sites(["hub"])
                        await site.stream_objects(
                            "models", "weights", {}, ["hub"], Numbers(1, timeout=300), site.new_context()
                        )

                tg.start_soon(first_life)
                await keeper.blocked.wait()
                network.links[-1].cut()
                network.refused.add("site-1")
                await anyio.sleep(1)
                assert keeper.rcs == []
                network.refused.clear()
                async with StreamEngine("site-1", connect=listen) as second:
                    await second.wait_for_sites(["hub"])
                    assert keeper.rcs == ["COMMUNICATION_ERROR"]
                tg.cancel_scope.cancel()


@on_memory
async def test_a_site_that_begins_anew_has_lost_its_streams(transport: str) -> None:
    with FaultyNetwork(delayed(0.05)) as network:
        async with federation(transport, 0) as fed:
            listen = fed.server.addresses[0]
            keeper = Keeper()
            codes: list[Any] = []
            moments: list[float] = []

            async def block(_n: int) -> None:
                await keeper.block()

            keeper.do = block
            producer = Numbers(1, timeout=300)

            async def stream() -> None:
                result = await fed.stream(producer, ["site-1"])
                moments.append(anyio.current_time())
                codes.append(result.sites["site-1"].outcomes)

            async with anyio.create_task_group() as tg:

                async def first_life() -> None:
                    async with StreamEngine("site-1", connect=listen) as site:
                        keeper.register(site)
                        with anyio.CancelScope(shield=True):
                            await crashed.wait()

                crashed = anyio.Event()
                tg.start_soon(first_life)
                await fed.server.wait_for_sites(["site-1"])
                tg.start_soon(stream)
                await keeper.blocked.wait()
                network.refused.add("site-1")
                network.link("site-1").cut()
                await anyio.sleep(5)
                network.refused.clear()
                network.refused.clear()
                async with StreamEngine("site-1", connect=listen) as second:
                    began = anyio.current_time()
                    with anyio.move_on_after(30):
                        while not codes:  # noqa: ASYNC110 - no event of its own
                            await anyio.sleep(0.01)
                    del second
                crashed.set()
            assert codes == [{"lost": 1}]
            assert moments[0] - began < 16
