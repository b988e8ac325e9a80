"""Does a stream get its share of a link, whatever else is on it?

Two parts, each measurement on a new link over TCP to one site in a new process. *Latency*: how long a 100-byte object
takes to be answered, alone, beside a stream that keeps the link full with objects of 1 GiB, and beside that and 1,000
streams that each send an object once a second. Until the first object of 1 GiB has been answered, the site touches new
memory, which holds its loop up longer than the wire does: those latencies are told apart, as *cold*. *Streams*: 1,000
streams at once send 100-byte objects for some seconds; how many each of them got answered tells how fair they are to
each other (Jain's index: 1 when all are equal, 1/n when one has everything).
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any

import anyio
import anyio.to_thread

from fanstream import FLContext, ObjectProducer, ReturnCode, Shareable, StreamContext, StreamEngine

from .harness.figures import GIB, MIB, add_loops, arguments, loops, say, spread
from .harness.teams import START_TIMEOUT, Worker
from .peers import Work, payload
from .peers.fanstream import TIMEOUT, make_object, site_name, stream

SIZE = 100
SITE = [site_name(0)]


class Phases:
    """When what is measured begins and ends, on the clock of ``time.perf_counter``.

    Args:
        seconds: how long it takes once it is warm.
    """

    def __init__(self, seconds: float) -> None:
        self.warm = self.end = math.inf
        self._seconds = seconds

    def begin(self) -> None:
        """All is warm; calls after the first change nothing."""
        if self.warm == math.inf:
            self.warm = time.perf_counter()
            self.end = self.warm + self._seconds


class Repeats(ObjectProducer):
    """Sends one object again and again until the end, with a pause before each.

    Attributes:
        cold: the latencies in seconds of the objects that were sent before all was warm.
        warm: those of the others.
    """

    def __init__(self, obj: Shareable, phases: Phases, pause: float = 0.0) -> None:
        self.cold: list[float] = []
        self.warm: list[float] = []
        self._obj = obj
        self._phases = phases
        self._pause = pause
        self._sent = 0.0

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, float]:
        if self._pause:
            await anyio.sleep(self._pause)
        self._sent = time.perf_counter()
        return (None, 0) if self._sent >= self._phases.end else (self._obj, TIMEOUT)

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        noted = self.cold if self._sent < self._phases.warm else self.warm
        noted.append(time.perf_counter() - self._sent)
        return False if any(reply.get_return_code() != ReturnCode.OK for reply in replies.values()) else None


class Bulk(Repeats):
    """Keeps the link full: once its first object is answered, the site has touched the memory that it takes."""

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        verdict = await super().process_replies(replies, stream_ctx, fl_ctx)
        self._phases.begin()
        return verdict


def quantile(values: Sequence[float], share: float) -> float:
    """The least of the values that *share* of them do not exceed."""
    found = sorted(values)
    return found[max(0, math.ceil(share * len(found)) - 1)]


def latency(values: Sequence[float]) -> dict[str, Any]:
    """What is said of some latencies: milliseconds, to four digits; in a quick run there may be none."""
    if not values:
        return {"objects": 0}
    named = {"p50_ms": quantile(values, 0.5), "p99_ms": quantile(values, 0.99), "max_ms": max(values)}
    return {"objects": len(values), **{name: float(f"{value * 1000:.4g}") for name, value in named.items()}}


@asynccontextmanager
async def link(loop: str) -> AsyncIterator[StreamEngine]:
    """An engine of this process, and one site in another."""
    async with StreamEngine("server", listen="tcp://127.0.0.1:0") as engine:
        arguments = ["fanstream", "site", f"--address={engine.addresses[0]}", "--index=0", f"--loop={loop}"]
        with closing(Worker("benchmarks.peers", *arguments)) as worker:
            with anyio.fail_after(START_TIMEOUT):
                await engine.wait_for_sites(SITE)
            await anyio.to_thread.run_sync(worker.hear, START_TIMEOUT)
            yield engine


async def measure_latency(loop: str, seconds: float, streams: int, size: int) -> list[dict[str, Any]]:
    """Latencies of a small object every 2 ms, beside a stream of objects of *size* bytes, and beside *streams* others.

    A *size* of 0 leaves the first of these out.
    """
    phases = Phases(seconds)
    small = Shareable({"x": payload(SIZE)})
    probe = Repeats(small, phases, pause=0.002)
    bulk = Bulk(make_object(Work(size, 1, tensors=1)), phases) if size else None
    async with link(loop) as engine, anyio.create_task_group() as tg:
        tg.start_soon(stream, engine, SITE, probe, 1)
        for _ in range(streams):
            tg.start_soon(stream, engine, SITE, Repeats(small, phases, pause=1.0), 1)
        if bulk is None:
            phases.begin()
        else:
            tg.start_soon(stream, engine, SITE, bulk, 1)

    load = " and ".join([*(["bulk"] if bulk else []), *([f"{streams} streams"] if streams else [])]) or "nothing"
    row = {"part": "latency", "loop": loop, "beside": load}
    if bulk is None:
        return [row | latency(probe.warm)]
    return [
        row
        | {"beside": f"{load}, {name}"}
        | latency(values)
        | {"bulk_gb_per_s": spread(size / each / 1e9 for each in moved)}
        for name, values, moved in (("cold", probe.cold, bulk.cold), ("warm", probe.warm, bulk.warm))
    ]


async def measure_streams(loop: str, seconds: float, streams: int) -> dict[str, Any]:
    """How many objects each of many streams gets answered."""
    phases = Phases(seconds)
    small = Shareable({"x": payload(SIZE)})
    producers = [Repeats(small, phases) for _ in range(streams)]
    async with link(loop) as engine:
        phases.begin()
        async with anyio.create_task_group() as tg:
            for producer in producers:
                tg.start_soon(stream, engine, SITE, producer, 1)
        passed = time.perf_counter() - phases.warm
    answered = [len(producer.warm) for producer in producers]
    return {
        "part": "streams",
        "loop": loop,
        "streams": streams,
        "objects_per_stream": spread(answered),
        "jain": round(sum(answered) ** 2 / (streams * sum(each**2 for each in answered)), 4),
        "replies_per_s": round(sum(answered) / passed),
    }


async def measure(loop: str, seconds: float, streams: int, size: int) -> list[dict[str, Any]]:
    """Measure both parts on one event loop."""
    rows = []
    for others, bulk in ((0, 0), (0, size), (streams, size)):
        rows += await measure_latency(loop, seconds, others, bulk)
    return [*rows, await measure_streams(loop, seconds, streams)]


def main() -> None:
    parser = arguments(__doc__)
    add_loops(parser)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each measurement takes once it is warm")
    parser.add_argument("--size", type=int, default=GIB, help="bytes of an object of the stream that fills the link")
    options = parser.parse_args()
    if options.quick:
        options.streams, options.seconds, options.size = 20, 0.2, 8 * MIB
    rows: list[dict[str, Any]] = []
    for loop in options.loops or loops():
        backend = {"use_uvloop": loop == "uvloop"}
        rows += anyio.run(measure, loop, options.seconds, options.streams, options.size, backend_options=backend)
    say("fairness", options, rows)


if __name__ == "__main__":
    main()
