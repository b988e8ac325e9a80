"""A whole sent entry by entry: what the container streamer and the tensor streamer share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio

from ..adapters import call
from ..context import FLContext, StreamContext
from ..shareable import ReturnCode, Shareable, make_reply
from ..streaming import ObjectConsumer, Timeout
from .whole import WholeProducer


class BadEntryError(Exception):
    """What arrived is not the next entry of the whole; the opener is told so."""


class EntryProducer(WholeProducer):
    """Sends entries in order, each as one object with its index and their count; an empty whole is one object.

    Args:
        entries: what each object carries; not to be changed while the stream runs.
        timeout: how long a site may take to answer one entry.
        withdraw: end the stream as soon as the last gather is complete, without waiting for sites outside a quorum.

    Raises:
        TypeError, ValueError: *timeout* is no positive and finite time.
    """

    def __init__(
        self, entries: Sequence[Mapping[str, Any]], timeout: Timeout = 60.0, *, withdraw: bool = False
    ) -> None:
        super().__init__(timeout, withdraw=withdraw)
        self._entries = entries
        self._next = 0

    async def part(self) -> tuple[Mapping[str, Any], bool]:
        index, count = self._next, len(self._entries)
        self._next += 1
        entry = self._entries[index] if self._entries else {}
        return {**entry, "index": index, "count": count}, self._next >= count


class EntryConsumer(ObjectConsumer):
    """Collects entries, and hands over the whole with the last of them.

    Args:
        on_whole: called with ``(whole, stream_ctx, fl_ctx)``, sync (in a worker thread) or async; what it returns is
            the reply to the last object, None means OK.
        limiter: for worker threads.
        max_entries: the most entries that are accepted.
    """

    def __init__(self, on_whole: Callable[..., Any], limiter: anyio.CapacityLimiter, max_entries: int) -> None:
        self._on_whole = on_whole
        self._limiter = limiter
        self._max_entries = max_entries
        self._count: int | None = None
        self._next = 0

    @abstractmethod
    def add(self, entry: Shareable) -> None:
        """Take one entry, which is the next; raises BadEntryError if it is none."""

    @abstractmethod
    def whole(self, first_and_last: Shareable | None) -> Any:
        """Return what the entries make; *first_and_last* is the only object of an empty whole."""

    async def consume(
        self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> tuple[bool, Shareable]:
        try:
            last = self._take(shareable)
            whole = self.whole(shareable if self._count == 0 else None) if last else None
        except BadEntryError as exc:
            return False, make_reply(ReturnCode.BAD_REQUEST_DATA, {"reason": str(exc)})
        if not last:
            return True, make_reply(ReturnCode.OK)
        reply = await call(self._on_whole, whole, stream_ctx, fl_ctx, limiter=self._limiter)
        return True, make_reply(ReturnCode.OK) if reply is None else reply

    def _take(self, entry: Shareable) -> bool:
        index, count = entry.get("index"), entry.get("count")
        if type(index) is not int or type(count) is not int or not 0 <= count <= self._max_entries:
            raise BadEntryError(
                f"index {index!r} of {count!r} entries, expected whole numbers up to {self._max_entries}"
            )
        if self._count is None:
            self._count = count
        if count != self._count or index != self._next or index >= max(1, count):
            raise BadEntryError(f"entry {index} of {count}, expected entry {self._next} of {self._count}")
        self._next += 1
        if count:
            self.add(entry)
        return self._next >= count
