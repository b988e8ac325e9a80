"""The page of the API names everything public, and a settings class tells of every field."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import BaseModel

import fanstream
import fanstream.streamers
from fanstream import EngineSettings, Limits, StreamOptions, observe
from fanstream.observe import AuditEvent

API = Path(__file__).parents[2] / "docs" / "reference" / "api.md"


@pytest.mark.parametrize("module", [fanstream, fanstream.streamers], ids=lambda module: module.__name__)
def test_the_page_names_what_is_public(module: object) -> None:
    shown = re.findall(r"^\.\. auto\w+:: ([\w.]+)", API.read_text(encoding="utf-8"), re.MULTILINE)
    names = {name.rpartition(".")[2] for name in shown}
    assert set(getattr(module, "__all__")) - names == set()  # noqa: B009 - a module's type has no such attribute


@pytest.mark.parametrize("settings", [StreamOptions, EngineSettings, Limits])
def test_every_field_is_documented_once_in_its_order(settings: type[BaseModel]) -> None:
    told = re.findall(r"^    (\w+): ", inspect.cleandoc(settings.__doc__ or ""), re.MULTILINE)
    assert told == list(settings.model_fields)


def test_the_page_of_events_names_every_event_and_field() -> None:
    page = (API.parent / "events.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    kinds = {kind for kind in vars(observe).values() if isinstance(kind, type) and issubclass(kind, AuditEvent)}
    assert sorted((row[0], row[1], row[3]) for row in rows) == sorted(
        (
            f"`{kind.kind}`",
            f"`{kind.__name__}`",
            ", ".join(f"`{one.name}`" for one in fields(kind) if one.name != "at"),
        )
        for kind in kinds - {AuditEvent}
    )
    for kind in kinds:
        assert f"autoclass:: fanstream.observe.{kind.__name__}()" in page
