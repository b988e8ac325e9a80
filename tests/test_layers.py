"""The contracts on imports in pyproject.toml hold, and refuse what they are for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT_IMPORTS = "from importlinter.cli import lint_imports_command as lint; lint()"
SKELETON = {
    "__init__": "from .engine import e",
    "engine": "from .outgoing.running import r\nfrom .peers.connections import c\ne = 0",
    "outgoing.__init__": "",
    "outgoing.running": "from .stream import o\nr = 0",
    "outgoing.stream": "from ..link import k\nfrom .dues import d\no = 0",
    "outgoing.dues": "d = 0",
    "incoming.__init__": "",
    "incoming.stream": "from ..link import k\nfrom .registry import r",
    "incoming.registry": "r = 0",
    "peers.__init__": "",
    "peers.connections": "from ..link import k\nfrom .sites import s\nc = 0",
    "peers.sites": "s = 0",
    "link": "from .transports import t\nimport asyncio, anyio\nk = 0",
    "transports.__init__": "from ..protocol import p\nt = 0",
    "protocol.__init__": "from .frames import f\np = 0",
    "protocol.frames": "from ..errors import x\nimport struct\nf = 0",
    "security.__init__": "",
    "security.sealed.__init__": "from ...errors import x\nimport cryptography",
    "codec.__init__": "from ..errors import x\nimport msgspec\nc = 0",
    "options": "from .errors import x\nimport pydantic",
    "errors": "x = 0",
}


def lint_imports(source_root: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", LINT_IMPORTS, "--config", str(ROOT / "pyproject.toml"), "--no-cache", "--no-logo"],
        cwd=source_root,
        env=os.environ | {"PYTHONPATH": str(source_root)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def write_package(root: Path, modules: dict[str, str]) -> None:
    for name, source in modules.items():
        path = root.joinpath("fanstream", *name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source + "\n", encoding="utf-8")


def test_the_contracts_hold() -> None:
    status, report = lint_imports(ROOT / "src")
    assert status == 0, report


def test_a_package_that_keeps_to_the_layers_passes(tmp_path: Path) -> None:
    write_package(tmp_path, SKELETON)
    status, report = lint_imports(tmp_path)
    assert status == 0, report


@pytest.mark.parametrize(
    ("module", "source", "contract"),
    [
        pytest.param("protocol.frames", "import asyncio", "pure", id="the protocol imports asyncio"),
        pytest.param("codec.chunks", "from time import monotonic", "pure", id="the codec reads a clock"),
        pytest.param("errors", "import anyio\nx = 0", "pure", id="the protocol reaches anyio through another module"),
        pytest.param("security.sealed.chunks", "import os", "sealed", id="sealed streams take random bytes themselves"),
        pytest.param("codec.chunks", "from ..protocol import p", "layers", id="the codec imports the protocol"),
        pytest.param("transports.memory", "from ..engine import e", "layers", id="a transport imports the engine"),
        pytest.param("transports.memory", "from .. import e", "layers", id="a transport imports the package's face"),
        pytest.param("outgoing.dues", "from ..incoming.stream import k\nd = 0", "layers", id="halves of a stream meet"),
        pytest.param("helpers", "", "layers", id="a module without a place"),
        pytest.param("outgoing.dues", "from .stream import o\nd = 0", "outgoing", id="a part knows its stream"),
        pytest.param("incoming.registry", "from .stream import k\nr = 0", "incoming", id="the registry knows a stream"),
        pytest.param("peers.helpers", "", "peers", id="a module without a place among the peers"),
    ],
)
def test_a_contract_refuses(module: str, source: str, contract: str, tmp_path: Path) -> None:
    names = {
        "layers": "Imports point downward only",
        "outgoing": "An outgoing stream knows its parts, and not who drives it",
        "incoming": "An incoming stream knows what is registered, and not who takes it",
        "peers": "What is known of other sites meets in the connections",
        "pure": "The protocol and the codec do no I/O and know no clock",
        "sealed": "Sealed streams get keys, the time and random bytes handed in, and do no I/O",
    }
    write_package(tmp_path, SKELETON | {module: source})
    status, report = lint_imports(tmp_path)
    assert status == 1, report
    assert f"{names[contract]} BROKEN" in report
