"""Every benchmark runs, in its quick form, so that none rots."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.plots import plot
from benchmarks.harness.tables import tables
from benchmarks.peers import Assembly, payload, pieces
from benchmarks.report import SUITE

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="CPU time and memory are read from /proc"),
    pytest.mark.timeout(120),
]

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("[!_]*.py") if path.stem != "report")


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


def test_the_report_runs_every_script() -> None:
    assert {command[0] for command in SUITE} == set(SCRIPTS)


def test_a_report_has_a_table_of_what_was_measured(tmp_path: Path) -> None:
    run("report", "start_up", "--quick", "--output", str(tmp_path), "--machine", "here")
    (file,) = tmp_path.glob("*-here.json")
    (line,) = json.loads(file.read_text())["results"]
    table = file.with_suffix(".md").read_text().splitlines()
    assert [row["statement"] for row in line["rows"]] == [
        text.split(" | ")[0].removeprefix("| ") for text in table if text.startswith("| ")
    ][2:]


def test_a_table_names_the_median_the_ends_and_what_processes_cost() -> None:
    spread = {"median": 2.0, "min": 1.0, "max": 4.0}
    rows = [
        {
            "object": "1 MiB array",
            "malloc": "as installed",
            "sites": 2,
            "peer": "nats",
            "gb_per_s": spread,
            "cpu_s_per_gib": cpu,
        }
        for cpu in ({"opener": 1.0, "helper-1": 0.5, "site-1": 0.1, "site-2": 0.3},)
    ]
    title, text = tables("peers_bulk", rows)
    assert title == "### object: 1 MiB array, malloc: as installed, sites: 2"
    assert text.splitlines()[-1] == "| nats | 2 (1 to 4) | 1 + 0.5 / 0.3 |"


@pytest.mark.parametrize("piece", [0, 64 * 1024, 100_000])
def test_a_site_of_a_peer_has_an_array_of_a_large_object_in_whatever_pieces_it_comes(piece: int) -> None:
    size = 256 * 1024
    assembly = Assembly()
    for _ in range(2):
        whole = [assembly.take(message) for message in pieces(size, piece)]
        assert whole == [False] * (len(whole) - 1) + [True]
        assert assembly.array.dtype == np.float32
        assert assembly.array.tobytes() == payload(size)


def test_the_same_results_give_the_same_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    spread = {"median": 2.0, "min": 1.0, "max": 4.0}
    rows = [
        {"sites": sites, "window": 1, "collector": collector, "us_per_object_and_site": spread}
        for sites in (8, 1000)
        for collector in ("as it is", "frozen")
    ]
    for name in ("one.svg", "two.svg"):
        plot("sites", {"rows": rows}, tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert "window 1" in text


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_quick_run_prints_one_json_line(script: str) -> None:
    # Where a script compares event loops, one of them shows that it works.
    one = ["--loop=asyncio"] if "add_loops(" in (FOLDER / f"{script}.py").read_text(encoding="utf-8") else []
    (text,) = run(script, "--quick", *one).splitlines()
    line = json.loads(text)
    assert line["question"] == script
    assert line["rows"]
    assert line["environment"]["versions"]["fanstream"]
    assert all(figure["min"] <= figure["median"] <= figure["max"] for figure in figures(line["rows"]))
