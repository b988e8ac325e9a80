"""Run the scripts, and write what they say: JSON, a Markdown table for each question, and plots.

``python -m benchmarks.report`` runs them all and writes ``<date>-<machine>.json``, and beside it a ``.md`` and a few
``.svg`` of the same name; with names, only those scripts run. ``--render FILE`` writes the tables and plots of an
earlier run again. The same JSON gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from .harness.figures import GIB
from .harness.plots import PLOTS, plot
from .harness.tables import page

RESULTS: Final = Path(__file__).parent / "results"

# What is run, in this order: the shortest first, so that what is broken shows early.
SUITE: Final[tuple[tuple[str, ...], ...]] = (
    ("start_up",),
    ("encoding",),
    ("costly_envelopes",),
    ("sealed",),
    ("memory",),
    ("fan_out",),
    ("small_objects",),
    ("object_size",),
    ("fairness",),
    ("idle",),
    ("stalled_site",),
    ("endurance",),
    ("journal",),
    ("huge_file", "--size", str(4 * GIB)),
    ("many_sites", "--sites", "50"),
    ("large_objects",),
    ("large_objects", "--transport", "unix", "--sites", "1", "4", "--loop", "uvloop"),
    ("tls",),
    ("sealed_fan_out",),
    ("peers_bulk",),
    ("peers_small",),
)


def run(command: Sequence[str]) -> tuple[dict[str, Any] | None, bool]:
    """Run one script.

    Returns:
        Its JSON line, or None where it said nothing; and whether it ended well.
    """
    script = [sys.executable, "-m", f"benchmarks.{command[0]}", *command[1:]]
    done = subprocess.run(script, stdout=subprocess.PIPE, check=False)
    return (json.loads(done.stdout) if done.stdout.strip() else None), done.returncode == 0


def commit() -> str:
    """What is measured: the commit, marked where something has changed since; nothing outside a work tree of git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def run_all(commands: Sequence[Sequence[str]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Run scripts one after the other.

    Returns:
        What they said, each with how long it took, and the commands that failed.
    """
    results: list[dict[str, Any]] = []
    failed: list[str] = []
    for command in commands:
        what = " ".join(command)
        print(f"{what} ...", end=" ", file=sys.stderr, flush=True)
        started = time.monotonic()
        line, well = run(command)
        took = round(time.monotonic() - started, 1)
        print(f"{took} s", file=sys.stderr)
        if line is not None:
            results.append({**line, "took_s": took})
        if not well:
            failed.append(what)
    return results, failed


def render(file: Path) -> list[Path]:
    """Write the tables and plots that belong to a file of results.

    Returns:
        What was written.
    """
    report = json.loads(file.read_text(encoding="utf-8"))
    # Of a script that ran more than once the first run counts: the plainest.
    lines = {line["question"]: line for line in reversed(report["results"])}
    written = []
    for name, (question, _) in PLOTS.items():
        if question in lines:
            path = file.with_name(f"{file.stem}-{name}.svg")
            plot(name, lines[question], path)
            written.append(path)
    table = file.with_suffix(".md")
    table.write_text(page(report, [path.name for path in written]), encoding="utf-8")
    return [table, *written]


def main() -> None:
    names = sorted({command[0] for command in SUITE})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help=f"some of {', '.join(names)}; all by default")
    parser.add_argument("--quick", action="store_true", help="seconds for each, which only shows that they work")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder to write to")
    parser.add_argument("--machine", default=platform.machine(), help="what to call this machine in the file's name")
    parser.add_argument("--render", type=Path, metavar="FILE", help="run nothing; write tables and plots of this JSON")
    options = parser.parse_args()
    if unknown := set(options.scripts) - set(names):
        parser.error(f"no script is named {', '.join(sorted(unknown))}; there are: {', '.join(names)}")

    if options.render:
        for path in render(options.render):
            print(path)
        return
    extra = ["--quick"] if options.quick else []
    commands = [[*command, *extra] for command in SUITE if not options.scripts or command[0] in options.scripts]
    measured = commit()
    results, failed = run_all(commands)
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / f"{time.strftime('%Y-%m-%d', time.gmtime())}-{options.machine}.json"
    file.write_text(json.dumps({"commit": measured, "results": results}, indent=1) + "\n", encoding="utf-8")
    for path in [file, *render(file)]:
        print(path)
    print(f"{sum(line['took_s'] for line in results) / 60:.1f} minutes in all", file=sys.stderr)
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
