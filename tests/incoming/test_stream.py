"""What an incoming stream does beneath its contract."""

from __future__ import annotations

import anyio
import pytest

from fanstream import EngineSettings
from tests.federation import Keeper, Numbers, federation, within_the_process

pytestmark = pytest.mark.anyio


@within_the_process
async def test_a_consumer_at_work_is_not_idle_however_long_it_takes(transport: str) -> None:
    async with federation(transport, 1, settings=EngineSettings(idle_timeout=20)) as fed:
        keeper = Keeper()
        keeper.do = lambda _n: anyio.sleep(90)
        keeper.register(fed.sites["site-1"])
        result = await fed.stream(Numbers(2, timeout=100))
        assert result.complete
        assert keeper.rcs == ["OK"]
