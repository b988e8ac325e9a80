"""Every benchmark runs, in its quick form, so that none rots."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="CPU time and memory are read from /proc"),
    pytest.mark.timeout(120),
]

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py") if path.stem != "report")


def run(script: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"benchmarks.{script}", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(value: Any) -> list[dict[str, float]]:
    """Every figure with a spread, however deep it stands."""
    if isinstance(value, dict):
        if value.keys() == {"median", "min", "max"}:
            return [value]
        value = list(value.values())
    return [found for item in value for found in figures(item)] if isinstance(value, list) else []


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_quick_run_prints_one_json_line(script: str) -> None:
    (text,) = run(script, "--quick").splitlines()
    line = json.loads(text)
    assert line["question"] == script
    assert line["rows"]
    assert line["environment"]["versions"]["fanstream"]
    assert all(figure["min"] <= figure["median"] <= figure["max"] for figure in figures(line["rows"]))
