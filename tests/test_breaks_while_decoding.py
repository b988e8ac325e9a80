"""What is cut, aborted or ended while a thread decodes an envelope, at each moment of that: nothing is left of it.

Threads are stood in for: what they do takes virtual time, half of it before it is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import anyio
import anyio.to_thread
import numpy as np
import pytest
import sniffio

from fanstream import (
    AbortSignal,
    ConsumerFactory,
    EngineSettings,
    ObjectConsumer,
    Shareable,
    StreamEngine,
    StreamOptions,
    StreamResult,
)
from fanstream.errors import ClosedError
from fanstream.testing import FaultyNetwork
from tests.federation import Federation, check_account, federation, on_memory, until

pytestmark = [pytest.mark.anyio, on_memory]

SETTINGS = EngineSettings(registration_grace=0, retry_first=0.01, retry_max=0.02)
LONG = ["some text of this list"] * 1500  # about 35 KiB of envelope: more than is decoded at once
LARGE = np.zeros(20_000)  # needs room of its own, and memory
HALF: Final = 0.04  # seconds
MOMENTS: Final = (0.005, 0.02, 0.06, 0.1, 0.14, 0.2)
"""Seconds from the start on: as it begins, within each half of what two objects take, and after that."""


async def _take_time(
    function: Callable[..., Any],
    *args: Any,
    abandon_on_cancel: bool = False,
    limiter: anyio.CapacityLimiter | None = None,
) -> Any:
    assert limiter is not None
    async with limiter:
        with anyio.CancelScope(shield=not abandon_on_cancel):
            await anyio.sleep(HALF)
            result = function(*args)
            await anyio.sleep(HALF)
            return result


def tasks() -> int:
    """Count the tasks of the running loop."""
    if sniffio.current_async_library() == "asyncio":
        return len(asyncio.all_tasks())
    import trio.lowlevel

    return trio.lowlevel.current_statistics().tasks_living


class Site(ObjectConsumer, ConsumerFactory):
    """Answers with *reply*, and ends with *result*."""

    def __init__(self, reply: dict[str, Any], result: Any) -> None:
        self.log: list[str] = []
        self._reply = reply
        self._result = result

    async def get_consumer(self, stream_ctx: Any, fl_ctx: Any) -> Site:
        self.log.append("get_consumer")
        return self

    async def consume(self, shareable: Shareable, stream_ctx: Any, fl_ctx: Any) -> tuple[bool, Shareable]:
        return True, Shareable(self._reply)

    async def finalize(self, stream_ctx: Any, fl_ctx: Any) -> None:
        self.log.append("finalize")

    async def return_consumer(self, consumer: Any, stream_ctx: Any, fl_ctx: Any) -> None:
        self.log.append("return_consumer")

    def done(self, *_args: Any, **_kwargs: Any) -> Any:
        return self._result


class Scene:
    """One stream from an engine to another over a hub, and what can happen to them."""

    def __init__(self, fed: Federation, network: FaultyNetwork, options: StreamOptions) -> None:
        self.fed = fed
        self.network = network
        self.options = options
        self.scope = anyio.CancelScope()
        self.signal = AbortSignal()
        self.over = {"opener": anyio.Event(), "receiver": anyio.Event()}
        self.engines: dict[str, StreamEngine] = {}
        self.result: StreamResult | None = None

    async def live(self, name: str) -> None:
        async with StreamEngine(name, connect=self.fed.server.addresses[0], settings=SETTINGS) as engine:
            self.engines[name] = engine
            await self.over[name].wait()
            del self.engines[name]

    async def stream(self, obj: dict[str, Any]) -> None:
        opener = self.engines["opener"]
        context = opener.new_context("job", abort_signal=self.signal)
        # An engine that ends says so to whoever still sends.
        with self.scope, suppress(ClosedError):
            async with (
                opener.open_stream("models", "weights", ["receiver"], context, options=self.options) as stream,
                anyio.create_task_group() as tg,
            ):
                for _ in range(2):
                    tg.start_soon(self.send, stream, obj)
            self.result = stream.result

    async def send(self, stream: Any, obj: dict[str, Any]) -> None:
        with suppress(ClosedError):
            await stream.send(Shareable(obj), timeout=30)

    def leftovers(self) -> list[str]:
        self.fed.sites = self.engines
        found = self.fed.leftovers()
        return found + [f"{name}: memory is held" for name, engine in self.engines.items() if engine.codec.memory.held]

    async def run(self, obj: dict[str, Any], site: Site, disturb: Callable[[Scene], object], moment: float) -> None:
        before = tasks()
        async with anyio.create_task_group() as tg:
            for name in self.over:
                tg.start_soon(self.live, name)
            await self.fed.server.wait_for_sites(self.over)
            await until(lambda: len(self.engines) == 2)
            await self.engines["opener"].wait_for_sites(["receiver"])
            self.engines["receiver"].register_stream_processing("models", "weights", site, site.done)
            async with anyio.create_task_group() as streaming:
                streaming.start_soon(self.stream, obj)
                await anyio.sleep(moment)
                disturb(self)
            for _ in range(300):  # seconds: what is suspended or remembered has its leases
                if not self.leftovers():
                    break
                await anyio.sleep(1)
            assert self.leftovers() == []
            for over in self.over.values():
                over.set()
        await until(lambda: tasks() == before)
        assert self.fed.leftovers() == []
        assert site.log in ([], ["get_consumer", "finalize", "return_consumer"])
        if self.result is not None:
            check_account(self.result)


def end(name: str) -> Callable[[Scene], object]:
    return lambda scene: scene.over[name].set()


def cut(name: str) -> Callable[[Scene], object]:
    return lambda scene: scene.network.link(name).cut()


DISTURBANCES: dict[str, tuple[Callable[[Scene], object], dict[str, Any]]] = {
    "cut at the opener": (cut("opener"), {}),
    "cut at the receiver": (cut("receiver"), {}),
    "cut for good": (cut("receiver"), {"resume_window": 0}),
    "abort": (lambda scene: scene.signal.trigger("enough"), {}),
    "cancellation": (lambda scene: scene.scope.cancel(), {}),
    "end of the opener": (end("opener"), {}),
    "end of the receiver": (end("receiver"), {}),
    "deadline": (lambda scene: None, {"end_timeout": 0.01, "gather": "first"}),
}

Case = tuple[dict[str, Any], dict[str, Any], Any]
CASES: dict[str, Case] = {
    "objects": ({"items": LONG, "a": LARGE}, {}, None),
    "replies": ({}, {"items": LONG, "a": LARGE}, None),
    "end results": ({}, {}, LONG),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("what", DISTURBANCES)
async def test_nothing_is_left(transport: str, monkeypatch: pytest.MonkeyPatch, case: str, what: str) -> None:
    monkeypatch.setattr(anyio.to_thread, "run_sync", _take_time)
    disturb, options = DISTURBANCES[what]
    obj, reply, result = CASES[case]
    with FaultyNetwork() as network:
        async with federation(transport, 0, settings=SETTINGS, seconds=20_000) as fed:
            for moment in MOMENTS:
                scene = Scene(fed, network, StreamOptions(window=2, **options))
                await scene.run(obj, Site(reply, result), disturb, moment)
                if what.startswith("cut at"):
                    assert scene.result is not None
                    assert scene.result.complete, (moment, scene.result)
            fed.sites = {}
