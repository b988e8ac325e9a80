"""A dict, list or set, each top-level entry as one object; what it is travels as one of three words, not as a class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import anyio

from ..context import FLContext, StreamContext
from ..engine import StreamEngine
from ..options import StreamOptions
from ..shareable import Shareable
from ..streaming import Registration, StreamResult, Timeout
from .entries import DEFAULT_OPTIONS, BadEntryError, EntryConsumer, EntryFactory, EntryProducer

Container = dict[Any, Any] | list[Any] | set[Any]


class ContainerProducer(EntryProducer):
    """Sends a container entry by entry.

    Args:
        container: a dict, a list or a set, of exactly that type; not to be changed while the stream runs.
        timeout: how long a site may take to answer one entry.
        withdraw: end the stream as soon as the last gather is complete.

    Raises:
        TypeError: *container* is something else.
    """

    def __init__(self, container: Container, timeout: Timeout = 60.0, *, withdraw: bool = False) -> None:
        if type(container) is dict:
            entries = [{"kind": "dict", "key": key, "value": value} for key, value in container.items()]
        elif type(container) is list or type(container) is set:
            entries = [{"kind": type(container).__name__, "value": value} for value in container]
        else:
            raise TypeError(f"container is of type {type(container).__name__}, expected a dict, a list or a set")
        super().__init__(entries, timeout, withdraw=withdraw)
        self._kind = type(container).__name__

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, Timeout]:
        produced, timeout = await super().produce(stream_ctx, fl_ctx)
        if produced is not None:
            produced["kind"] = self._kind  # an empty container has no entry to say so
        return produced, timeout


def _empty(kind: Any) -> Container:
    if kind == "dict":
        return {}
    if kind == "list":
        return []
    if kind == "set":
        return set()
    raise BadEntryError("the kind of container is none of 'dict', 'list' and 'set'")


class _ContainerConsumer(EntryConsumer):
    def __init__(self, on_container: Callable[..., Any], limiter: anyio.CapacityLimiter, max_entries: int) -> None:
        super().__init__(on_container, limiter, max_entries)
        self._kind: Any = None
        self._container: Container | None = None

    def add(self, entry: Shareable) -> None:
        if self._container is None:
            self._kind = entry.get("kind")
            self._container = _empty(self._kind)
        if entry.get("kind") != self._kind or "value" not in entry:
            raise BadEntryError("an entry of another kind, or without a value")
        value, container = entry["value"], self._container
        if isinstance(container, list):
            container.append(value)
            return
        key = entry.get("key") if isinstance(container, dict) else value
        try:
            if key in container:
                raise BadEntryError("a key or member that was there before")
        except TypeError as exc:
            raise BadEntryError("a key or member that cannot be hashed") from exc
        if isinstance(container, dict):
            container[key] = value
        else:
            container.add(key)

    def whole(self, first_and_last: Shareable | None) -> Container | None:
        return self._container if first_and_last is None else _empty(first_and_last.get("kind"))


async def stream_container(
    engine: StreamEngine,
    channel: str,
    topic: str,
    targets: Sequence[str],
    container: Container,
    fl_ctx: FLContext,
    stream_ctx: StreamContext | None = None,
    *,
    timeout: Timeout = 60.0,
    options: StreamOptions | None = None,
) -> StreamResult:
    """Send a dict, list or set to sites, each of its entries as one object.

    Args:
        engine: the opener's.
        channel, topic: the stream's address.
        targets: names of the sites.
        container: what is sent; its entries are anything that a Shareable may hold.
        fl_ctx: the opener's context.
        stream_ctx: reaches every receiver once.
        timeout: how long a site may take to answer one entry.
        options: how the stream runs; a window of 8 when None.
    """
    options = options or DEFAULT_OPTIONS
    producer = ContainerProducer(container, timeout, withdraw=options.gather != "all")
    context = {} if stream_ctx is None else stream_ctx
    return await engine.stream_objects(channel, topic, context, targets, producer, fl_ctx, options=options)


def register_containers(
    engine: StreamEngine,
    channel: str,
    topic: str,
    on_container: Callable[..., Any],
    *,
    max_entries: int = 1_000_000,
) -> Registration:
    """Receive containers.

    Args:
        engine: the receiving site's.
        channel, topic: as in ``register_stream_processing``.
        on_container: called with ``(container, stream_ctx, fl_ctx)`` once it is whole, sync (in a worker thread) or
            async; what it returns is the reply to the last entry, None means OK.
        max_entries: the most entries that one container may have.
    """
    make = partial(_ContainerConsumer, on_container, engine.limiter, max_entries)
    return engine.register_stream_processing(channel, topic, EntryFactory(make))
