"""What may be compiled: modules that mean the same to mypyc as they do to Python."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "fanstream"


def compiled() -> list[str]:
    """The modules that ``compiling.py`` names; read, for importing it takes a build's own libraries."""
    for node in ast.parse((ROOT / "compiling.py").read_text()).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "MODULES":
            assert node.value is not None
            return list(ast.literal_eval(node.value))
    raise AssertionError("compiling.py names no modules")


def classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize("module", compiled())
def test_what_mypyc_would_drop_is_not_there(module: str) -> None:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    chains = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.cause is not None]
    assert not chains, "mypyc drops `raise ... from`: use errors.chained"
    bases = {ast.unparse(base) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases}
    assert not {base for base in bases if base.endswith("Struct")}, "mypyc drops what a Struct is told"


def test_no_interpreted_class_derives_from_a_compiled_one() -> None:
    modules = compiled()
    native = {node.name for module in modules for node in classes(PACKAGE / f"{module}.py")}
    protocols = {
        node.name
        for module in modules
        for node in classes(PACKAGE / f"{module}.py")
        if any(ast.unparse(base) in ("Protocol", "Enum", "StrEnum", "IntEnum") for base in node.bases)
    }
    for path in PACKAGE.rglob("*.py"):
        if str(path.relative_to(PACKAGE).with_suffix("")) in modules:
            continue
        for node in classes(path):
            heirs = {ast.unparse(base) for base in node.bases} & (native - protocols)
            # Exceptions are Python's own objects, whoever makes them.
            heirs = {name for name in heirs if not name.endswith("Error")}
            assert not heirs, f"{path.name}: {node.name} derives from {heirs}"
