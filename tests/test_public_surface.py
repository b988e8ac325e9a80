"""`fanstream` offers what it lists, and importing it stays light."""

from __future__ import annotations

import ast
import importlib.resources
import inspect
import subprocess
import sys
from collections.abc import Iterator
from enum import StrEnum
from types import ModuleType

import pytest

import fanstream

# What other code builds on: none of these names may go.
STANDING = {
    "AbortSignal",
    "ConsumerFactory",
    "FLContext",
    "ObjectConsumer",
    "ObjectProducer",
    "Quorum",
    "ReturnCode",
    "Shareable",
    "StreamContextKey",
    "StreamEngine",
    "StreamOptions",
    "StreamResult",
    "StreamableEngine",
    "make_reply",
}
LOADED_LATER = {"EngineSettings", "Limits", "StreamOptions"}
OPTIONAL = ["cryptography", "numpy", "pyarrow", "rich", "scipy", "sklearn", "torch", "trio", "uvloop"]


def imported_publicly(source: str) -> list[str]:
    """The names without a leading underscore that the imports of a module bind; with those for types alone."""
    bound: list[str] = []
    nodes = ast.parse(source).body
    for node in nodes:
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                nodes += node.body
            case ast.ImportFrom(module="__future__" | "typing"):
                pass
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                bound += [name.asname or name.name.partition(".")[0] for name in names]
    return [name for name in bound if not name.startswith("_")]


def test_all_lists_what_init_imports() -> None:
    source = importlib.resources.files(fanstream).joinpath("__init__.py").read_text(encoding="utf-8")
    assert sorted(fanstream.__all__) == sorted(imported_publicly(source))


def test_all_lists_what_the_module_holds() -> None:
    held = {name for name, value in vars(fanstream).items() if not isinstance(value, ModuleType)} - {"TYPE_CHECKING"}
    assert {name for name in held if not name.startswith("_")} | LOADED_LATER == set(fanstream.__all__)
    assert LOADED_LATER.isdisjoint(held)


def test_what_is_not_there_is_missed_as_usual() -> None:
    with pytest.raises(AttributeError, match="module 'fanstream' has no attribute 'nothing'"):
        fanstream.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_the_names_that_others_build_on_stand() -> None:
    assert set(fanstream.__all__) >= STANDING


@pytest.mark.parametrize("name", fanstream.__all__)
def test_what_is_public_is_documented(name: str) -> None:
    assert list(undocumented(name, getattr(fanstream, name))) == []


def undocumented(name: str, value: object) -> Iterator[str]:
    """The class or function, and the public methods and properties of a class, that no docstring tells of."""
    if not (isinstance(value, type) or callable(value)):
        return
    if not value.__doc__:
        yield name
    if isinstance(value, type):
        package = value.__module__.partition(".")[0]
        # Not the methods of dict, pydantic and the like.
        own = [cls for cls in value.__mro__ if cls.__module__.partition(".")[0] == package]
        for member in sorted({member for cls in own for member in vars(cls) if not member.startswith("_")}):
            found = inspect.getattr_static(value, member)
            # getdoc also finds the docstring of the method that this one overrides.
            if (inspect.isroutine(found) or isinstance(found, property)) and not inspect.getdoc(getattr(value, member)):
                yield f"{name}.{member}"


def test_the_package_says_that_it_is_typed() -> None:
    assert importlib.resources.files(fanstream).joinpath("py.typed").is_file()


def test_import_loads_nothing_heavy_and_nothing_optional() -> None:
    script = "import sys, fanstream; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()).isdisjoint([*OPTIONAL, "pydantic"])


def test_the_reader_of_imports_knows_their_forms() -> None:
    source = "from __future__ import annotations\nimport a.b\nimport c as _c\nfrom .d import E, F as G, _h\nI = 1\n"
    source += "if TYPE_CHECKING:\n    from .j import K\n"
    assert imported_publicly(source) == ["a", "E", "G", "K"]


class Base(dict[str, int]):
    """Documented."""

    def told(self) -> None:
        """Documented."""

    def untold(self) -> None: ...


class Derived(Base):
    attribute = 1

    def told(self) -> None: ...

    @property
    def bare(self) -> int:
        return 1

    @classmethod
    def made(cls) -> None:
        """Documented."""

    def _private(self) -> None: ...


class Kind(StrEnum):
    """Documented."""

    OK = "OK"


def test_the_reader_of_docstrings_knows_overrides_and_inherited_methods() -> None:
    assert list(undocumented("Base", Base)) == ["Base.untold"]
    assert list(undocumented("Derived", Derived)) == ["Derived", "Derived.bare", "Derived.untold"]
    assert list(undocumented("Kind", Kind)) == []
    assert list(undocumented("number", 1)) == []
