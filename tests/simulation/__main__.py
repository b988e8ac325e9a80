"""Simulate many scenarios: ``python -m tests.simulation --seeds 20000``, or one again: ``--seed 17``."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from itertools import pairwise
from types import FrameType
from typing import Final

from tests.simulation.world import run, story

_LONGEST: Final = 120.0  # seconds for one run; longer, and its clock stands still


def simulate(seeds: Sequence[int], backends: Sequence[str], failures: int) -> int:
    """Run seeds in this process; return 1 if one failed."""
    began = time.monotonic()
    failed = done = 0
    running = ""

    def stands_still(_signal: int, frame: FrameType | None) -> None:
        sys.stderr.write(f"{running} stands still:\n{''.join(traceback.format_stack(frame))}")
        sys.stderr.flush()
        os._exit(1)

    signal.signal(signal.SIGALRM, stands_still)
    for seed in seeds:
        for backend in backends:
            running = f"seed {seed} on {backend}"
            signal.setitimer(signal.ITIMER_REAL, _LONGEST)
            objections = run(seed, backend)
            done += 1
            if objections:
                failed += 1
                sys.stdout.write(f"{story(seed, backend, objections)}\n\n")
                sys.stdout.flush()
        if failed >= failures:
            break
    signal.setitimer(signal.ITIMER_REAL, 0)
    sys.stdout.write(f"{done} runs in {time.monotonic() - began:.1f} s, {failed} failed\n")
    return min(failed, 1)


def shares(first: int, seeds: int, jobs: int) -> list[tuple[int, int]]:
    """Divide seeds among jobs: the first of each, and how many."""
    bounds = [first + seeds * job // jobs for job in range(jobs + 1)]
    return [(begin, end - begin) for begin, end in pairwise(bounds) if end > begin]


def main() -> int:
    """Run the seeds asked for; return 1 if any failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--backend", choices=["asyncio", "trio", "both"], default="both")
    parser.add_argument("--failures", type=int, default=20, help="stop after so many, in each process")
    parser.add_argument("--jobs", type=int, default=1, help="processes at work")
    arguments = parser.parse_args()
    backends = ["asyncio", "trio"] if arguments.backend == "both" else [arguments.backend]
    if arguments.seed is not None:
        return simulate([arguments.seed], backends, arguments.failures)
    first, seeds = arguments.first, arguments.seeds
    if arguments.jobs <= 1:
        return simulate(range(first, first + seeds), backends, arguments.failures)
    how = [f"--backend={arguments.backend}", f"--failures={arguments.failures}"]
    command = [sys.executable, "-m", "tests.simulation", *how]
    processes = [
        subprocess.Popen([*command, f"--first={begin}", f"--seeds={number}"])
        for begin, number in shares(first, seeds, arguments.jobs)
    ]
    return max(process.wait() for process in processes)


if __name__ == "__main__":
    sys.exit(main())
