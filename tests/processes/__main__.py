"""Kill and freeze processes, many times: ``python -m tests.processes --kills 200``; prints one JSON line.

The settings of the engines are the defaults, so a frozen site has to be noticed within 15 s; ``--quick`` shortens that.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from random import Random
from typing import Any

import anyio

from .lab import Lab, lab
from .scenarios import DURABLE, SCENARIOS, WITH_JOURNALS

JOURNALS = {**dict.fromkeys(WITH_JOURNALS, ("--journal",)), **dict.fromkeys(DURABLE, ("--journal", "opener"))}
"""Which workers keep one."""
_PATIENCE = 180.0  # seconds for one scenario
_ALL = {**SCENARIOS, **WITH_JOURNALS, **DURABLE}


async def _repeat(name: str, times: int, seed: int, settings: list[str], failures: list[str]) -> dict[str, Any]:
    """Run one scenario *times* times in one lab; a lab in which it failed is given up for another."""
    took: list[float] = []
    run = 1
    while run <= times:
        try:
            async with lab(*settings) as made:
                while run <= times:
                    took.append(await _once(made, name, run, seed))
                    run += 1
        except Exception:  # noqa: BLE001 - told at the end; the other runs go on
            failures.append(f"{name}, run {run} of seed {seed}:\n{traceback.format_exc()}")
            run += 1
    took.sort()
    return {"times": times, "median_s": round(took[len(took) // 2], 2), "longest_s": round(took[-1], 2)} if took else {}


async def _once(made: Lab, name: str, run: int, seed: int) -> float:
    began = time.monotonic()
    with anyio.fail_after(_PATIENCE):
        await _ALL[name](made, run, Random(seed * 100_003 + run))
    return time.monotonic() - began


async def run(arguments: argparse.Namespace) -> int:
    """Run what is asked for; return 1 if anything did not hold."""
    settings = ["--heartbeat", "0.3", "--silence", "1"] if arguments.quick else []
    failures: list[str] = []
    outcome: dict[str, Any] = {}
    for name in arguments.scenario or _ALL:
        times = arguments.freezes if name == "receiver_frozen" else arguments.kills
        how = [*settings, *JOURNALS.get(name, ())]
        outcome[name] = await _repeat(name, times, arguments.seed, how, failures)
    for failure in failures:
        sys.stderr.write(failure + "\n")
    sys.stdout.write(json.dumps({**outcome, "failed": len(failures)}) + "\n")
    return min(len(failures), 1)


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.processes", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of each of receiver, opener and hub")
    parser.add_argument("--freezes", type=int, default=10, help="of a receiver")
    parser.add_argument("--scenario", action="append", choices=list(_ALL), help="only this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="notice a frozen site within 1 s")
    return anyio.run(run, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
