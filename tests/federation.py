"""A server and its sites for tests, on any transport, with producers and consumers that remember what happened."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest

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
    StreamResult,
    make_reply,
)
from fanstream.testing import LinkControl, asyncio_backend, trio_backend

_lab = count()
_ASYNCIO = ("asyncio", {"use_uvloop": False})
_ASYNCIO_VIRTUAL = asyncio_backend()
_TRIO_VIRTUAL = trio_backend()

QUICK = EngineSettings(registration_grace=0.0)

_PLACES = {
    "local": [
        pytest.param(_ASYNCIO_VIRTUAL, "local", id="asyncio-local"),
        pytest.param(_TRIO_VIRTUAL, "local", id="trio-local"),
    ],
    "memory": [
        pytest.param(_ASYNCIO_VIRTUAL, "memory", id="asyncio-memory"),
        pytest.param(_TRIO_VIRTUAL, "memory", id="trio-memory"),
    ],
    "sockets": [
        pytest.param(_ASYNCIO, "tcp", id="asyncio-tcp"),
        pytest.param(_ASYNCIO, "unix", id="asyncio-unix"),
    ],
}


def _on(*kinds: str) -> pytest.MarkDecorator:
    places = [place for kind in kinds for place in _PLACES[kind]]
    return pytest.mark.parametrize(("anyio_backend", "transport"), places, indirect=["anyio_backend"], scope="module")


everywhere = _on("local", "memory", "sockets")
"""Every transport, on the backends that it runs on; within the process, time is virtual."""
hubs = _on("memory", "sockets")
"""The same without engines that have no address: sites dial in to a hub."""
within_the_process = _on("local", "memory")
"""Where time is virtual."""
on_memory = _on("memory")
"""The first two of these: time is virtual, and links can be made to fail."""
over_sockets = _on("sockets")
"""Where time is real."""


def is_real(transport: str) -> bool:
    """Whether time is."""
    return transport in ("tcp", "unix")


def long_or_short(transport: str, long: float, short: float) -> float:
    """Choose a timeout: as long as users have them where time is virtual, short where it is real."""
    return short if is_real(transport) else long


def check_elapsed(transport: str, began: float, seconds: float) -> None:
    """So much time has passed since *began*: to the millisecond where time is virtual, and no less where it is real."""
    elapsed = anyio.current_time() - began
    if is_real(transport):
        assert elapsed >= seconds - 0.005
    else:
        assert elapsed == pytest.approx(seconds, abs=1e-3)


def delayed(seconds: float) -> Callable[[LinkControl], None]:
    """Say what a ``FaultyNetwork`` is to do with each link: let bytes be under way for *seconds*, either way."""

    def delay(link: LinkControl) -> None:
        link.up.delay = link.down.delay = seconds

    return delay


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Poll until *condition* holds."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what is polled has no event of its own
            await anyio.sleep(0.005)


class Federation:
    """One server, and the sites that can reach it."""

    def __init__(
        self,
        transport: str,
        stack: AsyncExitStack,
        settings: EngineSettings | Callable[[str], EngineSettings] | None,
        identity: Callable[[str], Any] | None = None,
    ) -> None:
        self._transport = transport
        self._stack = stack
        self._settings = settings if callable(settings) else lambda _name: settings
        self._identity = identity or (lambda _name: None)
        self.server: StreamEngine
        self.sites: dict[str, StreamEngine] = {}

    async def start(self) -> None:
        listen = {
            "local": None,
            "memory": f"memory://lab-{next(_lab)}",
            "tcp": "tcp://127.0.0.1:0",
            "unix": None,
        }[self._transport]
        if self._transport == "unix":  # not tmp_path: a socket's path may have about 100 characters
            listen = f"unix://{Path(self._stack.enter_context(tempfile.TemporaryDirectory())) / 's'}"
        server = StreamEngine(
            "server", listen=listen, settings=self._settings("server"), identity=self._identity("server")
        )
        self.server = await self._stack.enter_async_context(server)

    async def join(self, name: str) -> StreamEngine:
        """Start one more site; it may not be reachable yet."""
        connect = self.server.addresses or None
        site = StreamEngine(name, connect=connect, settings=self._settings(name), identity=self._identity(name))
        self.sites[name] = await self._stack.enter_async_context(site)
        return site

    @property
    def engines(self) -> list[StreamEngine]:
        return [self.server, *self.sites.values()]

    def leftovers(self) -> list[str]:
        """Say what streams have left behind."""
        found: list[str] = []
        for engine in self.engines:
            found += [f"{engine.name}: outgoing {stream.stream_id}" for stream in engine._outgoing]
            found += [f"{engine.name}: incoming {stream.stream_id}" for stream in engine._incoming]
            found += [f"{engine.name}: legs {link.core.legs}" for link in engine._links if link.core.legs]
            if engine._links._resuming:
                found.append(f"{engine.name}: {len(engine._links._resuming)} streams are suspended or remembered")
            if len(engine.deadlines) > len(engine._links) + (engine._sweep is not None):
                found.append(f"{engine.name}: {len(engine.deadlines)} deadlines, {len(engine._links)} links")
            shared, greeting = engine._links._shared, engine._links._half_open
            if shared.budget.used or shared.budget.standing or shared.relays.used or greeting:
                found.append(
                    f"{engine.name}: {shared.budget.used} bytes reserved, {shared.budget.standing} standing, "
                    f"{shared.relays.used} bytes for relays, {greeting} links that have not greeted"
                )
        return found

    async def settle(self) -> None:
        """Wait until no stream is left; show what is, if some are."""
        with anyio.move_on_after(3):
            await until(lambda: not self.leftovers())
        assert self.leftovers() == []

    async def stream(
        self, producer: Any, targets: list[str] | None = None, *, opener: StreamEngine | None = None, **kwargs: Any
    ) -> StreamResult:
        """Stream from the server (or *opener*) to all sites (or *targets*) on models/weights."""
        engine = opener or self.server
        names = list(self.sites) if targets is None else targets
        fl_ctx = kwargs.pop("fl_ctx", None) or engine.new_context("job")
        stream_ctx = kwargs.pop("stream_ctx", {})
        result = await engine.stream_objects("models", "weights", stream_ctx, names, producer, fl_ctx, **kwargs)
        check_account(result)
        return result


@asynccontextmanager
async def federation(
    transport: str,
    sites: int = 1,
    *,
    settings: EngineSettings | Callable[[str], EngineSettings] | None = None,
    identity: Callable[[str], Any] | None = None,
    seconds: float = 20.0,
) -> AsyncIterator[Federation]:
    """Run a server and its sites; afterwards no stream may have left anything behind.

    It has *seconds* for that where time is real, and a thousand where it is not. *identity* gives each site its own,
    and so may *settings*.
    """
    with anyio.fail_after(seconds if is_real(transport) else max(seconds, 1000)):
        async with AsyncExitStack() as stack:
            fed = Federation(transport, stack, settings, identity)
            await fed.start()
            for number in range(1, sites + 1):
                await fed.join(f"site-{number}")
            for engine in fed.engines:
                await engine.wait_for_sites([other.name for other in fed.engines if other is not engine])
            yield fed
            await fed.settle()


def check_account(result: StreamResult) -> None:
    """Every (object, site) pair has ended as one outcome."""
    for site in result.sites.values():
        assert sum(site.outcomes.values()) == result.objects
    assert sum(result.outcomes.values()) == result.objects * len(result.sites)


Judge = Callable[[int, dict[str, Shareable]], Any]


class Numbers(ObjectProducer):
    """Produces {"n": 0}, {"n": 1}... and keeps the replies; *judge* may end the stream, or be a coroutine function."""

    def __init__(self, number: int, *, timeout: Any = 5.0, judge: Judge | None = None) -> None:
        self.number = number
        self.timeout = timeout
        self.judge = judge
        self.made = 0
        self.log: list[str] = []
        self.replies: list[dict[str, Shareable]] = []

    def timeout_of(self, n: int) -> Any:
        return self.timeout[n] if isinstance(self.timeout, list) else self.timeout

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, Any]:
        self.log.append("produce")
        if self.made == self.number:
            return None, 0
        self.made += 1
        return Shareable({"n": self.made - 1}), self.timeout_of(self.made - 1)

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        self.log.append("process")
        self.replies.append(dict(replies))
        if self.judge is None:
            return None
        value = self.judge(len(self.replies) - 1, replies)
        return await value if hasattr(value, "__await__") else value

    def rcs(self, site: str) -> list[str | None]:
        return [replies[site].get_return_code() if site in replies else None for replies in self.replies]


class Watching(Numbers):
    """The same, and it looks at replies as they arrive."""

    def __init__(self, number: int, *, timeout: Any = 5.0, judge: Judge | None = None) -> None:
        super().__init__(number, timeout=timeout, judge=judge)
        self.early: list[tuple[str, int]] = []
        self.late: list[tuple[str, int]] = []

    async def process_reply(
        self, site: str, seq: int, reply: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> None:
        self.early.append((site, seq))

    async def process_late_reply(
        self, site: str, seq: int, reply: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> None:
        self.late.append((site, seq))


class Blocked(ObjectProducer):
    """Produces nothing, for ever."""

    def __init__(self) -> None:
        self.started = anyio.Event()
        self.cancelled = False

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, float]:
        self.started.set()
        try:
            await anyio.sleep_forever()
        except BaseException:
            self.cancelled = True
            raise
        return None, 0

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        return None


Consume = Callable[[int], Awaitable[Any]]


class Keeper(ConsumerFactory):
    """A factory whose consumers write down everything; *consume* gets each number and may wait, or answer."""

    def __init__(self, consume: Consume | None = None) -> None:
        self.do = consume
        self.log: list[str] = []
        self.seen: list[int] = []
        self.contexts: list[FLContext] = []
        self.stream_ctxs: list[StreamContext] = []
        self.rcs: list[str] = []
        self.ended_at: float | None = None
        self.kwargs: list[dict[str, Any]] = []
        self.blocked = anyio.Event()

    def register(self, engine: StreamEngine, topic: str = "weights", **kwargs: Any) -> Keeper:
        engine.register_stream_processing("models", topic, self, stream_done_cb=self.done, **kwargs)
        return self

    async def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        self.log.append("get_consumer")
        self.contexts.append(fl_ctx)
        self.stream_ctxs.append(stream_ctx)
        return KeptConsumer(self)

    async def return_consumer(self, consumer: ObjectConsumer, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        self.log.append("return_consumer")
        self.contexts.append(fl_ctx)

    async def done(self, stream_ctx: StreamContext, fl_ctx: FLContext, **kwargs: Any) -> Any:
        self.log.append("done_cb")
        self.contexts.append(fl_ctx)
        self.kwargs.append(kwargs)
        return None

    async def block(self) -> None:
        """Wait for ever."""
        self.blocked.set()
        await anyio.sleep_forever()


class KeptConsumer(ObjectConsumer):
    """What a Keeper gives out."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    async def consume(
        self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> tuple[bool, Shareable]:
        keeper = self._keeper
        keeper.log.append("consume")
        keeper.seen.append(shareable["n"])
        answer = None
        try:
            if keeper.do is not None:
                answer = await keeper.do(shareable["n"])
        finally:
            keeper.log.append("consumed")
        if answer is not None:
            return answer  # type: ignore[no-any-return]  # some tests answer with nonsense
        reply = make_reply(ReturnCode.OK)
        reply["n"] = shareable["n"]
        return True, reply

    async def finalize(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        self._keeper.ended_at = anyio.current_time()
        self._keeper.log.append("finalize")
        self._keeper.contexts.append(fl_ctx)
        self._keeper.rcs.append(stream_ctx["__RC__"])
