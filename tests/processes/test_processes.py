from __future__ import annotations

import sys
from random import Random

import anyio
import pytest

from .lab import lab
from .scenarios import DURABLE, SCENARIOS, WITH_JOURNALS

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


async def test_killed_processes_that_keep_journals() -> None:
    """The same for sites whose next life goes on."""
    with anyio.fail_after(55):
        async with lab("--heartbeat", "0.3", "--silence", "1", "--journal") as made:
            for run, scenario in enumerate(WITH_JOURNALS.values(), 1):
                await scenario(made, run, Random(run))


async def test_a_killed_opener_that_alone_keeps_a_journal() -> None:
    """Its sites need none for it to resume its streams."""
    with anyio.fail_after(55):
        async with lab("--heartbeat", "0.3", "--silence", "1", "--journal", "opener") as made:
            for run, scenario in enumerate(DURABLE.values(), 1):
                await scenario(made, run, Random(run))
