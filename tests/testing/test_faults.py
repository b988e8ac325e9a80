from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import anyio
import numpy as np
import pytest

from fanstream import EngineSettings, Shareable, StreamEngine, StreamOptions
from fanstream.errors import BrokenError, ConnectError
from fanstream.protocol.frames import FrameType
from fanstream.testing import FaultyNetwork, Frame, LinkControl, RawPeer, asyncio_backend, trio_backend
from fanstream.testing.faults import CAPACITY
from fanstream.transports import Wire, dial
from fanstream.transports.addresses import Address
from fanstream.transports.memory import MemoryListener
from tests.federation import Keeper, Numbers, until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(
        "anyio_backend",
        [pytest.param(asyncio_backend(), id="asyncio"), pytest.param(trio_backend(), id="trio")],
        indirect=True,
        scope="module",
    ),
]


class Ends:
    """A link of the faulty network with a raw peer at each end."""

    def __init__(self, control: LinkControl, near: RawPeer, far: RawPeer) -> None:
        self.control = control
        self.near = near
        self.far = far

    async def timed(self, frame: Frame) -> float:
        """Send a frame up; return how long it took."""
        began = anyio.current_time()
        self.near.send(frame)
        assert await self.far.receive() == frame
        return anyio.current_time() - began


@asynccontextmanager
async def linked() -> AsyncIterator[Ends]:
    accepted: list[Wire] = []
    listener = MemoryListener("faulty", accepted.append)
    with anyio.fail_after(3600), FaultyNetwork() as network:
        near = await dial(Address("memory", host="faulty"), "site-1", allow_plain=False)
        async with RawPeer.over(near) as one, RawPeer.over(accepted[0]) as other:
            yield Ends(network.link("site-1"), one, other)
    listener.close()


def frame(seq: int, size: int = 0) -> Frame:
    return Frame(FrameType.OBJECT, alias=1, seq=seq, body=bytes([seq % 256]) * size)


async def test_a_delay_is_how_long_a_frame_is_under_way() -> None:
    async with linked() as ends:
        ends.control.up.delay = 0.25
        assert await ends.timed(frame(0)) == pytest.approx(0.25)
        assert await ends.timed(frame(1, 100_000)) == pytest.approx(0.25)
        ends.control.up.delay = 0
        assert await ends.timed(frame(2)) == pytest.approx(0)


async def test_a_shorter_delay_does_not_reorder_bytes() -> None:
    async with linked() as ends:
        ends.control.up.delay = 1
        ends.near.send(frame(0))
        await anyio.sleep(0.5)
        ends.control.up.delay = 0
        ends.near.send(frame(1))
        assert [(await ends.far.receive()).seq for _ in range(2)] == [0, 1]


async def test_a_rate_is_bytes_per_second() -> None:
    async with linked() as ends:
        ends.control.up.rate = 50_000
        assert await ends.timed(frame(0, 1_000_000 - 24)) == pytest.approx(20)
        assert await ends.timed(frame(1, 50_000 - 24)) == pytest.approx(1)


async def test_a_stall_holds_everything_until_it_is_resumed() -> None:
    async with linked() as ends:
        ends.control.up.stall()
        ends.near.send(frame(0))
        with anyio.move_on_after(1000) as waited:
            await ends.far.receive()
        assert waited.cancelled_caught
        ends.far.send(frame(1))
        assert (await ends.near.receive()).seq == 1, "the other direction goes on"
        ends.control.resume()
        assert (await ends.far.receive()).seq == 0


async def test_a_stalled_sender_waits_once_the_link_is_full() -> None:
    async with linked() as ends:
        ends.control.stall()
        ends.near.send(*(frame(n, 10_000) for n in range(200)))
        await anyio.sleep(10)
        assert CAPACITY - 20_000 < ends.control.up.under_way <= CAPACITY + 20_000
        ends.control.resume()
        assert [(await ends.far.receive()).seq for _ in range(200)] == list(range(200))
        assert ends.control.up.arrived == ends.control.up.sent == 200 * 10_024


async def test_a_stall_hides_the_end_of_the_other_side() -> None:
    async with linked() as ends:
        ends.control.up.stall()
        ends.near.close()
        await ends.near.closed()
        with anyio.move_on_after(1000) as waited:
            await ends.far.closed()
        assert waited.cancelled_caught
        ends.control.up.resume()
        await ends.far.closed()


async def test_the_end_is_under_way_as_long_as_a_byte() -> None:
    async with linked() as ends:
        ends.control.up.delay = 2
        ends.near.send(frame(0))
        await anyio.sleep(1)
        began = anyio.current_time()
        ends.near.close()
        assert (await ends.far.receive()).seq == 0
        assert anyio.current_time() - began == pytest.approx(1)
        await ends.far.closed()
        assert anyio.current_time() - began == pytest.approx(2)


async def test_a_cut_reaches_both_ends_at_once() -> None:
    async with linked() as ends:
        ends.control.up.delay = 10
        ends.near.send(frame(0))
        await anyio.sleep(1)
        began = anyio.current_time()
        ends.control.cut()
        await ends.near.closed()
        await ends.far.closed()
        assert anyio.current_time() == pytest.approx(began)
        assert isinstance(ends.near.reason, BrokenError)
        assert isinstance(ends.far.reason, BrokenError)
        assert not ends.control.alive
        assert ends.control.up.under_way == 0


@pytest.mark.parametrize("count", [0, 1, 24, 30, 5000])
async def test_a_cut_after_so_many_bytes_lets_exactly_those_arrive(count: int) -> None:
    async with linked() as ends:
        await ends.timed(frame(0, 10))
        before = ends.control.up.arrived
        ends.control.up.cut_after(count)
        ends.near.send(*(frame(n, 6) for n in range(1000)))
        await ends.far.closed()
        await ends.near.closed()
        assert ends.control.up.arrived - before == count
        for number in range(count // 30):
            assert (await ends.far.receive()).seq == number


async def test_frames_are_dropped_doubled_and_reordered_whole() -> None:
    async with linked() as ends:
        held: list[Frame] = []

        def rewrite(frame: Frame) -> Iterable[Frame]:
            if frame.seq == 1:
                return []
            if frame.seq == 2:
                return [frame, frame]
            if frame.seq == 3:
                held.append(frame)
                return []
            return [frame, *held]

        ends.control.up.rewrite = rewrite
        whole = b"".join(frame(n, 7).pack() for n in range(5))
        for at in range(0, len(whole), 11):  # however the sender cuts them
            ends.near.send(whole[at : at + 11])
        assert [(await ends.far.receive()).seq for _ in range(5)] == [0, 2, 2, 4, 3]


async def test_a_negative_count_is_refused() -> None:
    async with linked() as ends:
        with pytest.raises(ValueError, match=r"count is -1"):
            ends.control.up.cut_after(-1)


async def test_a_refused_site_cannot_dial() -> None:
    listener = MemoryListener("refusing", lambda wire: None)
    with FaultyNetwork() as network:
        network.refused.add("site-1")
        with pytest.raises(ConnectError, match="memory://refusing: refuses site-1"):
            await dial(Address("memory", host="refusing"), "site-1", allow_plain=False)
        with pytest.raises(LookupError, match="site-1 has dialled no link"):
            network.link("site-1")
    await dial(Address("memory", host="refusing"), "site-1", allow_plain=False)
    listener.close()


@pytest.mark.parametrize("listen", ["memory://faulty-engines", None])
async def test_engines_are_connected_by_it_and_feel_its_faults(listen: str | None) -> None:
    links: list[LinkControl] = []

    def slow(link: LinkControl) -> None:
        link.up.delay = link.down.delay = 0.5
        links.append(link)

    with anyio.fail_after(60), FaultyNetwork(slow) as network:
        async with (
            StreamEngine("server", listen=listen) as server,
            StreamEngine("site-1", connect=listen) as site,
        ):
            Keeper().register(site)
            await server.wait_for_sites(["site-1"])
            began = anyio.current_time()
            result = await server.stream_objects("models", "weights", {}, ["site-1"], Numbers(3), server.new_context())
            assert result.complete
            # Each object's round trip, and that of the end; a link that is dialled for it greets first.
            trips = 4 if listen else 5
            assert anyio.current_time() - began == pytest.approx(trips * 1.0)
    assert links == network.links
    assert len(links) == 1
    assert not links[0].alive


async def test_a_frozen_peer_is_noticed_after_its_silence() -> None:
    real = time.monotonic()
    with anyio.fail_after(60), FaultyNetwork() as network:
        async with (
            StreamEngine("server", listen="memory://frozen") as server,
            StreamEngine("site-1", connect="memory://frozen"),
        ):
            await server.wait_for_sites(["site-1"])
            await anyio.sleep(EngineSettings().heartbeat + 2)
            network.refused.add("site-1")
            network.link("site-1").stall()
            began = anyio.current_time()
            await until(lambda: not server.sites(), 60)
            # The last heartbeat came two seconds before it, or up to a sixteenth of its period earlier.
            early = 2 + EngineSettings().heartbeat / 16
            assert EngineSettings().silence - early < anyio.current_time() - began < EngineSettings().silence - 1.99
            network.refused.clear()
            await server.wait_for_sites(["site-1"])
    assert time.monotonic() - real < 5


async def test_a_random_network_loses_nothing_that_is_not_cut() -> None:
    rng = random.Random(7)

    def wild(link: LinkControl) -> None:
        for direction in (link.up, link.down):
            direction.delay, direction.rate = rng.random(), rng.uniform(1e5, 1e7)

    class Large(Numbers):
        async def produce(self, stream_ctx, fl_ctx):  # type: ignore[no-untyped-def]
            obj, timeout = await super().produce(stream_ctx, fl_ctx)
            if obj is not None:
                obj["w"] = np.full(50_000, obj["n"], dtype=np.float32)
            return obj, timeout

    with anyio.fail_after(600), FaultyNetwork(wild):
        async with StreamEngine("server", listen="memory://wild") as server, anyio.create_task_group() as tg:
            seen: dict[str, list[float]] = {}

            async def site(name: str) -> None:
                async with StreamEngine(name, connect="memory://wild") as engine:

                    @engine.consumer("models", "weights")
                    async def consume(shareable: Shareable, stream_ctx: object, fl_ctx: object) -> None:
                        seen.setdefault(name, []).append(float(shareable["w"].sum()))

                    await anyio.sleep_forever()

            names = [f"site-{number}" for number in range(5)]
            for name in names:
                tg.start_soon(site, name)
            await server.wait_for_sites(names)
            result = await server.stream_objects(
                "models", "weights", {}, names, Large(10, timeout=300), server.new_context(),
                options=StreamOptions(window=4),
            )  # fmt: skip
            assert result.complete
            tg.cancel_scope.cancel()
    assert seen == {name: [n * 50_000.0 for n in range(10)] for name in names}
