"""The page of the API names everything public, and a settings class tells of every field."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

import fanstream
import fanstream.streamers
from fanstream import EngineSettings, Limits, StreamOptions

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
