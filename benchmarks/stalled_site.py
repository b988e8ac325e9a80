"""What does one stalled site cost the 199 others?

All sites are engines of this process, linked by the memory transport; one object at a time goes to all of them, and
what is timed is its gather. Three streams take turns, object by object, so that what disturbs the machine disturbs them
all: to the fast sites alone; to them and one whose *consumer* never answers; to them and one whose *link* is stalled,
so that not a byte of what it is sent arrives. A quorum of as many as are fast is gathered, and nobody is dropped, so
what is sent to the stalled site piles up meanwhile. Beside the time that passes, the CPU time is told: all is done by
one thread, so on a machine that has nothing else to do the two are the same.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio

from fanstream import (
    EngineSettings,
    FLContext,
    Quorum,
    Shareable,
    StreamContext,
    StreamEngine,
    StreamOptions,
)
from fanstream.outgoing.handle import OpenStream
from fanstream.testing import FaultyNetwork

from .fairness import quantile
from .harness.figures import add_loops, add_rounds, arguments, loops, say, spread
from .peers import payload
from .peers.fanstream import CHANNEL, TOPIC, Repeat, Take, Takers, site_name, stream

SIZE = 100
FOREVER = 3600.0  # seconds: longer than any run
# A stalled link must stay one for as long as is measured; by itself it would be closed after 15 s.
SETTINGS = EngineSettings(heartbeat=1000, silence=FOREVER)
STALLED = {"consumer": "stalled-consumer", "link": "stalled-link"}


class Hang(Take):
    """Takes an object, and does not say so."""

    async def consume(
        self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> tuple[bool, Shareable]:
        await anyio.sleep_forever()
        raise AssertionError("not reached")


class Hangers(Takers):
    """Makes such consumers."""

    async def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> Take:
        return Hang()


@asynccontextmanager
async def engines(fast: int) -> AsyncIterator[StreamEngine]:
    """An opener that has links to the fast sites and to both stalled ones."""
    async with AsyncExitStack() as stack:

        async def start(name: str, factory: Takers) -> None:
            site = await stack.enter_async_context(StreamEngine(name, settings=SETTINGS))
            site.register_stream_processing(CHANNEL, TOPIC, factory)

        for index in range(fast):
            await start(site_name(index), Takers())
        await start(STALLED["consumer"], Hangers())
        await start(STALLED["link"], Takers())
        opener = await stack.enter_async_context(StreamEngine("server", settings=SETTINGS))
        obj = Shareable({"x": payload(SIZE)})
        await stream(opener, [site_name(index) for index in range(fast)], Repeat(obj, 1), 1)  # makes the links
        with FaultyNetwork() as network:
            await stream(opener, [STALLED["link"]], Repeat(obj, 1), 1)
        for link in network.links:
            link.stall()
            stack.callback(link.cut)
        yield opener


def options_of(fast: int, stalled: bool) -> StreamOptions:
    """As many replies as there are fast sites are enough, and nobody is dropped for being behind."""
    return StreamOptions(
        gather=Quorum(fast),
        max_lag=4096,  # the most
        stall_timeout=FOREVER,
        timeout=FOREVER,
        end_timeout=0.1 if stalled else FOREVER,
    )


async def measure(loop: str, fast: int, rounds: int, objects: int) -> list[dict[str, Any]]:
    """Quantiles of each cell, and their ratios to those without a stalled site in the same round.

    Raises:
        RuntimeError: a fast site's reply is missing, or a stalled site was not stalled.
    """
    cells: dict[str, list[str]] = {"none": [], **{what: [name] for what, name in STALLED.items()}}
    names = [site_name(index) for index in range(fast)]
    obj = Shareable({"x": payload(SIZE)})
    wall: dict[str, list[list[float]]] = {cell: [] for cell in cells}
    cpu: dict[str, list[list[float]]] = {cell: [] for cell in cells}
    async with engines(fast) as opener, AsyncExitStack() as stack:
        streams: dict[str, OpenStream] = {}
        for cell, more in cells.items():
            streams[cell] = await stack.enter_async_context(
                opener.open_stream(CHANNEL, TOPIC, [*names, *more], options=options_of(fast, bool(more)))
            )
            await streams[cell].send(obj)  # makes the consumers
        order = list(streams)
        for _ in range(rounds):
            for cell in cells:
                wall[cell].append([])
                cpu[cell].append([])
            for _ in range(objects):
                order.append(order.pop(0))
                for cell in order:
                    started, spent = time.perf_counter(), time.thread_time()
                    await streams[cell].send(obj)
                    wall[cell][-1].append(time.perf_counter() - started)
                    cpu[cell][-1].append(time.thread_time() - spent)
    sent = rounds * objects + 1
    for cell, more in cells.items():
        result = streams[cell].result
        assert result is not None
        if any(result.sites[name].outcomes != {"replied": sent} for name in names):
            raise RuntimeError(f"beside {cell}, the stream ended {result.rc}: {result.outcomes}")
        if any("replied" in result.sites[name].outcomes for name in more):
            raise RuntimeError(f"{cell} was not stalled: {result.sites[more[0]]}")
    rows: list[dict[str, Any]] = []
    for cell in cells:
        row: dict[str, Any] = {"loop": loop, "fast": fast, "stalled": cell}
        for clock, taken in (("", wall), ("_cpu", cpu)):
            for name, share in (("p50", 0.5), ("p99", 0.99)):
                each = [quantile(seconds, share) for seconds in taken[cell]]
                base = [quantile(seconds, share) for seconds in taken["none"]]
                row[f"{name}{clock}_ms"] = spread(1000 * seconds for seconds in each)
                row[f"{name}{clock}_of_none"] = spread(a / b for a, b in zip(each, base, strict=True))
        rows.append(row)
    return rows


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser)
    add_loops(parser)
    parser.add_argument("--fast", type=int, default=199, help="sites that are not stalled")
    parser.add_argument("--objects", type=int, default=200, help="of one round")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.fast, options.objects = 1, 4, 10
    rows: list[dict[str, Any]] = []
    for loop in options.loops or loops()[-1:]:
        backend = {"use_uvloop": loop == "uvloop"}
        rows += anyio.run(measure, loop, options.fast, options.rounds, options.objects, backend_options=backend)
    say("stalled_site", options, rows)


if __name__ == "__main__":
    main()
