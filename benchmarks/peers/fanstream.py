"""fanstream: ``stream_objects`` with a producer, and a consumer at each site; nothing that users do not have.

Settings: all defaults; sealed where an environment variable names a suite. The consumer lets go of each object when it
returns, and its reply is a return code.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fanstream import (
    ConsumerFactory,
    EngineSettings,
    FLContext,
    ObjectConsumer,
    ObjectProducer,
    ReturnCode,
    Shareable,
    StreamContext,
    StreamEngine,
    StreamOptions,
    make_reply,
)

from ..harness.certificates import kit
from . import Opener, Work, payload

if TYPE_CHECKING:
    from fanstream.security import Kit

LOOP: Final = "uvloop"
CHANNEL, TOPIC = "bench", "data"
# A suite of ``EngineSettings``; empty for streams that are not sealed.
SUITE: Final = os.environ.get("FANSTREAM_BENCH_SUITE", "")
# Whether TLS is left to asyncio though aiofastnet is installed.
if os.environ.get("FANSTREAM_BENCH_TLS") == "asyncio":
    sys.modules["aiofastnet"] = None  # type: ignore[assignment]
# Far beyond what any object takes: a deadline that passes is a failure, not a figure.
TIMEOUT: Final = 120.0


class Repeat(ObjectProducer):
    """Sends one object a number of times, and insists on every reply."""

    def __init__(self, obj: Shareable, count: int) -> None:
        self._obj = obj
        self._left = count

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, float]:
        if self._left == 0:
            return None, 0
        self._left -= 1
        return self._obj, TIMEOUT

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        for reply in replies.values():
            if reply.get_return_code() != ReturnCode.OK:
                return False
        return None


class Take(ObjectConsumer):
    """Takes an object and says that it did."""

    async def consume(
        self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> tuple[bool, Shareable]:
        return True, make_reply(ReturnCode.OK)


class Takers(ConsumerFactory):
    """Makes a consumer for each stream."""

    async def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        return Take()


def make_object(work: Work) -> Shareable:
    """The object that *work* sends: arrays of equal size, or bytes."""
    if not work.tensors:
        return Shareable({"x": payload(work.size)})
    length = work.size // 4 // work.tensors
    return Shareable({f"w{number}": np.full(length, number, np.float32) for number in range(work.tensors)})


async def stream(engine: StreamEngine, names: list[str], producer: ObjectProducer, window: int) -> None:
    """Run one stream to its end.

    Raises:
        RuntimeError: a site's reply is missing or not OK.
    """
    options = StreamOptions(window=window)
    result = await engine.stream_objects(
        CHANNEL, TOPIC, {}, names, producer, engine.new_context(), secure=bool(SUITE), options=options
    )
    if not result.complete:
        raise RuntimeError(f"the stream ended {result.rc}: {result.sites}")


class EngineOpener(Opener):
    """An engine that listens."""

    def __init__(self, engine: StreamEngine, sites: int) -> None:
        self.address = engine.addresses[0]
        self._engine = engine
        self._names = [site_name(index) for index in range(sites)]
        self._made: tuple[tuple[int, int], Shareable] | None = None

    async def wait_for_sites(self) -> None:
        await self._engine.wait_for_sites(self._names)

    def prepare(self, work: Work) -> None:
        self._object(work)

    def _object(self, work: Work) -> Shareable:
        key = (work.size, work.tensors)
        if self._made is None or self._made[0] != key:
            self._made = None  # so that two large objects are never held at once
            self._made = (key, make_object(work))
        return self._made[1]

    async def run(self, work: Work) -> None:
        await stream(self._engine, self._names[: work.sites], Repeat(self._object(work), work.count), work.window)


def site_name(index: int) -> str:
    """The name of the site with a number."""
    return f"site-{index + 1}"


def identity(name: str, transport: str) -> Kit | None:
    """Load the kit that TLS and sealed streams need; otherwise nothing of it is imported."""
    if transport != "tls" and not SUITE:
        return None
    from fanstream.security import Kit

    return Kit.load(kit(name))


def settings() -> EngineSettings:
    """The defaults, but for the suite."""
    return EngineSettings.model_validate({"suite": SUITE or None})


@asynccontextmanager
async def opener(sites: int, transport: str) -> AsyncIterator[Opener]:
    """Run the engine that sends."""
    async with AsyncExitStack() as stack:
        address = f"{transport}://127.0.0.1:0"
        if transport == "unix":
            address = f"unix://{Path(stack.enter_context(tempfile.TemporaryDirectory())) / 'fanstream'}"
        engine = await stack.enter_async_context(
            StreamEngine("server", listen=address, settings=settings(), identity=identity("server", transport))
        )
        yield EngineOpener(engine, sites)


@asynccontextmanager
async def site(address: str, index: int) -> AsyncIterator[None]:
    """Run an engine that receives."""
    name = site_name(index)
    kit_of_site = identity(name, address.partition(":")[0])
    async with StreamEngine(name, connect=address, settings=settings(), identity=kit_of_site) as engine:
        engine.register_stream_processing(CHANNEL, TOPIC, Takers())
        await engine.wait_for_sites(["server"])
        yield
