"""Fuzz the decoders: ``python -m tests.fuzz --runs 1000000``, or one of them: ``--target envelope``; needs atheris.

Prints one JSON line for each target. What crashes one stays in ``tests/fuzz/crashes``, where the test suite runs it
from then on; new inputs that reach further are kept in ``.fuzz``, where the next session takes them up.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
FOUND: Final = HERE.parents[1] / ".fuzz"
_LONGEST: Final = 8 * 1024  # bytes of an input
_SLOWEST: Final = 10  # seconds for one input; longer is a finding
_MEMORY: Final = 2048  # MiB of the process; more is a finding


def fuzz(name: str, options: list[str]) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris
    import numpy as np  # noqa: F401  # takes a second, which the first input with an array is not to blame for

    with atheris.instrument_imports(include=["fanstream"]):
        from tests.fuzz.targets import TARGETS

    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


def session(name: str, runs: int, seed: int) -> dict[str, Any]:
    """Fuzz one target in a process of its own; return what came of it."""
    kept = FOUND / name
    crashes = HERE / "crashes" / name
    for folder in (kept, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    before = set(crashes.iterdir())
    options = [
        f"-runs={runs}",
        f"-seed={seed}",
        f"-max_len={_LONGEST}",
        f"-timeout={_SLOWEST}",
        f"-rss_limit_mb={_MEMORY}",
        f"-artifact_prefix={crashes}/",
        "-print_final_stats=1",
        str(kept),
        str(HERE / "corpus" / name),
    ]
    command = [sys.executable, "-m", "tests.fuzz", "--here", name, "--", *options]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    found = sorted(path.name for path in set(crashes.iterdir()) - before)
    if done.returncode:
        sys.stderr.write(done.stderr[-6000:])
    if not any(crashes.iterdir()):
        crashes.rmdir()
    return {
        "target": name,
        "executions": _number("number_of_executed_units", done.stderr),
        "executions_per_s": _number("average_exec_per_sec", done.stderr),
        "peak_mib": _number("peak_rss_mb", done.stderr),
        "status": done.returncode,
        "crashes": found,
    }


def _number(name: str, output: str) -> int | None:
    match = re.search(rf"stat::{name}:\s*(\d+)", output)
    return None if match is None else int(match[1])


def main() -> int:
    """Fuzz what is asked for; return 1 if anything crashed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000_000, help="executions of each target")
    parser.add_argument("--target", action="append", help="only this one; may be given several times")
    parser.add_argument("--seed", type=int, default=0, help="0 for another one each time")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    arguments, options = parser.parse_known_args()
    if arguments.here:
        fuzz(arguments.here, [option for option in options if option != "--"])
    from tests.fuzz.targets import TARGETS

    failed = False
    for name in arguments.target or TARGETS:
        if name not in TARGETS:
            parser.error(f"no target is named {name!r}; there are: {', '.join(TARGETS)}")
        outcome = session(name, arguments.runs, arguments.seed)
        sys.stdout.write(json.dumps(outcome) + "\n")
        sys.stdout.flush()
        failed = failed or outcome["status"] != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
