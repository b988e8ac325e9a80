"""The page of threats and limits: each module of tests exists, and each default is the setting's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fanstream import EngineSettings, Limits

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "limits.md").read_text(encoding="utf-8")
ROWS = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| ")][2:]
SETTINGS = {"Limits": Limits(), "EngineSettings": EngineSettings()}
UNITS = {"": 1, "s": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
MODULES = {path.stem for path in (ROOT / "tests" / "threats").glob("test_t*.py")}
OTHERS = {
    path.relative_to(ROOT / "tests").with_suffix("").as_posix()
    for folder in ("security", "transports")
    for path in (ROOT / "tests" / folder).rglob("test_*.py")
}


@pytest.mark.parametrize("row", ROWS, ids=[f"{number} {row[2] or row[0]}" for number, row in enumerate(ROWS)])
def test_a_row_names_its_tests_and_its_default(row: list[str]) -> None:
    _threat, _limit, setting, default, module = row
    assert module in MODULES | OTHERS
    if setting:
        kind, _, field = setting.partition(".")
        number, unit = re.fullmatch(r"([\d,]+) ?(\w*)", default).groups()  # type: ignore[union-attr]  # or it fails
        assert getattr(SETTINGS[kind], field) == int(number.replace(",", "")) * UNITS[unit]


def test_the_threats_are_told_once_and_in_order() -> None:
    numbers = [int(match[1]) for row in ROWS if (match := re.match(r"T(\d+) ", row[0]))]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("number", range(1, 27))
def test_no_threat_has_two_modules(number: int) -> None:
    assert len([name for name in MODULES if name.startswith(f"test_t{number:02}_")]) <= 1
