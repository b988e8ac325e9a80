"""What is cut, aborted or ended while a thread decodes an envelope, at each moment of that: nothing is left of it.

Threads are stood in for: what they do takes virtual time, half of it before it is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
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
    StreamContextKey,
    StreamEngine,
    StreamOptions,
    StreamResult,
)
from fanstream.errors import ClosedError
from fanstream.outgoing.handle import OpenStream
from fanstream.testing import FaultyNetwork
from tests.federation import Federation, Keeper, check_account, federation, on_memory, until
from tests.security.kits import identities

pytestmark = [pytest.mark.anyio, on_memory]

SETTINGS = EngineSettings(
    registration_grace=0,
    retry_first=0.01,
    retry_max=0.02,
    silence=600,  # nothing is stalled, and heartbeats would be most of the work
    suite="pq-sha256",
)
OPENER, RECEIVER = "site-1", "site-2"
LONG = ["some text of this list"] * 1500  # about 35 KiB of envelope: more than is decoded at once
LARGE = np.zeros(20_000)  # needs room of its own, and memory
HALF: Final = 0.04  # seconds
MOMENTS: Final = (0.005, 0.02, 0.06, 0.1, 0.14, 0.2)
"""Seconds from the start on: as it begins, within each half of what two objects take, and after that."""
SEALED_MOMENTS: Final = (0.02, 0.1, 0.18, 0.26)
"""The same where one call seals, one opens the head, and one the rest."""


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

    def __init__(self, fed: Federation, network: FaultyNetwork, options: StreamOptions, *, sealed: bool) -> None:
        self.fed = fed
        self.network = network
        self.options = options
        self.sealed = sealed
        self.scope = anyio.CancelScope()
        self.signal = AbortSignal()
        self.over = {OPENER: anyio.Event(), RECEIVER: anyio.Event()}
        self.engines: dict[str, StreamEngine] = {}
        self.result: StreamResult | None = None

    async def live(self, name: str) -> None:
        kit = identities()(name) if self.sealed else None
        hub = self.fed.server.addresses[0]
        async with StreamEngine(name, connect=hub, settings=SETTINGS, identity=kit) as engine:
            self.engines[name] = engine
            await self.over[name].wait()
            del self.engines[name]

    async def stream(self, obj: dict[str, Any]) -> None:
        opener = self.engines[OPENER]
        context = opener.new_context("job", abort_signal=self.signal)
        # An engine that ends says so to whoever still sends.
        with self.scope, suppress(ClosedError):
            async with (
                opener.open_stream(
                    "models", "weights", [RECEIVER], context, secure=self.sealed, options=self.options
                ) as stream,
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
        await anyio.wait_all_tasks_blocked()
        before = tasks()
        async with anyio.create_task_group() as tg:
            for name in self.over:
                tg.start_soon(self.live, name)
            await self.fed.server.wait_for_sites(self.over)
            await until(lambda: len(self.engines) == 2)
            await self.engines[OPENER].wait_for_sites([RECEIVER])
            self.engines[RECEIVER].register_stream_processing("models", "weights", site, site.done)
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
    "cut at the opener": (cut(OPENER), {}),
    "cut at the receiver": (cut(RECEIVER), {}),
    "cut for good": (cut(RECEIVER), {"resume_window": 0}),
    "abort": (lambda scene: scene.signal.trigger("enough"), {}),
    "cancellation": (lambda scene: scene.scope.cancel(), {}),
    "end of the opener": (end(OPENER), {}),
    "end of the receiver": (end(RECEIVER), {}),
    "deadline": (lambda scene: None, {"end_timeout": 0.01, "gather": "first"}),
}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {
    "objects": ({"items": LONG, "a": LARGE}, {}, None),
    "replies and ends": ({}, {"items": LONG, "a": LARGE}, LONG),
    "sealed objects": ({"items": LONG, "a": LARGE}, {}, None),
    "sealed replies": ({}, {"items": LONG, "a": LARGE}, None),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("what", DISTURBANCES)
async def test_nothing_is_left(transport: str, monkeypatch: pytest.MonkeyPatch, case: str, what: str) -> None:
    monkeypatch.setattr(anyio.to_thread, "run_sync", _take_time)
    disturb, options = DISTURBANCES[what]
    obj, reply, result = CASES[case]
    sealed = case.startswith("sealed")
    with FaultyNetwork() as network:
        async with federation(
            transport, 0, settings=SETTINGS, identity=identities() if sealed else None, seconds=20_000
        ) as fed:
            for moment in SEALED_MOMENTS if sealed else MOMENTS:
                scene = Scene(fed, network, StreamOptions(window=2, **options), sealed=sealed)
                await scene.run(obj, Site(reply, result), disturb, moment)
                if what.startswith("cut at"):
                    assert scene.result is not None
                    assert scene.result.complete, (moment, scene.result)
            fed.sites = {}


class Leaving(Site):
    """Leaves with its first answer."""

    async def consume(self, shareable: Shareable, stream_ctx: Any, fl_ctx: Any) -> tuple[bool, Shareable]:
        return False, Shareable(self._reply)


@asynccontextmanager
async def with_a_long_end(
    transport: str, monkeypatch: pytest.MonkeyPatch, kind: type[Site]
) -> AsyncIterator[OpenStream]:
    """An open stream to a site whose end takes long to decode; afterwards what it has brought is there."""
    monkeypatch.setattr(anyio.to_thread, "run_sync", _take_time)
    async with federation(transport, 1) as fed:
        site = kind({}, LONG)
        fed.sites["site-1"].register_stream_processing("models", "weights", site, site.done)
        async with fed.server.open_stream("models", "weights", ["site-1"]) as stream:
            yield stream
        assert stream.result is not None
        assert stream.result.sites["site-1"].end_result == LONG


async def test_a_stream_may_be_ended_while_the_end_of_its_site_is_decoded(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with with_a_long_end(transport, monkeypatch, Leaving) as stream:
        assert set(await stream.send(Shareable(), timeout=30)) == {"site-1"}
    assert stream.result is not None
    assert stream.result.complete


class Ending(Site):
    """Ends the stream with its first object, which it does not answer."""

    async def consume(self, shareable: Shareable, stream_ctx: Any, fl_ctx: Any) -> tuple[bool, Shareable]:
        stream_ctx[StreamContextKey.END_STREAM]("OK")
        await anyio.sleep_forever()
        raise AssertionError


async def test_an_object_may_be_sent_while_the_end_of_a_site_is_decoded(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with with_a_long_end(transport, monkeypatch, Ending) as stream, anyio.create_task_group() as tg:
        tg.start_soon(stream.send, Shareable(), 30)
        await anyio.sleep(HALF)
        assert await stream.send(Shareable(), timeout=30) == {}
    assert stream.result is not None
    assert stream.result.sites["site-1"].outcomes == {"not_sent": 2}


async def test_an_object_may_be_sent_while_the_last_reply_of_a_lost_site_is_decoded(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anyio.to_thread, "run_sync", _take_time)
    answers: list[Any] = []
    with FaultyNetwork() as network:
        async with federation(transport, 1) as fed:
            Keeper(_long_answer).register(fed.sites["site-1"])
            options = StreamOptions(window=2, resume_window=0)
            async with (
                fed.server.open_stream("models", "weights", ["site-1"], options=options) as stream,
                anyio.create_task_group() as tg,
            ):

                async def send(number: int) -> None:
                    replies = await stream.send(Shareable({"n": number}), timeout=30)
                    answers.append((number, replies["site-1"].get_return_code()))

                tg.start_soon(send, 0)
                await anyio.sleep(HALF / 2)
                network.link("site-1").cut()
                await anyio.sleep(HALF / 2)
                await send(1)
    assert sorted(answers) == [(0, "OK"), (1, "COMMUNICATION_ERROR")]


async def _long_answer(_number: int) -> tuple[bool, Shareable]:
    return True, Shareable({"items": LONG})
