"""Does memory stay flat over a stream of a million objects?

The opener and its site are engines of this process, linked by TCP; objects have 100 bytes. After a tenth of the objects
and after the last one, what the process holds is read, and how many blocks Python has allocated; a full collection goes
before each, so that what is compared is what is kept. A single block kept for each object would show as 1 in
``blocks_per_object``.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from typing import Any

import anyio

from fanstream import FLContext, Shareable, StreamContext, StreamEngine

from .harness.figures import MIB, add_loops, arguments, loops, say
from .harness.usage import Meter
from .peers import payload
from .peers.fanstream import CHANNEL, TOPIC, Repeat, Takers, site_name, stream

SIZE = 100


class Enduring(Repeat):
    """Notes what is held after some of its objects, each a number of objects that were answered."""

    def __init__(self, obj: Shareable, count: int, after: tuple[int, ...]) -> None:
        super().__init__(obj, count)
        self.held: list[tuple[int, int]] = []  # bytes of memory, and blocks
        self._after = after
        self._judged = 0
        self._meter = Meter(os.getpid())

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        self._judged += 1
        if self._judged in self._after:
            gc.collect()
            self.held.append((self._meter.resident(), sys.getallocatedblocks()))
        return await super().process_replies(replies, stream_ctx, fl_ctx)


async def measure(loop: str, objects: int, window: int) -> dict[str, Any]:
    """What is held at a tenth of the objects, and at the end."""
    producer = Enduring(Shareable({"x": payload(SIZE)}), objects, (objects // 10, objects))
    async with (
        StreamEngine("server", listen="tcp://127.0.0.1:0") as opener,
        StreamEngine(site_name(0), connect=opener.addresses[0]) as site,
    ):
        site.register_stream_processing(CHANNEL, TOPIC, Takers())
        await opener.wait_for_sites([site_name(0)])
        started = time.perf_counter()
        await stream(opener, [site_name(0)], producer, window)
        seconds = time.perf_counter() - started
    (early, early_blocks), (late, late_blocks) = producer.held
    return {
        "loop": loop,
        "objects": objects,
        "window": window,
        "mib_at_a_tenth": round(early / MIB, 2),
        "mib_at_the_end": round(late / MIB, 2),
        "growth_mib": round((late - early) / MIB, 2),
        "blocks_per_object": round((late_blocks - early_blocks) / (objects * 0.9), 6),
        "replies_per_s": round(objects / seconds),
    }


def main() -> None:
    parser = arguments(__doc__)
    add_loops(parser)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--window", type=int, default=64)
    options = parser.parse_args()
    if options.quick:
        options.objects = 2000
    rows = [
        anyio.run(measure, loop, options.objects, options.window, backend_options={"use_uvloop": loop == "uvloop"})
        for loop in options.loops or loops()[-1:]
    ]
    say("endurance", options, rows)


if __name__ == "__main__":
    main()
