"""One outgoing stream from its opening to its end, however what is done on it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio

from ..observe import Audit, AuditEvent, StreamEnded, StreamOpened
from ..shareable import ReturnCode
from ..streaming import StreamResult
from .stream import OutgoingStream


class Work:
    """What is done on one outgoing stream: the value that ended it, what follows the end, and then its result."""

    def __init__(self) -> None:
        self.value: Any = None
        self.at_end: Callable[[], Awaitable[object]] | None = None
        self.result: StreamResult | None = None

    @property
    def done(self) -> StreamResult:
        """The result, once the stream has ended."""
        if self.result is None:
            raise RuntimeError("the stream has not ended")
        return self.result


@asynccontextmanager
async def running(stream: OutgoingStream, audit: Audit) -> AsyncIterator[Work]:
    """Have a stream opened and its work done inside its scope, and end it, however the work ended."""
    work = Work()
    if audit.wanted:
        audit.tell(_opened(stream))
    try:
        with anyio.CancelScope() as scope:
            unsubscribe = stream.signal.subscribe(partial(_aborted, stream, scope))
            try:
                yield work
                await stream.end(work.value)
                if work.at_end is not None:
                    await work.at_end()
            finally:
                unsubscribe()
        if stream.aborted:
            await stream.settle_abort()
            work.value = None
        work.result = stream.result(work.value)
    except BaseException as exc:
        rc = ReturnCode.EXECUTION_EXCEPTION if isinstance(exc, Exception) else ReturnCode.TASK_ABORTED
        stream.abort(rc, f"{type(exc).__name__} at the opener")
        await stream.settle_abort()
        raise
    finally:
        if audit.wanted:
            ended = stream.abort_code if work.result is None else work.result.rc
            audit.tell(_ended(stream, ended))


def _aborted(stream: OutgoingStream, scope: anyio.CancelScope) -> None:
    stream.abort(ReturnCode.TASK_ABORTED, str(stream.signal.reason or "aborted"))
    scope.cancel()


def _opened(stream: OutgoingStream) -> AuditEvent:
    """This engine opens a stream."""
    opening = stream.opening
    return StreamOpened(
        stream=stream.stream_id, channel=opening.channel, topic=opening.topic,
        targets=list(stream.gathering.sites), sealed=opening.sealed,
    )  # fmt: skip


def _ended(stream: OutgoingStream, rc: str) -> AuditEvent:
    """A stream that this engine has opened is over."""
    opening, gathering = stream.opening, stream.gathering
    sites = {
        name: {"code": str(site.rc), **{str(outcome): count for outcome, count in site.counts.items()}}
        for name, site in gathering.sites.items()
    }
    return StreamEnded(
        stream=stream.stream_id, opener=opening.opener, channel=opening.channel, topic=opening.topic, code=str(rc),
        objects=gathering.objects, sites=sites,
    )  # fmt: skip
