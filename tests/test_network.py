"""What ``Network`` foretells is what streams reach."""

from __future__ import annotations

import math
import re
from typing import Any

import anyio
import numpy as np
import pytest
from pydantic import ValidationError

from fanstream import (
    EngineSettings,
    FLContext,
    Limits,
    ObjectProducer,
    Shareable,
    StreamContext,
    StreamEngine,
    StreamOptions,
)
from fanstream.network import Network
from fanstream.options import GIB, KIB, MIB
from fanstream.protocol.frames import SMALL_OBJECT
from fanstream.testing import Direction, FaultyNetwork, LinkControl, asyncio_backend
from fanstream.testing.faults import CAPACITY

# --- the calculator's arguments and answers ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bandwidth": 0, "round_trip": 0.1}, "bandwidth.*=0"),
        ({"bandwidth": -1, "round_trip": 0.1}, "bandwidth.*=-1"),
        ({"bandwidth": math.inf, "round_trip": 0.1}, "bandwidth.*finite"),
        ({"bandwidth": 1e6, "round_trip": -0.1}, "round_trip.*=-0.1"),
        ({"bandwidth": 1e6, "round_trip": math.nan}, "round_trip.*finite"),
        ({"bandwidth": 1e6}, "round_trip"),
    ],
)
def test_a_network_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.compile(message, re.DOTALL)):
        Network(**fields)


def test_a_misspelt_field_is_refused_by_its_name() -> None:
    with pytest.raises(ValidationError, match="latency"):
        Network(bandwidth=1e6, round_trip=0.1, latency=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"object_size": 0}, ValueError, "object_size is 0, expected at least 1"),
        ({"object_size": 1.5}, TypeError, "object_size is 1.5 of type float"),
        ({"object_size": 1, "sites": 0}, ValueError, "sites is 0"),
        ({"object_size": 1, "sites": True}, TypeError, "sites is True of type bool"),
        ({"object_size": 100, "memory": 99}, ValueError, "memory is 99 bytes, less than one object of 100"),
        ({"object_size": 100, "memory": "1 GiB"}, TypeError, "memory is '1 GiB' of type str"),
        ({"object_size": 2 * 64 * GIB}, ValueError, "137438953472 bytes, more than limits.object of 68719476736"),
    ],
)
def test_advice_on_nonsense_is_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Network(bandwidth=1e6, round_trip=0.1).advise(**arguments)


def test_settings_that_the_sites_would_refuse_are_not_estimated() -> None:
    with pytest.raises(ValueError, match=r"128 objects go unanswered, more than limits.backlog of 100"):
        Network(bandwidth=1e6, round_trip=0.1).estimate(
            object_size=1, options=StreamOptions(window=64), limits=Limits(backlog=100)
        )


def test_the_calculator_and_the_protocol_agree_on_which_objects_need_a_grant() -> None:
    def rate(size: int, window: int, limits: Limits) -> float:
        options = StreamOptions(window=window)
        return Network(bandwidth=1e9, round_trip=0.1).estimate(object_size=size, options=options, limits=limits).rate

    tight = Limits(origin_bytes=MIB)  # so little that nothing is set aside
    assert [rate(SMALL_OBJECT, 4, tight), rate(SMALL_OBJECT + 1, 4, tight)] == pytest.approx([40, 20], rel=0.01)
    assert [rate(SMALL_OBJECT, 1, tight), rate(SMALL_OBJECT + 1, 1, tight)] == pytest.approx([10, 10], rel=0.01)
    assert rate(SMALL_OBJECT + 1, 4, Limits()) == pytest.approx(40, rel=0.01)


@pytest.mark.parametrize("object_size", [1, KIB, 64 * KIB, MIB, 64 * MIB])
@pytest.mark.parametrize("bandwidth", [1e6, 125e6, 1.25e9])
@pytest.mark.parametrize("round_trip", [0.0, 0.001, 0.05, 0.2])
def test_what_is_advised_fills_the_line_and_one_object_less_does_not(
    object_size: int, bandwidth: float, round_trip: float
) -> None:
    network = Network(bandwidth=bandwidth, round_trip=round_trip)
    advised = network.advise(object_size=object_size)
    if advised.options.window == 4096:  # so small that no window holds enough of them
        assert advised.bound == "StreamOptions.window"
        return
    assert advised.bound == "bandwidth"
    assert advised.utilisation == pytest.approx(1)
    assert advised.opener_memory == advised.site_memory == advised.options.window * object_size
    if advised.options.window > 1:
        fewer = StreamOptions(window=advised.options.window - 1)
        assert network.estimate(object_size=object_size, options=fewer, limits=advised.limits).utilisation < 1


def test_little_memory_costs_rate_and_the_advice_says_so() -> None:
    network = Network(bandwidth=125e6, round_trip=0.1)
    ample, tight = network.advise(object_size=8 * MIB), network.advise(object_size=8 * MIB, memory=17 * MIB)
    assert (ample.options.window, tight.options.window) == (3, 2)
    assert (tight.bound, tight.opener_memory, tight.site_memory) == ("StreamOptions.window", 16 * MIB, 16 * MIB)
    assert tight.rate == pytest.approx(2 / (0.1 + 8 * MIB / 125e6))
    assert tight.utilisation == pytest.approx(tight.rate / ample.rate)
    assert "16 MiB at the opener" in str(tight)
    assert "bound by StreamOptions.window" in str(tight)


def test_sites_share_the_bandwidth_and_one_copy_at_the_opener() -> None:
    network = Network(bandwidth=125e6, round_trip=0.1)
    one, eight = (network.advise(object_size=MIB, sites=sites) for sites in (1, 8))
    assert eight.rate == pytest.approx(one.rate / 8)
    assert eight.throughput == pytest.approx(one.throughput)
    assert eight.opener_memory == eight.options.window * MIB < one.opener_memory


def test_a_budget_that_holds_fewer_objects_than_the_window_is_the_bound() -> None:
    network = Network(bandwidth=1e9, round_trip=0.1)
    found = network.estimate(object_size=64 * MIB, options=StreamOptions(window=16))
    assert (found.bound, found.site_memory) == ("Limits.window", 256 * MIB)
    found = network.estimate(object_size=MIB, options=StreamOptions(window=16), limits=Limits(origin_bytes=4 * MIB))
    assert (found.bound, found.site_memory) == ("Limits.origin_bytes", 4 * MIB)


# --- what streams reach ---


class Line(Direction):
    """A way that holds what is under way on it besides what a socket holds, and moves packets; slow ones small."""

    @property
    def _room(self) -> int:
        free = CAPACITY + int(self.rate * self.delay) - self._size
        return 0 if self._ended or free < CAPACITY // 2 else free  # a socket does not wake its writer for each packet

    def _put(self, data: bytes | memoryview, now: float) -> None:
        packet = max(1460, min(16 * KIB, int(self.rate * self.delay / 50)))
        for start in range(0, len(data), packet):
            super()._put(data[start : start + packet], now)


class Blocks(ObjectProducer):
    """Produces the same array again and again, and notes when the replies to each were complete."""

    def __init__(self, number: int, size: int) -> None:
        self.obj = Shareable({"data": np.zeros(size, np.uint8)})
        self.left = number
        self.times: list[float] = []

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, float]:
        if not self.left:
            return None, 0
        self.left -= 1
        return self.obj, 3600

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        self.times.append(anyio.current_time())


async def reached(network: Network, size: int, options: StreamOptions, limits: Limits, *, rounds: int = 3) -> float:
    """Measure the rate of a stream to one site, in objects per second; the first window of objects is left out."""

    def lay(link: LinkControl) -> None:
        for way in (link.up, link.down):
            way.__class__ = Line
            way.delay, way.rate = network.round_trip / 2, network.bandwidth

    settings = EngineSettings(limits=limits)
    producer = Blocks((1 + rounds) * options.window, size)
    with FaultyNetwork(lay):
        async with (
            StreamEngine("server", listen="memory://line", settings=settings) as server,
            StreamEngine("site-1", connect="memory://line", settings=settings) as site,
        ):

            @site.consumer("models", "weights")
            async def take(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> None: ...

            await server.wait_for_sites(["site-1"])
            context = server.new_context()
            result = await server.stream_objects(
                "models", "weights", {}, ["site-1"], producer, context, options=options
            )
    assert result.complete
    first = producer.times[options.window - 1]
    return rounds * options.window / (producer.times[-1] - first)


virtual_time = pytest.mark.parametrize("anyio_backend", [asyncio_backend()], ids=["asyncio"], scope="module")

GRID = [
    # window, object, round trip, bandwidth
    (1, KIB, 0.001, 1e6),
    (4, KIB, 0.001, 1e6),
    (16, KIB, 0.02, 1e6),
    (64, KIB, 0.001, 1e9),
    (64, KIB, 0.05, 1e7),
    (16, KIB, 0.2, 1e9),
    (1, 60 * KIB, 0.05, 1e6),
    (16, 60 * KIB, 0.2, 1e8),
    (64, 60 * KIB, 0.02, 1e8),
    (1, 256 * KIB, 0.001, 1e6),
    (4, 256 * KIB, 0.05, 1e7),
    (16, 256 * KIB, 0.2, 1e9),
    (1, MIB, 0.001, 1e9),
    (1, MIB, 0.05, 1e8),
    (1, MIB, 0.05, 1e9),
    (2, MIB, 0.05, 1e9),
    (64, MIB, 0.05, 1e9),
    (4, MIB, 0.02, 1e8),
    (16, MIB, 0.2, 1e8),
    (1, 8 * MIB, 0.001, 1e9),
    (1, 8 * MIB, 0.2, 1e8),
    (3, 8 * MIB, 0.2, 1e9),
]


@virtual_time
@pytest.mark.anyio
@pytest.mark.parametrize(("window", "size", "round_trip", "bandwidth"), GRID)
async def test_a_stream_reaches_what_is_foretold(window: int, size: int, round_trip: float, bandwidth: float) -> None:
    network, options = Network(bandwidth=bandwidth, round_trip=round_trip), StreamOptions(window=window)
    foretold = network.estimate(object_size=size, options=options)
    assert await reached(network, size, options, Limits()) == pytest.approx(foretold.rate, rel=0.15)


@virtual_time
@pytest.mark.anyio
@pytest.mark.parametrize(
    ("limits", "window", "size", "bound"),
    [
        (Limits(window=MIB), 16, MIB, "Limits.window"),
        (Limits(window=4 * MIB), 64, 256 * KIB, "Limits.window"),
        (Limits(window=MIB), 1, 8 * MIB, "StreamOptions.window"),
        (Limits(origin_bytes=7 * MIB // 2), 16, MIB, "Limits.origin_bytes"),
        (Limits(origin_bytes=2 * MIB), 4, 3 * MIB, "Limits.origin_bytes"),
    ],
)
async def test_it_reaches_what_is_foretold_where_a_limit_binds(
    limits: Limits, window: int, size: int, bound: str
) -> None:
    network, options = Network(bandwidth=2e8, round_trip=0.05), StreamOptions(window=window)
    foretold = network.estimate(object_size=size, options=options, limits=limits)
    assert foretold.bound == bound
    assert await reached(network, size, options, limits) == pytest.approx(foretold.rate, rel=0.15)


@virtual_time
@pytest.mark.anyio
@pytest.mark.parametrize(
    ("bandwidth", "round_trip", "size"),
    [(1e6, 0.05, KIB), (1e7, 0.02, 60 * KIB), (1e8, 0.02, MIB), (1e8, 0.1, 2 * MIB)],
)
async def test_what_is_advised_fills_a_line(bandwidth: float, round_trip: float, size: int) -> None:
    network = Network(bandwidth=bandwidth, round_trip=round_trip)
    advised = network.advise(object_size=size)
    rate = await reached(network, size, advised.options, advised.limits, rounds=2)
    assert rate * size == pytest.approx(bandwidth, rel=0.15)
