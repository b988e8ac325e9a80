"""A peer to script: says frames by hand, right ones or wrong ones, and shows those that come back."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import anyio
import msgspec

from .. import transports
from ..errors import ClosedError
from ..options import Limits
from ..protocol.bodies import Hello, decode, encode
from ..protocol.frames import MAGIC, Flag, FrameType
from ..transports.addresses import parse
from ..transports.base import Wire
from ..wakeup import current_face
from .frames import Frame, FrameCutter


class RawPeer:
    """One end of a connection without any protocol above it.

    Attributes:
        reason: why the connection ended; None while it lives, and when this side closed it.
        ended: whether the connection has ended.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._news = current_face().wakeup()
        self._stage = bytearray(64 * 1024)
        self._cutter = FrameCutter()
        self._frames: deque[Frame] = deque()
        self._output: deque[bytes | memoryview] = deque()
        self.reason: Exception | None = None
        self.ended = False

    @classmethod
    @asynccontextmanager
    async def dial(cls, address: str, name: str = "stranger") -> AsyncIterator[Self]:
        """Connect to an engine; leaving the block closes the connection.

        Args:
            address: where it listens, as a URL.
            name: what a memory link calls this end.

        Raises:
            ConnectError: nobody listens there.
        """
        async with cls.over(await transports.dial(parse(address, "address"), name, allow_plain=False)) as peer:
            yield peer

    @classmethod
    @asynccontextmanager
    async def over(cls, wire: Wire) -> AsyncIterator[Self]:
        """Speak over a wire, such as one that a listener has accepted."""
        peer = cls(wire)
        async with anyio.create_task_group() as tg:
            tg.start_soon(peer._run)
            try:
                yield peer
            finally:
                tg.cancel_scope.cancel()

    async def _run(self) -> None:
        try:
            self.reason = await self._wire.run(self)
        finally:
            self.ended = True
            self._news.set()

    # What the wire asks.

    def get_buffers(self) -> list[memoryview]:
        """Return where the next bytes are to be read."""
        return [memoryview(self._stage)]

    def received(self, count: int) -> None:
        """Cut what was read into frames."""
        self._frames += self._cutter.feed(memoryview(self._stage)[:count])
        self._news.set()

    def next_output(self, limit: int) -> Sequence[bytes | memoryview]:
        """Return what is to be written next."""
        return [self._output.popleft()] if self._output else []

    # What a test does.

    def send(self, *things: Frame | bytes) -> None:
        """Send frames, or any bytes."""
        self._output += [thing.pack() if isinstance(thing, Frame) else thing for thing in things]
        self._wire.wake()

    async def greet(self, site: str = "stranger", **fields: Any) -> Hello:
        """Say HELLO as a dialler, and return the engine's.

        Args:
            site: the name to be known by.
            fields: fields of ``Hello`` that are to be different.
        """
        self.send(hello(site, **fields))
        return decode(Hello, (await self.receive(FrameType.HELLO)).body)

    async def receive(self, kind: int | None = None) -> Frame:
        """Return the next frame, or the next of one kind; those before it are dropped.

        Raises:
            ClosedError: the connection has ended, and no such frame came.
        """
        while True:
            while self._frames:
                frame = self._frames.popleft()
                if kind is None or frame.kind == kind:
                    return frame
            if self.ended:
                raise ClosedError(f"the connection ended: {self.reason}")
            await self._news.wait()

    async def closed(self) -> None:
        """Wait until the engine has closed the connection."""
        while not self.ended:
            await self._news.wait()

    def close(self) -> None:
        """Close the connection, once what was sent is written."""
        self._wire.close(flush=True)


def hello(site: str, **fields: Any) -> Frame:
    """Make a HELLO.

    Args:
        site: the name to be known by.
        fields: fields of ``Hello`` that are to be different from those of an engine with default limits.
    """
    limits = Limits()
    made = Hello(
        site,
        site.encode().ljust(16, b".")[:16],
        False,
        limits.frame,
        limits.window,
        64 * 1024,
        limits.backlog,
        [],
        MAGIC,
    )
    return Frame(FrameType.HELLO, body=encode(msgspec.structs.replace(made, **fields)), flags=Flag.CRITICAL)
