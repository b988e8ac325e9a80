"""Incoming streams without a consumer of the application's own: they are iterated over, and so are their objects."""

from __future__ import annotations

from collections import deque
from typing import Self

import anyio

from ..context import FLContext, StreamContext
from ..shareable import ReturnCode, Shareable, make_reply
from ..streaming import ConsumerFactory, ObjectConsumer, Registration


class IncomingStreamHandle(ObjectConsumer):
    """One incoming stream, as an async iterator over its objects.

    Asking for the next object answers the one before with OK, unless ``reply`` has answered it. The iteration ends with
    the stream, whatever ended it.

    Attributes:
        opener: the name of the site that opened it.
        context: the stream's context.
        rc: the return code of the end, once there is one.
    """

    def __init__(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        peer = fl_ctx.get_peer_context()
        self.opener = peer.get_identity_name() if peer is not None else ""
        self.context = stream_ctx
        self.fl_ctx = fl_ctx
        self.rc: str | None = None
        self._object: Shareable | None = None
        self._answer: tuple[bool, Shareable] | None = None
        self._pending = False
        self._arrived = anyio.Event()
        self._answered = anyio.Event()

    async def consume(
        self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> tuple[bool, Shareable]:
        self._object, self._answer = shareable, None
        self._answered = anyio.Event()
        self._arrived.set()
        await self._answered.wait()
        assert self._answer is not None
        return self._answer

    async def finalize(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        self.rc = stream_ctx["__RC__"]
        self._arrived.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Shareable:
        if self._pending:
            self.reply(make_reply(ReturnCode.OK))
        while self._object is None:
            if self.rc is not None:
                raise StopAsyncIteration
            await self._arrived.wait()
            self._arrived = anyio.Event() if self.rc is None and self._object is None else self._arrived
        obj, self._object = self._object, None
        self._arrived = anyio.Event()
        self._pending = True
        return obj

    def reply(self, reply: Shareable, *, go_on: bool = True) -> None:
        """Answer the current object; ``go_on=False`` ends the stream at this site.

        Raises:
            RuntimeError: it was answered before, or there is none.
        """
        if not self._pending:
            raise RuntimeError("there is no object to answer, or it was answered before")
        self._pending = False
        self._answer = (go_on, reply)
        self._answered.set()


class IncomingStreams(ConsumerFactory):
    """The incoming streams of one registration, as an async iterator; ``aclose`` takes the registration back."""

    registration: Registration

    def __init__(self) -> None:
        self._streams: deque[IncomingStreamHandle] = deque()
        self._news = anyio.Event()

    async def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        handle = IncomingStreamHandle(stream_ctx, fl_ctx)
        self._streams.append(handle)
        self._news.set()
        return handle

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> IncomingStreamHandle:
        while not self._streams:
            self._news = anyio.Event()
            await self._news.wait()
        return self._streams.popleft()

    async def aclose(self) -> None:
        """Take the registration back; streams already here go on."""
        self.registration.unregister()
        await anyio.lowlevel.checkpoint()
