"""Streams without classes: an open stream to send on, and incoming streams to iterate over."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Self

import anyio

from .arguments import check_timeout
from .context import FLContext, StreamContext
from .outgoing import OutgoingStream
from .protocol.gather import Flight
from .shareable import ReturnCode, Shareable, make_reply
from .streaming import ConsumerFactory, ObjectConsumer, Registration, StreamResult, Timeout

if TYPE_CHECKING:
    from .options import StreamOptions


class OpenStream:
    """An open stream: objects are sent by whoever has them, several at a time up to the window.

    Attributes:
        result: how the stream ended; there once its block has been left.
    """

    def __init__(self, stream: OutgoingStream, options: StreamOptions) -> None:
        self._stream = stream
        self._options = options
        self._turn = anyio.Lock()
        self.result: StreamResult | None = None

    @property
    def stream_id(self) -> str:
        """The stream's id, as 32 hexadecimal digits."""
        return self._stream.stream_id

    async def send(self, obj: Shareable, timeout: Timeout | None = None) -> dict[str, Shareable]:  # noqa: ASYNC109
        """Send one object and wait for its gather.

        Args:
            obj: the object.
            timeout: how long each site may take; the options' when None.

        Returns:
            Site name to reply; ``{}`` once every site has finished the stream.
        """
        flight = await self._launch(obj, timeout)
        if flight is None:
            return {}
        try:
            if not flight.complete:
                done = self._stream.wakeup()
                flight.on_complete = done.set
                await done.wait()
            return dict(flight.replies)
        finally:
            self._stream.judged(flight)

    async def replies(
        self,
        obj: Shareable,
        timeout: Timeout | None = None,  # noqa: ASYNC109
    ) -> AsyncIterator[tuple[str, Shareable]]:
        """Send one object and iterate over the replies as they arrive, until its gather is complete."""
        flight = await self._launch(obj, timeout)
        if flight is None:
            return
        news = self._stream.wakeup()
        flight.on_reply = flight.on_complete = news.set
        shown = 0
        try:
            while True:
                for site, reply in list(flight.replies.items())[shown:]:
                    shown += 1
                    yield site, reply
                if flight.complete and shown == len(flight.replies):
                    return
                await news.wait()
        finally:
            self._stream.judged(flight)

    async def _launch(self, obj: Shareable, timeout: Timeout | None) -> Flight | None:  # noqa: ASYNC109
        if not isinstance(obj, Shareable):
            raise TypeError(f"obj is of type {type(obj).__name__}, expected Shareable")
        seconds = check_timeout(self._options.timeout if timeout is None else timeout)
        async with self._turn:
            if not await self._stream.room():
                return None
            stream = self._stream
            return stream.dispatch(await stream.seal(obj) if stream.sealed else obj, seconds)

    async def released(self, seq: int) -> None:
        """Wait until the engine no longer needs the buffers of an object.

        Args:
            seq: the object's number, from 0 in the order of sending.
        """
        await self._stream.released(seq)


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
