"""What do 1,000 idle links cost: how much of a core, and how much memory each?

A hub in one process, and all its sites in another, over TCP. Links send a heartbeat now and then, so the share of a
core is taken over several of their periods. The kernel's own memory for its sockets is not counted.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import AsyncExitStack, closing
from typing import Any

import anyio
import anyio.to_thread

from fanstream import EngineSettings, StreamEngine

from .harness.figures import KIB, add_loops, arguments, loops, say
from .harness.teams import START_TIMEOUT, Worker
from .peers.__main__ import claim_output
from .peers.fanstream import site_name

# A listener admits a bounded number of handshakes at once (Limits.half_open).
BATCH = 64


async def be_hub() -> None:
    """Run the hub until standard input closes."""
    say_line = claim_output()
    async with StreamEngine("server", listen="tcp://127.0.0.1:0") as engine:
        say_line({"address": engine.addresses[0]})
        await anyio.to_thread.run_sync(sys.stdin.read)


async def be_sites(address: str, links: int) -> None:
    """Run all the sites until standard input closes."""
    say_line = claim_output()
    async with AsyncExitStack() as stack:
        for first in range(0, links, BATCH):
            batch = [
                StreamEngine(site_name(index), connect=address) for index in range(first, min(first + BATCH, links))
            ]
            for engine in batch:
                await stack.enter_async_context(engine)
            for engine in batch:
                await engine.wait_for_sites(["server"])
        say_line({"ready": True})
        await anyio.to_thread.run_sync(sys.stdin.read)


def measure(loop: str, links: int, seconds: float) -> dict[str, Any]:
    """Memory and CPU time of a hub, and of the process that has its sites."""
    common = [f"--loop={loop}", f"--links={links}"]
    with closing(Worker("benchmarks.idle", "--hub", *common)) as hub:
        address = hub.hear(START_TIMEOUT)["address"]
        before = hub.meter.resident()
        with closing(Worker("benchmarks.idle", f"--connect={address}", *common)) as sites:
            sites.hear(START_TIMEOUT)
            # What the handshakes have left to do is not what idle links cost.
            time.sleep(min(1.0, seconds))
            grown = hub.meter.resident() - before
            spent, theirs, started = hub.meter.cpu(), sites.meter.cpu(), time.perf_counter()
            time.sleep(seconds)
            passed = time.perf_counter() - started
            return {
                "loop": loop,
                "links": links,
                "seconds": round(passed, 1),
                "kib_per_link": round(grown / links / KIB, 1),
                "share_of_core": round((hub.meter.cpu() - spent) / passed, 4),
                "share_of_core_sites": round((sites.meter.cpu() - theirs) / passed, 4),
                "process_mib": round(hub.meter.peak() / KIB**2, 1),
                "sites_mib": round(sites.meter.peak() / KIB**2, 1),
            }


def main() -> None:
    parser = arguments(__doc__)
    add_loops(parser)
    parser.add_argument("--links", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=3 * EngineSettings().heartbeat, help="three heartbeats")
    parser.add_argument("--hub", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--connect", help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = options.loops or loops()
    if options.hub or options.connect:
        backend = {"use_uvloop": chosen == ["uvloop"]}
        if options.hub:
            anyio.run(be_hub, backend_options=backend)
        else:
            anyio.run(be_sites, options.connect, options.links, backend_options=backend)
        return
    if options.quick:
        options.links, options.seconds = 20, 0.2
    say("idle", options, [measure(loop, options.links, options.seconds) for loop in chosen])


if __name__ == "__main__":
    main()
