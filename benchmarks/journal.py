"""What does a site's journal cost: how many objects a second does it let through?

One site, in this process, over TCP; 100-byte objects in lock step, in one stream and in 64 at once, to a site without a
journal and to one with it. What a site has answered is on the disk before it is said, and what several streams want
kept at one time shares one sync: so the figures are those of the disk below the folder for temporary files.
"""

from __future__ import annotations

import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import anyio

from fanstream import EngineSettings, Shareable, StreamEngine

from .harness.figures import add_loops, add_rounds, arguments, loops, say, spread
from .peers import payload
from .peers.fanstream import CHANNEL, TOPIC, Repeat, Takers, site_name, stream

SIZE = 100
SITE = [site_name(0)]


async def measure(loop: str, rounds: int, streams: int, objects: int, journal: bool) -> dict[str, Any]:
    """Objects a second, of all streams together."""
    obj = Shareable({"x": payload(SIZE)})
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        settings = EngineSettings(journal=Path(folder) / "journal" if journal else None)
        async with (
            StreamEngine("server", listen="tcp://127.0.0.1:0") as opener,
            StreamEngine(SITE[0], connect=opener.addresses[0], settings=settings) as site,
        ):
            site.register_stream_processing(CHANNEL, TOPIC, Takers())
            await opener.wait_for_sites(SITE)
            for count in range(rounds + 1):
                started = time.perf_counter()
                async with anyio.create_task_group() as tg:
                    for _ in range(streams):
                        tg.start_soon(stream, opener, SITE, Repeat(obj, objects), 1)
                if count:  # the first one warms up
                    rates.append(streams * objects / (time.perf_counter() - started))
    return {"loop": loop, "streams": streams, "journal": journal, "replies_per_s": spread(rates)}


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser)
    add_loops(parser)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--objects", type=int, default=64, help="of each stream")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.streams, options.objects = 1, 4, 4
    rows: list[dict[str, Any]] = []
    for loop in options.loops or loops()[-1:]:
        backend = {"use_uvloop": loop == "uvloop"}
        for streams, journal in product((1, options.streams), (False, True)):
            work = (options.rounds, streams, options.objects, journal)
            rows.append(anyio.run(measure, loop, *work, backend_options=backend))
    say("journal", options, rows)


if __name__ == "__main__":
    main()
