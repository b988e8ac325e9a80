"""Other shapes of producers and consumers: plain functions, synchronous classes, async generators."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final, TypeVar, cast

import anyio
import anyio.to_thread

from .context import FLContext, StreamContext
from .shareable import Shareable
from .streaming import ConsumerFactory, ObjectConsumer, ObjectProducer, Timeout

_T = TypeVar("_T")


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling *function* gives something to await."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


async def call(
    function: Callable[..., Any], *args: Any, limiter: anyio.CapacityLimiter | None = None, **kwargs: Any
) -> Any:
    """Call a function that may be sync or async; a sync one in a worker thread when *limiter* is given.

    A call in a thread is never abandoned: a cancellation waits for its return.
    """
    if limiter is not None and not is_async(function):
        result = await anyio.to_thread.run_sync(lambda: function(*args, **kwargs), limiter=limiter)
    else:
        result = function(*args, **kwargs)
    if inspect.isawaitable(result):
        return await result
    return result


class ThreadedProducer(ObjectProducer):
    """A producer whose methods are plain functions: each runs in a worker thread, one at a time.

    Methods of it that are async are awaited as they are.
    """

    def __init__(self, producer: Any, limiter: anyio.CapacityLimiter) -> None:
        self._producer = producer
        self._limiter = limiter
        self._lock = anyio.Lock()
        # What the application did not override costs nothing.
        if not _overrides(producer, "process_reply"):
            self.process_reply = ObjectProducer.process_reply.__get__(self)  # type: ignore[method-assign]
        if not _overrides(producer, "process_late_reply"):
            self.process_late_reply = ObjectProducer.process_late_reply.__get__(self)  # type: ignore[method-assign]

    async def _call(self, name: str, *args: Any) -> Any:
        async with self._lock:
            return await call(getattr(self._producer, name), *args, limiter=self._limiter)

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, Timeout]:
        return cast("tuple[Shareable | None, Timeout]", await self._call("produce", stream_ctx, fl_ctx))

    async def seek(self, seq: int, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        await self._call("seek", seq, stream_ctx, fl_ctx)

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        return await self._call("process_replies", replies, stream_ctx, fl_ctx)

    async def process_reply(
        self, site: str, seq: int, reply: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> None:
        await self._call("process_reply", site, seq, reply, stream_ctx, fl_ctx)

    async def process_late_reply(
        self, site: str, seq: int, reply: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> None:
        await self._call("process_late_reply", site, seq, reply, stream_ctx, fl_ctx)


class GeneratorProducer(ObjectProducer):
    """An async generator as a producer: ``replies = yield obj``, or ``yield obj, timeout``; lock step.

    When the generator ends, so does the stream. When all sites have finished first, it is resumed once more, with the
    last replies; what it yields then goes nowhere.
    """

    def __init__(self, generator: AsyncGenerator[Any, Any], timeout: float) -> None:
        self._generator = generator
        self._timeout = timeout
        self._replies: dict[str, Shareable] | None = None

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, Timeout]:
        replies, self._replies = self._replies, None
        try:
            produced = await self._generator.asend(replies)
        except StopAsyncIteration:
            return None, 0
        if isinstance(produced, tuple):
            return cast("tuple[Shareable | None, Timeout]", produced)
        return produced, self._timeout

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        self._replies = replies
        return None

    async def show_last_replies(self) -> None:
        """Resume the generator with replies that it has not seen."""
        if self._replies is not None:
            with contextlib.suppress(StopAsyncIteration):
                await self._generator.asend(self._replies)

    async def aclose(self) -> None:
        """Close the generator, whose clean-up may wait."""
        await self._generator.aclose()


_PRODUCER: Final = ("produce", "process_replies")


def as_producer(
    producer: Any, *, window: int, timeout: float, limiter: anyio.CapacityLimiter, seeks: bool = False
) -> ObjectProducer:
    """Return *producer* as an ObjectProducer; with *seeks*, as one that can begin anywhere.

    Raises:
        TypeError: it is neither an async generator nor has the methods of a producer, or of a SeekableProducer.
        ValueError: it is a generator, which is lock step, and *window* is not 1.
    """
    if inspect.isasyncgenfunction(producer):
        raise TypeError(
            f"producer is the generator function {producer.__qualname__}: call it, and pass what it returns"
        )
    if seeks and not callable(getattr(producer, "seek", None)):
        raise TypeError(
            f"producer is {producer!r} of type {type(producer).__name__}, which has no method seek: a durable stream "
            "needs a SeekableProducer"
        )
    if inspect.isasyncgen(producer):
        if window != 1:
            raise ValueError(f"window is {window}: a generator gets the replies to each object from its yield, so 1")
        return GeneratorProducer(producer, timeout)
    for name in _PRODUCER:
        if not callable(getattr(producer, name, None)):
            raise TypeError(
                f"producer is {producer!r} of type {type(producer).__name__}, expected an ObjectProducer "
                f"or an async generator; it has no method {name}"
            )
    called = (*_PRODUCER, "seek") if seeks else _PRODUCER
    if isinstance(producer, ObjectProducer) and all(is_async(getattr(producer, name)) for name in called):
        return producer
    return ThreadedProducer(producer, limiter)


def _overrides(producer: Any, name: str) -> bool:
    method = getattr(type(producer), name, None)
    return method is not None and method is not getattr(ObjectProducer, name)


def watches_replies(producer: ObjectProducer) -> bool:
    """Whether a producer wants to see replies as they arrive, late ones included."""
    inner = producer._producer if isinstance(producer, ThreadedProducer) else producer
    return _overrides(inner, "process_reply") or _overrides(inner, "process_late_reply")


class FunctionConsumer(ObjectConsumer):
    """A function as a consumer: it gets each object, and returns a reply, ``(go_on, reply)``, or None for OK."""

    def __init__(self, function: Callable[..., Any], limiter: anyio.CapacityLimiter) -> None:
        self._function = function
        self._limiter = None if is_async(function) else limiter

    async def consume(
        self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> tuple[bool, Shareable | None]:
        if self._limiter is None:
            result = await self._function(shareable, stream_ctx, fl_ctx)
        else:
            result = await call(self._function, shareable, stream_ctx, fl_ctx, limiter=self._limiter)
        if result is None:
            return True, None
        if isinstance(result, tuple):
            return cast("tuple[bool, Shareable]", result)
        return True, cast("Shareable", result)


class FunctionFactory(ConsumerFactory):
    """Makes a consumer of one function for every stream."""

    def __init__(self, function: Callable[..., Any], limiter: anyio.CapacityLimiter) -> None:
        if not callable(function):
            raise TypeError(f"consumer is {function!r} of type {type(function).__name__}, expected a function")
        self._consumer = FunctionConsumer(function, limiter)

    async def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        return self._consumer
