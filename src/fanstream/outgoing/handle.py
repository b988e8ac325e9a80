"""An outgoing stream without a producer: objects are sent by whoever has them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import anyio

from ..arguments import check_timeout
from ..protocol.gather import Flight
from ..shareable import Shareable
from ..streaming import StreamResult, Timeout
from .stream import OutgoingStream

if TYPE_CHECKING:
    from ..options import StreamOptions


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
