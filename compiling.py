"""The build hook that compiles what runs for each object, with mypyc; builds run it where they are asked to.

The modules are the same that run interpreted. A compiled one may have no ``raise ... from``, which mypyc drops, no
Struct of msgspec, and no class that an interpreted module derives from; ``tests/test_compiling.py`` sees to it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT: Final = Path(__file__).parent
MODULES: Final = (
    "arguments",
    "codec/codec",
    "codec/decode",
    "codec/encode",
    "codec/payloads",
    "codec/scan",
    "codec/tags",
    "deadlines",
    "incoming/stream",
    "link",
    "outgoing/dues",
    "outgoing/durable",
    "outgoing/held",
    "outgoing/producing",
    "outgoing/stream",
    "outgoing/unpacking",
    "protocol/budget",
    "protocol/core",
    "protocol/events",
    "protocol/frames",
    "protocol/gather",
    "protocol/inbound",
    "protocol/leg",
    "protocol/opener",
    "protocol/pace",
    "protocol/patience",
    "protocol/receiver",
    "protocol/receiving",
    "protocol/relay",
    "protocol/resets",
    "protocol/sending",
    "protocol/session",
    "protocol/surroundings",
    "wakeup",
)
_SETUP: Final = """
import sys
from mypyc.build import mypycify
from setuptools import setup

options = ["--no-site-packages", "--follow-imports=silent", "--ignore-missing-imports", "--cache-dir", sys.argv.pop(1)]
modules = mypycify([*options, *sys.argv.pop(1).split(",")], target_dir=sys.argv.pop(1))
setup(name="fanstream", packages=[], ext_modules=modules)
"""


def compile_modules(into: Path) -> list[Path]:
    """Compile the modules; return what was made, below *into*, at the paths that it has in an environment.

    Raises:
        RuntimeError: mypyc or the C compiler has refused something; the message has its words.
    """
    paths = ",".join(str(ROOT / "src" / "fanstream" / f"{module}.py") for module in MODULES)
    built = into / "built"
    command = [sys.executable, "-c", _SETUP, str(into / "cache"), paths, str(into / "generated")]
    command += ["build_ext", "--build-lib", str(built), "--build-temp", str(into / "objects")]
    done = subprocess.run(  # noqa: S603 - its parts are this module's own
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=into,
        env={**os.environ, "MYPYPATH": str(ROOT / "src")},
    )
    if done.returncode:
        raise RuntimeError(f"mypyc has failed:\n{done.stdout[-10_000:]}\n{done.stderr[-10_000:]}")
    return sorted(path.relative_to(built) for path in built.rglob("*") if path.suffix in (".so", ".pyd"))


class CompilingHook(BuildHookInterface[Any]):
    """Adds the compiled modules to a wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile them; called before the wheel is put together."""
        self._scratch = TemporaryDirectory()
        scratch = Path(self._scratch.name)
        for path in compile_modules(scratch):
            build_data["force_include"][str(scratch / "built" / path)] = str(path)
        build_data["infer_tag"] = True
        build_data["pure_python"] = False

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Put the scratch folder away; called once the wheel is there."""
        self._scratch.cleanup()
