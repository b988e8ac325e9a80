"""How does the cost of one object grow with sites, up to 1,000 of them in one process?

All sites are engines of this process, linked by the memory transport, so that nothing but the engine's own work is
measured; objects have 100 bytes. The cost of one site (its share of an object: sent, consumed, answered, gathered) is
compared with what it is at the fewest sites; opening and ending a stream, and its first object, with which every site
makes its consumer, are told apart from the others. Numbers of sites take turns within each round.

A process with 1,000 engines is no federation: an opener has one engine, and links to the others. What grows here beyond
the opener's own work is the rig's: Python's garbage collector looks through everything alive, that of all sites, and
their data is more than the processor's caches hold. So all is measured twice, with the collector as Python has it, and
with what was alive when the sites were linked left alone by it (``gc.freeze``), as a process that serves hundreds may.
"""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import product
from typing import Any

import anyio

from fanstream import FLContext, Shareable, StreamContext, StreamEngine

from .harness.figures import add_loops, add_rounds, add_sites, arguments, loops, say, spread
from .peers import payload
from .peers.fanstream import CHANNEL, TOPIC, Repeat, Takers, site_name, stream

SIZE = 100


class Timed(Repeat):
    """Knows when the first object and the last were answered: with the first, each site begins its stream."""

    began = ended = 0.0

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        self.ended = time.perf_counter()
        self.began = self.began or self.ended
        return await super().process_replies(replies, stream_ctx, fl_ctx)


@asynccontextmanager
async def engines(sites: int) -> AsyncIterator[StreamEngine]:
    """An opener, and as many sites of the same process."""
    async with AsyncExitStack() as stack:
        for index in range(sites):
            site = await stack.enter_async_context(StreamEngine(site_name(index)))
            site.register_stream_processing(CHANNEL, TOPIC, Takers())
        yield await stack.enter_async_context(StreamEngine("server"))


Cells = dict[tuple[str, int], dict[str, float]]

COLLECTORS = ("as it is", "frozen")


async def measure(numbers: list[int], rounds: int, pairs: int, window: int) -> list[Cells]:
    """Microseconds for each object and site: for each round, by collector and number of sites.

    Args:
        numbers: numbers of sites.
        rounds: how often.
        pairs: objects x sites of one run, about, so that each run does the same work.
        window: objects in flight.
    """
    found: list[Cells] = []
    obj = Shareable({"x": payload(SIZE)})
    async with engines(max(numbers)) as opener:
        names = [site_name(index) for index in range(max(numbers))]
        await stream(opener, names, Repeat(obj, 1), 1)  # makes the links
        for _ in range(rounds):
            found.append({})
            for collector, sites in product(COLLECTORS, numbers):
                count = max(2, pairs // sites) + window  # of the first window, some are answered before the first is
                gc.collect()  # what one run leaves is not paid for by the next
                if collector == "frozen":
                    gc.freeze()
                producer = Timed(obj, count)
                started = time.perf_counter()
                await stream(opener, names[:sites], producer, window)
                seconds = time.perf_counter() - started
                gc.unfreeze()
                objects = producer.ended - producer.began
                found[-1][collector, sites] = {
                    "us_per_object_and_site": 1e6 * objects / ((count - 1) * sites),
                    "us_per_stream_and_site": 1e6 * (seconds - objects) / sites,
                }
    return found


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser, 3)
    add_loops(parser)
    add_sites(parser, 8, 64, 256, 1000)
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 16])
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.sites = 1, [2, 8]
    pairs = 500 if options.quick else 20_000

    rows: list[dict[str, Any]] = []
    for loop in options.loops or loops()[-1:]:
        for window in options.windows:
            backend = {"use_uvloop": loop == "uvloop"}
            found = anyio.run(measure, options.sites, options.rounds, pairs, window, backend_options=backend)
            for collector, sites in product(COLLECTORS, options.sites):
                row: dict[str, Any] = {"sites": sites, "window": window, "loop": loop, "collector": collector}
                for name in found[0][collector, sites]:
                    row[name] = spread(cells[collector, sites][name] for cells in found)
                name = "us_per_object_and_site"
                row["of_fewest_sites"] = spread(
                    cells[collector, sites][name] / cells[collector, options.sites[0]][name] for cells in found
                )
                rows.append(row)
    say("fan_out", options, rows)


if __name__ == "__main__":
    main()
