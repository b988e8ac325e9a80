"""websockets: a server at the opener, and one connection for each site; a message for an object, a byte for a reply.

Settings: no compression and no pings, no limit on a message's size, buffers of 4 MiB before a writer waits, messages
sent and taken as bytes, larger objects in pieces of 1 MiB; with a task for each site that sends and one that receives.
On uvloop, with the C extension.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from . import MIB, Assembly, Opener, Window, Work

LOOP: Final = "uvloop"

SETTINGS: Final[dict[str, Any]] = {
    "compression": None,
    "ping_interval": None,
    "max_size": None,
    "write_limit": 4 * 1024 * 1024,
}


class WebsocketsOpener(Opener):
    """Holds the server's connections."""

    piece = MIB

    def __init__(self, sites: int) -> None:
        self._sites: dict[int, ServerConnection] = {}
        self._expected = sites
        self._complete = asyncio.Event()

    async def serve(self, connection: ServerConnection) -> None:
        """Keep one connection until it closes."""
        self._sites[int(await connection.recv())] = connection
        if len(self._sites) == self._expected:
            self._complete.set()
        await connection.wait_closed()

    async def wait_for_sites(self) -> None:
        await self._complete.wait()

    async def run(self, work: Work) -> None:
        window = Window(work)
        pieces = self.pieces(work)

        async def send(connection: ServerConnection) -> None:
            async for _ in window.turns():
                for piece in pieces:
                    await connection.send(piece)

        async def gather(index: int, connection: ServerConnection) -> None:
            for _ in range(work.count):
                await connection.recv()
                window.gather.replied(index)

        async with asyncio.TaskGroup() as tg:
            for index in range(work.sites):
                tg.create_task(send(self._sites[index]))
                tg.create_task(gather(index, self._sites[index]))


@asynccontextmanager
async def opener(sites: int, transport: str) -> AsyncIterator[Opener]:
    """Serve."""
    made = WebsocketsOpener(sites)
    async with serve(made.serve, "127.0.0.1", 0, **SETTINGS) as server:
        made.address = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield made


@asynccontextmanager
async def site(address: str, index: int) -> AsyncIterator[None]:
    """Connect, and answer every message."""
    async with connect(address, **SETTINGS) as connection, asyncio.TaskGroup() as tg:
        assembly = Assembly()

        async def answer() -> None:
            async for message in connection:
                if assembly.take(message):
                    await connection.send(b"k")

        await connection.send(str(index))
        task = tg.create_task(answer())
        yield
        task.cancel()
