"""Simulate many scenarios: ``python -m tests.simulation --seeds 20000``, or one again: ``--seed 17``."""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time

from tests.simulation.world import run, story


def main() -> int:
    """Run the seeds asked for; return how many failed, as the process's status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--backend", choices=["asyncio", "trio", "both"], default="both")
    parser.add_argument("--failures", type=int, default=20, help="stop after so many")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.seeds) if arguments.seed is None else [arguments.seed]
    backends = ["asyncio", "trio"] if arguments.backend == "both" else [arguments.backend]
    began = time.monotonic()
    failed = done = 0
    for seed in seeds:
        for backend in backends:
            faulthandler.dump_traceback_later(120, exit=True)  # a run whose clock stands still never ends
            objections = run(seed, backend)
            done += 1
            if objections:
                failed += 1
                sys.stdout.write(f"{story(seed, backend, objections)}\n\n")
                sys.stdout.flush()
        if failed >= arguments.failures:
            break
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.write(f"{done} runs in {time.monotonic() - began:.1f} s, {failed} failed\n")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
