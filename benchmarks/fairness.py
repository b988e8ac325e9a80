"""Does a stream get its share of a link, whatever else is on it?

Three parts, on one link over TCP to one site in a process of its own. *Latency*: how long a 100-byte object takes to be
answered, alone, and beside a stream that keeps the link full with objects of 1 GiB. *Streams*: 1,000 streams at once
send 100-byte objects for some seconds; how many each of them got answered tells how fair they are to each other
(Jain's index: 1 when all are equal, 1/n when one has everything). *Both*: the latency, beside bulk and 1,000 streams
that each send an object once a second.
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


class Until(ObjectProducer):
    """Sends one object again and again until a moment, with a pause before each, and notes each latency in seconds."""

    def __init__(self, obj: Shareable, until: float, pause: float = 0.0) -> None:
        self.latencies: list[float] = []
        self._obj = obj
        self._until = until
        self._pause = pause
        self._sent = 0.0

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, float]:
        if self._pause:
            await anyio.sleep(self._pause)
        self._sent = time.perf_counter()
        return (None, 0) if self._sent >= self._until else (self._obj, TIMEOUT)

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        self.latencies.append(time.perf_counter() - self._sent)
        return False if any(reply.get_return_code() != ReturnCode.OK for reply in replies.values()) else None


def quantile(values: Sequence[float], share: float) -> float:
    """The least of the values that *share* of them do not exceed."""
    found = sorted(values)
    return found[max(0, math.ceil(share * len(found)) - 1)]


def latency(values: Sequence[float]) -> dict[str, Any]:
    """What is said of some latencies: milliseconds, to four digits."""
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


class Load:
    """What keeps a link busy while something else is measured.

    Args:
        engine: the opener.
        bulk: an object to keep the link full with, or None.
        streams: how many streams send small objects.
        pause: seconds between two small objects of a stream.
    """

    def __init__(self, engine: StreamEngine, bulk: Shareable | None, streams: int, pause: float) -> None:
        self._engine = engine
        self._bulk = bulk
        self._streams = streams
        self._pause = pause
        self.moved: list[float] = []
        self.answered: list[int] = []

    async def run(self, seconds: float, probe: Until | None) -> None:
        """Run all of it, and a stream of *probe* beside it."""
        small = Shareable({"x": payload(SIZE)})
        until = time.perf_counter() + seconds
        loads = [Until(small, until, self._pause) for _ in range(self._streams)]
        async with anyio.create_task_group() as tg:
            if self._bulk is not None:
                bulk = Until(self._bulk, until)
                tg.start_soon(stream, self._engine, SITE, bulk, 1)
                self.moved = bulk.latencies
            for load in loads:
                tg.start_soon(stream, self._engine, SITE, load, 1)
            if probe is not None:
                tg.start_soon(stream, self._engine, SITE, probe, 1)
        self.answered = [len(load.latencies) for load in loads]


async def measure(loop: str, seconds: float, streams: int, size: int) -> list[dict[str, Any]]:
    """Measure the three parts on one event loop."""
    rows: list[dict[str, Any]] = []
    bulk = make_object(Work(size, 1, tensors=1))
    small = Shareable({"x": payload(SIZE)})
    async with link(loop) as engine:
        for name, obj, others in (
            ("alone", None, 0),
            ("beside bulk", bulk, 0),
            (f"beside bulk and {streams} streams", bulk, streams),
        ):
            load = Load(engine, obj, others, pause=1.0)
            probe = Until(small, time.perf_counter() + seconds, pause=0.002)
            await load.run(seconds, probe)
            row = {"part": "latency", "loop": loop, "load": name, **latency(probe.latencies)}
            if load.moved:
                row["bulk_gb_per_s"] = spread(size / each / 1e9 for each in load.moved)
            rows.append(row)
        load = Load(engine, None, streams, pause=0.0)
        started = time.perf_counter()
        await load.run(seconds, None)
        passed = time.perf_counter() - started
        total = sum(load.answered)
        rows.append(
            {
                "part": "streams",
                "loop": loop,
                "streams": streams,
                "objects_per_stream": spread(load.answered),
                "jain": round(total**2 / (streams * sum(each**2 for each in load.answered)), 4),
                "replies_per_s": round(total / passed),
            }
        )
    return rows


def main() -> None:
    parser = arguments(__doc__)
    add_loops(parser)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each part takes, about")
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
