"""A dict, list or set, each top-level entry as one object; what it is travels as one of three words, not as a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio

from ..arguments import check_count
from ..codec.faults import Fault
from ..codec.hashes import check_spread
from ..context import FLContext, StreamContext
from ..engine import StreamEngine
from ..options import StreamOptions
from ..shareable import Shareable
from ..streaming import Registration, StreamResult, Timeout
from .arguments import check_callback, check_engine, check_options
from .entries import BadEntryError, EntryConsumer, EntryProducer
from .whole import WholeFactory, send_whole

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
            entries = [{"key": key, "value": value} for key, value in container.items()]
        elif type(container) is list or type(container) is set:
            entries = [{"value": value} for value in container]
        else:
            raise TypeError(f"container is of type {type(container).__name__}, expected a dict, a list or a set")
        super().__init__(entries, timeout, withdraw=withdraw)
        self._kind = type(container).__name__

    async def part(self) -> tuple[Mapping[str, Any], bool]:
        part, last = await super().part()
        return {**part, "kind": self._kind}, last  # an empty container has no entry to say so


class _ContainerConsumer(EntryConsumer):
    def __init__(self, on_container: Callable[..., Any], limiter: anyio.CapacityLimiter, max_entries: int) -> None:
        super().__init__(on_container, limiter, max_entries)
        self._kind: Any = None
        self._keys: list[Any] = []
        self._values: list[Any] = []

    def add(self, entry: Shareable) -> None:
        self._kind = entry.get("kind") if self._kind is None else self._kind
        if entry.get("kind") != self._kind or "value" not in entry:
            raise BadEntryError("an entry of another kind, or without a value")
        if self._kind == "dict":
            self._keys.append(entry.get("key"))
        self._values.append(entry["value"])

    def whole(self, first_and_last: Shareable | None) -> Container:
        kind = self._kind if first_and_last is None else first_and_last.get("kind")
        made: Container
        try:
            if kind == "list":
                return self._values
            if kind == "set":
                check_spread(self._values)  # before they meet in one table
                made = set(self._values)
            elif kind == "dict":
                check_spread(self._keys)
                made = dict(zip(self._keys, self._values, strict=True))
            else:
                raise BadEntryError("the kind of container is none of 'dict', 'list' and 'set'")
        except Fault as exc:
            raise BadEntryError(str(exc)) from exc
        if len(made) != len(self._values):
            raise BadEntryError("a key or member was there twice")
        return made


async def stream_container(
    engine: StreamEngine,
    channel: str,
    topic: str,
    targets: Sequence[str],
    container: Container,
    fl_ctx: FLContext,
    stream_ctx: StreamContext | None = None,
    *,
    timeout: Timeout = 60.0,  # noqa: ASYNC109 - a site's time for each object, not the call's
    optional: bool = False,
    secure: bool = False,
    options: StreamOptions | None = None,
) -> tuple[StreamResult, dict[str, Shareable]]:
    """Send a dict, list or set to sites, each of its entries as one object.

    *container* is of exactly one of these types, not to be changed while the stream runs; its entries are anything that
    a Shareable may hold. The other arguments, and what is returned, are as for all of ``fanstream.streamers``: its
    docstring tells.
    """
    check_engine(engine)
    options = check_options(options)
    producer = ContainerProducer(container, timeout, withdraw=options.gather != "all")
    return await send_whole(engine, channel, topic, stream_ctx, targets, producer, fl_ctx, optional, secure, options)


def register_containers(
    engine: StreamEngine,
    channel: str,
    topic: str,
    on_container: Callable[..., Any],
    *,
    max_entries: int = 1_000_000,
) -> Registration:
    """Receive containers.

    *on_container* gets the dict, list or set. One of more than *max_entries* entries is refused. The other arguments
    are as for all of ``fanstream.streamers``: its docstring tells.
    """
    check_engine(engine)
    check_callback(on_container, "on_container")
    check_count(max_entries, "max_entries")
    return engine.register_stream_processing(
        channel, topic, WholeFactory(lambda: _ContainerConsumer(on_container, engine.limiter, max_entries))
    )
