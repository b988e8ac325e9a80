"""How long does an object that is costly to decode hold up the event loop of the site that it comes to?

Objects of many small values fill their envelope up to the limits: 256 KiB, 20,000 values. A site in another process
turns its loop without a rest, and notes the longest turn from the object before to the one behind each of them. Told
are the time that such a turn took, and the CPU time that the loop's own thread spent in it: where the machine has other
things to do, or a worker thread decodes and holds the interpreter's lock, the two differ. Each kind is sent once before
it counts, since the first arrays and tables have their libraries imported.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
import time
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from typing import Any, Final

import anyio
import anyio.lowlevel
import anyio.to_thread
import numpy as np

from fanstream import Shareable, StreamEngine

from .harness.figures import add_loops, add_rounds, arguments, loops, say, spread
from .harness.teams import START_TIMEOUT, Worker
from .peers.__main__ import claim_output
from .peers.fanstream import CHANNEL, TIMEOUT, TOPIC, site_name

SITE: Final = site_name(0)
COUNTS: Final = 18_000  # values of one object; the limit is 20,000


def _tables(count: int) -> list[Any]:
    import pyarrow as pa

    return [pa.table({"x": [number]}) for number in range(count)]


KINDS: Final[dict[str, Callable[[int], Any]]] = {
    "nothing": lambda _: 0,
    "ints": lambda most: list(range(most)),
    "dicts": lambda most: [{"a": number} for number in range(most // 3)],
    "datetimes": lambda most: [dt.datetime(2026, 1, 1, tzinfo=dt.UTC)] * (most // 4),
    "numpy texts": lambda most: [np.str_("x")] * (most // 5),
    "arrays": lambda most: [np.ones(1, np.float32)] * (most // 5),
    **({"Arrow tables": lambda most: _tables(most // 22)} if find_spec("pyarrow") else {}),
}
"""What an object holds, made of about so many values in its envelope."""


class Turns:
    """The longest turn of a loop since the last look: by the clock, and of its thread's CPU time; seconds."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def look(self) -> tuple[float, float]:
        """Return the longest, and begin anew."""
        found = self.wall, self.cpu
        self.wall = self.cpu = 0.0
        return found

    async def watch(self) -> None:
        """Turn the loop for ever."""
        wall, cpu = time.perf_counter(), time.thread_time()
        while True:
            await anyio.lowlevel.checkpoint()
            now, spent = time.perf_counter(), time.thread_time()
            self.wall, self.cpu = max(self.wall, now - wall), max(self.cpu, spent - cpu)
            wall, cpu = now, spent


async def serve(address: str, say: Callable[[dict[str, Any]], None]) -> None:
    """Be the site: each reply tells of the turns since the last one."""
    turns = Turns()
    async with StreamEngine(SITE, connect=address) as engine, anyio.create_task_group() as tg:

        @engine.consumer(CHANNEL, TOPIC)
        async def look(shareable: Any, stream_ctx: Any, fl_ctx: Any) -> Shareable:
            wall, cpu = turns.look()
            return Shareable({"wall": wall, "cpu": cpu})

        tg.start_soon(turns.watch)
        say({"ready": True})
        await anyio.to_thread.run_sync(sys.stdin.read)
        tg.cancel_scope.cancel()


async def measure(loop: str, rounds: int, most: int) -> list[dict[str, Any]]:
    """The longest turns while one object of each kind arrives, in turn, so many times."""
    wall: dict[str, list[float]] = {kind: [] for kind in KINDS}
    cpu: dict[str, list[float]] = {kind: [] for kind in KINDS}
    objects = {kind: Shareable({"x": make(most)}) for kind, make in KINDS.items()}
    nothing = Shareable()
    async with StreamEngine("server", listen="tcp://127.0.0.1:0") as engine:
        command = ["benchmarks.costly_envelopes", "--site", engine.addresses[0], "--loop", loop]
        with closing(Worker(*command)) as worker:
            with anyio.fail_after(START_TIMEOUT):
                await engine.wait_for_sites([SITE])
            await anyio.to_thread.run_sync(worker.hear, START_TIMEOUT)
            async with engine.open_stream(CHANNEL, TOPIC, [SITE]) as stream:
                for count in range(rounds + 1):
                    for kind, obj in objects.items():
                        await stream.send(nothing, timeout=TIMEOUT)  # a look
                        told = []
                        for each in (obj, nothing):  # turns up to its consumption, and those that its reply took
                            replies = await stream.send(each, timeout=TIMEOUT)
                            told.append(replies[SITE])
                        if count:
                            wall[kind].append(max(reply["wall"] for reply in told))
                            cpu[kind].append(max(reply["cpu"] for reply in told))
    return [
        {
            "loop": loop,
            "object": kind,
            "stall_ms": spread(1000 * seconds for seconds in wall[kind]),
            "stall_cpu_ms": spread(1000 * seconds for seconds in cpu[kind]),
        }
        for kind in KINDS
    ]


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser)
    add_loops(parser)
    parser.add_argument("--values", type=int, default=COUNTS, help="in the envelope of one object, about")
    parser.add_argument("--site", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.site:
        backend = {"use_uvloop": options.loops == ["uvloop"]}
        anyio.run(serve, options.site, claim_output(), backend_options=backend)
        return
    del options.site
    if options.quick:
        options.rounds, options.values = 1, 200
    rows: list[dict[str, Any]] = []
    for loop in options.loops or loops()[-1:]:
        backend = {"use_uvloop": loop == "uvloop"}
        rows += anyio.run(measure, loop, options.rounds, options.values, backend_options=backend)
    say("costly_envelopes", options, rows)


if __name__ == "__main__":
    main()
