"""Break the package on purpose, in copies, and see that the tests notice: ``python -m tests.mutants``.

Prints one line for each mutation that survives or cannot be made, and one JSON line in the end; fails for any of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from .mutations import MUTATIONS, Mutation

_ROOT: Final = Path(__file__).parents[2]
_HANGS: Final = 100  # seconds for one test, on a machine that has others to run
_PATIENCE: Final = 600.0  # for all the tests of one mutation
_FAILED: Final = 1  # pytest's status where tests failed; others say that it could not run them


def _environment(sources: Path) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": str(sources), "PYTHONDONTWRITEBYTECODE": "1"}


def _pytest(
    sources: Path, tests: Iterable[str], *options: str, patience: float = _PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Run tests against the package in *sources*."""
    command = [
        sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=line", "--no-showlocals",
        "-p", "no:cacheprovider", f"--timeout={_HANGS}", *options, *(f"tests/{test}" for test in tests),
    ]  # fmt: skip
    return subprocess.run(
        command, cwd=_ROOT, env=_environment(sources), capture_output=True, text=True, check=False, timeout=patience
    )


def _copy(folder: str) -> Path:
    """Copy the package; return what has to be on the path."""
    sources = Path(folder) / "src"
    shutil.copytree(_ROOT / "src", sources, ignore=shutil.ignore_patterns("__pycache__"))
    return sources


def objection(mutation: Mutation) -> str | None:
    """Make one mutation in a copy, and run its tests; return what is wrong unless they notice."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        sources = _copy(folder)
        path = sources / "fanstream" / mutation.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutation.old) != 1:
            return f"its text stands {text.count(mutation.old)} times in the file"
        path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        try:
            done = _pytest(sources, mutation.tests, "-x")
        except subprocess.TimeoutExpired:
            return f"its tests took more than {_PATIENCE} s"
    if done.returncode == _FAILED:
        return None
    if done.returncode == 0:
        return "survives"
    return f"its tests could not run: {done.stdout[-300:]}{done.stderr[-300:]}"


def baseline(mutations: Iterable[Mutation]) -> str | None:
    """Run all the tests against an unchanged copy; return what is wrong unless they pass there.

    What fails has a second try: a busy machine misses the time that some of them measure.
    """
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        sources = _copy(folder)
        asked = "import fanstream; print(fanstream.__file__)"
        command = [sys.executable, "-c", asked]
        found = subprocess.run(
            command, cwd=folder, env=_environment(sources), capture_output=True, text=True, check=True
        ).stdout
        if not Path(found.strip()).is_relative_to(sources):
            return f"the tests would import {found.strip()}, and not the copy"
        tests = sorted({test for mutation in mutations for test in mutation.tests})
        done = _pytest(sources, tests, patience=5 * _PATIENCE)
        if done.returncode == _FAILED:
            failed = re.findall(r"^FAILED tests/(.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
            done = _pytest(sources, failed)
    return None if done.returncode == 0 else f"unchanged, they fail:\n{done.stdout[-2000:]}"


def main() -> int:
    """Make every mutation; return 1 if one survives."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--match", default="", help="only those whose file or description has this in it")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if arguments.match in f"{mutation.file} {mutation.breaks}"]
    began = time.monotonic()
    if not chosen or (wrong := baseline(chosen)):
        sys.stdout.write(f"{wrong if chosen else 'nothing matches'}\n")
        return 1
    survived = 0
    with ThreadPoolExecutor(arguments.processes) as pool:
        for mutation, wrong in zip(chosen, pool.map(objection, chosen), strict=True):
            if wrong is not None:
                survived += 1
                sys.stdout.write(f"{mutation.file}: {mutation.breaks}: {wrong}\n")
                sys.stdout.flush()
    figures = {"caught": len(chosen) - survived, "of": len(chosen), "seconds": round(time.monotonic() - began, 1)}
    sys.stdout.write(json.dumps(figures) + "\n")
    return min(survived, 1)


if __name__ == "__main__":
    sys.exit(main())
