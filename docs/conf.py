"""How Sphinx builds these pages: `nox -s docs`."""

from __future__ import annotations

import logging
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sphinx.application import Sphinx

from fanstream.options import GIB, KIB, MIB

metadata = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "fanstream"
author = "the fanstream developers"
copyright = author
release = version = metadata["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
root_doc = "index"
# A section gathers its pages by pattern and may have none yet; Sphinx gives that warning no type to suppress it by.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(
    lambda record: getattr(record, "subtype", None) != "empty_glob"
)

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"fanstream {release}"


# --- Settings: each field with its default and its range, which pydantic knows and a docstring would only repeat ---

FIELD = re.compile(r"    (?P<name>\w+): (?P<text>.*)")
BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most"}


def shown(value: Any, in_bytes: bool) -> str:
    """A default or a bound, with sizes as people write them."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if in_bytes and value >= unit and value % unit == 0:
            return f"``{value // unit} {name}``"
    if isinstance(value, BaseModel):
        return f"``{type(value).__name__}()``"
    return f"``{value!r}``"


def constraints(field: FieldInfo) -> list[Any]:
    """Return what bounds a field, or what it holds when it is not None."""
    inner = [info for choice in get_args(field.annotation) for info in getattr(choice, "__metadata__", ())]
    return [*field.metadata, *(one for info in inner if isinstance(info, FieldInfo) for one in info.metadata)]


def described(field: FieldInfo, in_bytes: bool) -> str:
    """Say what a field is when nobody sets it, and what it may be."""
    limits = [
        f"{words} {shown(getattr(bound, key), in_bytes)}"
        for bound in constraints(field)
        for key, words in BOUNDS.items()
        if getattr(bound, key, None) is not None
    ]
    if field.is_required():
        return ", ".join(limits)
    return ", ".join([f"default {shown(field.get_default(call_default_factory=True), in_bytes)}", *limits])


def show_fields(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Add to each documented field of a settings class what `described` says."""
    if isinstance(obj, type) and issubclass(obj, BaseModel):
        for index, line in enumerate(lines):
            if (found := FIELD.match(line)) and found["name"] in obj.model_fields:
                about = described(obj.model_fields[found["name"]], in_bytes="bytes" in found["text"])
                lines[index] = f"    {found['name']} ({about}): {found['text']}"


def short_signature(app: Sphinx, what: str, name: str, obj: Any, *rest: Any) -> tuple[str, str] | None:
    """Leave the fields to the list of them: as a signature they fill a screen."""
    settings = isinstance(obj, type) and issubclass(obj, BaseModel)
    return ("(**fields)", "") if settings else None


def setup(app: Sphinx) -> None:
    # Before napoleon, which comes at 500 and turns the lines into fields.
    app.connect("autodoc-process-docstring", show_fields, priority=400)
    app.connect("autodoc-process-signature", short_signature)
