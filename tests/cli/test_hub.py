"""The command that runs a hub: between sites of a federation, and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from fanstream import Shareable, StreamEngine
from fanstream.cli import main
from fanstream.security.provision import Federation, Plan

PLAN = """
federation = "hospitals"
[[hubs]]
name = "hub"
host = "127.0.0.1"
port = {port}
[[sites]]
name = "site-1"
[[sites]]
name = "site-2"
"""


@pytest.fixture
def kits(tmp_path: Path, free_port: int) -> Path:
    plan = tmp_path / "federation.toml"
    plan.write_text(PLAN.format(port=free_port))
    return Federation.make(Plan.read(plan), tmp_path / "out").kits


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_hub_forwards_until_it_is_terminated(anyio_backend: str, kits: Path) -> None:
    command = [sys.executable, "-m", "fanstream", "hub", str(kits / "hub")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220 - it waits for nothing
        try:
            with anyio.fail_after(30):
                async with (
                    StreamEngine.from_kit(kits / "site-1") as one,
                    StreamEngine.from_kit(kits / "site-2") as two,
                ):

                    @two.consumer("demo", "hello")
                    async def hello(shareable: Shareable, stream_ctx: Any, fl_ctx: Any) -> Shareable:
                        return Shareable({"n": shareable["n"] + 1})

                    await one.wait_for_sites(["hub", "site-2"])
                    async with one.open_stream("demo", "hello", ["site-2"]) as stream:
                        replies = await stream.send(Shareable({"n": 1}), timeout=10)
                assert replies["site-2"]["n"] == 2
        finally:
            process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
    assert said.startswith("hub listens at tls://")
    assert process.returncode == 0


def test_only_the_kit_of_a_hub_runs_one(kits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hub", str(kits / "site-1")]) == 1
    assert "site-1: is a site's kit, and only a hub listens. Give the kit of a hub" in capsys.readouterr().err
    assert main(["hub", str(kits / "nobody")]) == 1
