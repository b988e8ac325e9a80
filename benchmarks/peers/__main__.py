"""One process of a peer: ``python -m benchmarks.peers NAME opener|site``; a harness talks to it over pipes.

An opener says its address, then that its sites are there, and then the seconds of each piece of work that it is given.
A site says when it is connected. Both end when their standard input closes.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, cast

from . import PEERS, Peer, Work


def claim_output() -> Callable[[dict[str, Any]], None]:
    """Keep standard output for the harness alone: what libraries print goes to standard error."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(line: dict[str, Any]) -> None:
        pipe.write(json.dumps(line) + "\n")
        pipe.flush()

    return say


async def run_opener(peer: Peer, sites: int, transport: str, say: Callable[[dict[str, Any]], None]) -> None:
    async with peer.opener(sites, transport) as opener:
        say({"address": opener.address, "helpers": opener.helpers})
        await opener.wait_for_sites()
        say({"ready": True})
        while line := await asyncio.to_thread(sys.stdin.readline):
            told = json.loads(line)
            if "prepare" in told:
                opener.prepare(Work(**told["prepare"]))
                say({"prepared": True})
                continue
            work = Work(**told["run"])
            started = time.perf_counter()
            await opener.run(work)
            say({"seconds": time.perf_counter() - started})


async def run_site(peer: Peer, address: str, index: int, say: Callable[[dict[str, Any]], None]) -> None:
    async with peer.site(address, index):
        say({"ready": True})
        await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("role", choices=("opener", "site"))
    parser.add_argument("--sites", type=int, help="the opener's: how many will connect")
    parser.add_argument("--address", help="the site's: where to connect")
    parser.add_argument("--index", type=int, help="the site's number, from 0")
    parser.add_argument("--transport", choices=("tcp", "unix", "tls"), default="tcp")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), help="instead of the peer's best")
    options = parser.parse_args()
    say = claim_output()
    peer = cast(Peer, importlib.import_module(f"{__package__}.{options.peer}"))
    loop_factory = None
    if (options.loop or peer.LOOP) == "uvloop":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        if options.role == "opener":
            runner.run(run_opener(peer, options.sites, options.transport, say))
        else:
            runner.run(run_site(peer, options.address, options.index, say))


if __name__ == "__main__":
    main()
