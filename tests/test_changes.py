"""The fragments in changes/ can be gathered into the changelog."""

from __future__ import annotations

import re
from pathlib import Path

CHANGES = Path(__file__).parents[1] / "changes"
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\.(added|changed|deprecated|removed|fixed|security)\.md")


def test_fragments_are_named_by_what_they_change_and_how() -> None:
    names = {path.name for path in CHANGES.iterdir()} - {"README.md"}
    assert [name for name in sorted(names) if not NAME.fullmatch(name)] == []


def test_fragments_say_something() -> None:
    assert [path.name for path in CHANGES.glob("*.md") if not path.read_text(encoding="utf-8").strip()] == []
