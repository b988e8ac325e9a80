from __future__ import annotations

import sys
from random import Random

import anyio
import pytest

from .lab import lab
from .scenarios import SCENARIOS

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"], indirect=True),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and sends SIGSTOP"),
]


async def test_killed_and_frozen_processes() -> None:
    """Each scenario once, in processes that go on; `nox -s processes` does it hundreds of times."""
    with anyio.fail_after(55):
        async with lab("--heartbeat", "0.3", "--silence", "1") as made:
            for run, scenario in enumerate(SCENARIOS.values(), 1):
                await scenario(made, run, Random(run))
