"""T25: no data becomes code: the syntax trees of all of `src` hold no pickle, eval, import by name or their like."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"

MODULES = frozenset(
    {
        "_pickle",
        "cloudpickle",
        "code",
        "codeop",
        "dill",
        "imp",
        "joblib",
        "jsonpickle",
        "marshal",
        "pickle",
        "pickletools",
        "runpy",
        "shelve",
    }
)
BUILTINS = frozenset({"__import__", "compile", "eval", "exec"})
NAMES = frozenset(
    {
        "numpy.lib.format.read_array",
        "pandas.read_pickle",
        "pkgutil.resolve_name",
        "pydoc.locate",
        "torch.load",
        "torch.save",
        "yaml.full_load",
        "yaml.full_load_all",
        "yaml.load",
        "yaml.load_all",
        "yaml.unsafe_load",
        "yaml.unsafe_load_all",
        *(f"builtins.{name}" for name in BUILTINS),
    }
)
IMPORTERS = frozenset({"importlib.__import__", "importlib.import_module", "importlib.util.find_spec"})


def findings(source: str) -> Iterator[str]:
    """Tell what in *source* could turn data into code, as ``line: what``."""
    tree = ast.parse(source)
    full_names = _imported(tree)
    constant_imports: set[ast.expr] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import() | ast.ImportFrom():
                for name in _names_of(node):
                    if name.partition(".")[0] in MODULES or name in NAMES:
                        yield f"{node.lineno}: imports {name}"
            case ast.Call():
                if _dotted(node.func, full_names) in IMPORTERS and _first_is_constant(node):
                    constant_imports.add(node.func)
                yield from _dangerous_arguments(node, full_names)
            case ast.Name() | ast.Attribute():
                name = _dotted(node, full_names)
                if name in NAMES or (name in BUILTINS and isinstance(node, ast.Name)):
                    yield f"{node.lineno}: uses {name}"
                elif name in IMPORTERS and node not in constant_imports:
                    yield f"{node.lineno}: imports by a name that is not written in the code"


def _imported(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for, in full."""
    bound: dict[str, str] = {"__builtins__": "builtins"}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    first = alias.name.partition(".")[0]
                    bound[alias.asname or first] = alias.name if alias.asname else first
            case ast.ImportFrom(module=str(module), names=names, level=0):
                bound |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in names}
    return bound


def _names_of(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [f"{node.module}.{alias.name}" for alias in node.names] if not node.level else []


def _dotted(node: ast.expr, full_names: dict[str, str]) -> str:
    match node:
        case ast.Name(id=name):
            return full_names.get(name, name)
        case ast.Attribute(value=value, attr=attr):
            return f"{owner}.{attr}" if (owner := _dotted(value, full_names)) else ""
    return ""


def _first_is_constant(call: ast.Call) -> bool:
    """Whether the module to import is named in the code, and is no forbidden one."""
    match call.args:
        case [ast.Constant(value=str(name)), *_]:
            return name.partition(".")[0] not in MODULES
    return False


def _dangerous_arguments(call: ast.Call, full_names: dict[str, str]) -> Iterator[str]:
    for keyword in call.keywords:
        if keyword.arg == "allow_pickle" and not _is_false(keyword.value):
            yield f"{call.lineno}: allow_pickle"
    # numpy.load(file, mmap_mode, allow_pickle): by position too.
    if _dotted(call.func, full_names) == "numpy.load" and len(call.args) > 2 and not _is_false(call.args[2]):
        yield f"{call.lineno}: allow_pickle"


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def test_all_of_the_package_is_read() -> None:
    read = {path.relative_to(SOURCE).parts[1] for path in SOURCE.rglob("*.py")}
    assert {"codec", "protocol", "security", "streamers", "transports", "engine.py"} <= read


@pytest.mark.parametrize("path", [pytest.param(p, id=p.relative_to(SOURCE).as_posix()) for p in SOURCE.rglob("*.py")])
def test_no_data_becomes_code(path: Path) -> None:
    assert list(findings(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import marshal, json",
        "def f():\n    from cloudpickle import loads",
        "eval(text)",
        "exec(text)",
        "compile(text, '', 'exec')",
        "__import__(name)",
        "run = eval",
        "list(map(eval, texts))",
        "import builtins\nbuiltins.eval(text)",
        "from builtins import exec as run",
        "__builtins__.eval(text)",
        "import yaml\nyaml.load(text, Loader=L)",
        "import yaml as y\ny.unsafe_load(text)",
        "from yaml import load",
        "import numpy as np\nnp.load(file, allow_pickle=True)",
        "import numpy\nnumpy.load(file, None, True)",
        "import numpy as np\nnp.load(file, allow_pickle=allowed)",
        "import torch\ntorch.load(file)",
        "from importlib import import_module\nimport_module(name)",
        "import importlib\nimportlib.import_module(f'fanstream.{name}')",
        "import importlib\nimportlib.import_module('pickle')",
        "import importlib\nload = importlib.import_module",
        "import importlib.util\nimportlib.util.find_spec(name)",
        "import pydoc\npydoc.locate(name)",
    ],
)
def test_what_turns_data_into_code_is_found(source: str) -> None:
    assert list(findings(source))


@pytest.mark.parametrize(
    "source",
    [
        "import re\nre.compile('a')",
        "model.eval()",
        "def evaluate(exec_time): return exec_time",
        "import json\njson.loads(text)",
        "import numpy as np\nnp.load(file, allow_pickle=False)\nnp.load(file, 'r')",
        "import yaml\nyaml.safe_load(text)",
        "from importlib import import_module\nimport_module('numpy')",
        "from importlib.util import find_spec\nfind_spec('torch')",
        "from .code import loads",
        "'pickle'  # eval(this)",
    ],
)
def test_what_does_not_is_let_be(source: str) -> None:
    assert list(findings(source)) == []
