"""Figures with their spread, the machine that they were taken on, and the one JSON line that says both."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from fanstream.protocol import core

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

Spread = dict[str, float]


def spread(values: Iterable[float]) -> Spread:
    """The median, least and greatest of some values, each to four digits."""
    found = sorted(values)
    return {
        name: float(f"{value:.4g}")
        for name, value in (("median", statistics.median(found)), ("min", found[0]), ("max", found[-1]))
    }


def loops() -> list[str]:
    """The event loops of this environment: asyncio's own, and uvloop where it is installed."""
    return ["asyncio", "uvloop"] if find_spec("uvloop") else ["asyncio"]


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The options that every script has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a run of seconds, which only shows that it works")
    return parser


def add_rounds(parser: argparse.ArgumentParser, default: int = 5) -> None:
    """Add the option of a script whose cells take turns."""
    parser.add_argument("--rounds", type=int, default=default, help="how often each cell is measured")


def add_loops(parser: argparse.ArgumentParser) -> None:
    """Add the option of a script that runs on more than one event loop."""
    parser.add_argument("--loop", dest="loops", action="append", choices=("asyncio", "uvloop"), help="all by default")


def add_sites(parser: argparse.ArgumentParser, *default: int) -> None:
    """Add the option of a script that asks how cost grows with sites."""
    parser.add_argument("--sites", type=int, nargs="+", default=list(default), help="numbers of sites")


def environment(distributions: Sequence[str] = ()) -> dict[str, Any]:
    """The machine, its load, and the versions of what was measured."""
    installed = {}
    for name in ("fanstream", "anyio", "msgspec", "numpy", "uvloop", *distributions):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 2),
        "build": "interpreted" if str(core.__file__).endswith(".py") else "compiled",
        "versions": installed,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def say(
    question: str,
    options: argparse.Namespace,
    rows: Sequence[dict[str, Any]],
    *,
    distributions: Sequence[str] = (),
    **more: Any,
) -> None:
    """Print the JSON line of one script.

    Args:
        question: the script's name.
        options: how it ran.
        rows: a dict for each thing measured; a figure is a number, or a dict of median, min and max.
        distributions: names of the packages, beside fanstream's own, whose versions matter.
        more: whatever else belongs to the line.
    """
    line = {"question": question, "options": vars(options), "rows": rows, **more}
    print(json.dumps({**line, "environment": environment(distributions)}), flush=True)
