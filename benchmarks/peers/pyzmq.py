"""pyzmq on asyncio: a ROUTER at the opener, a DEALER at each site; an object is a message, not copied on either side.

Settings: ``copy=False``, below 64 KiB of which pyzmq copies all the same, as it should; no high-water mark, for the
window bounds what is queued, and a ROUTER drops what is beyond the mark. Larger objects as messages of 4 MiB, which the
site copies into one array: a message of 64 MiB is memory that the kernel has to clear each time, and takes more than
twice as long. On uvloop, which is faster for it than the standard loop. ``pyzmq_blocking`` is what it does without an
event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import zmq
import zmq.asyncio

from . import MIB, Assembly, Opener, Window, Work

LOOP: Final = "uvloop"


class ZmqOpener(Opener):
    """Sends by one socket, and takes the replies from it."""

    piece = 4 * MIB

    def __init__(self, router: Any, sites: int) -> None:
        self.address = router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._router = router
        self._expected = sites

    async def wait_for_sites(self) -> None:
        joined: set[bytes] = set()
        while len(joined) < self._expected:
            joined.add((await self._router.recv_multipart())[0])

    async def run(self, work: Work) -> None:
        window = Window(work)
        pieces = self.pieces(work)
        names = [name(index) for index in range(work.sites)]
        indices = {each: index for index, each in enumerate(names)}

        async def gather() -> None:
            for _ in range(work.count * work.sites):
                sender, _ = await self._router.recv_multipart()
                window.gather.replied(indices[sender])

        async with asyncio.TaskGroup() as tg:
            tg.create_task(gather())
            async for _ in window.turns():
                for piece in pieces:
                    for each in names:
                        await self._router.send_multipart((each, piece), copy=False)


def name(index: int) -> bytes:
    """The routing id of a site."""
    return f"site-{index}".encode()


def tuned(socket: Any) -> Any:
    """The socket, with its settings."""
    socket.set_hwm(0)
    socket.linger = 0
    return socket


@asynccontextmanager
async def opener(sites: int, transport: str) -> AsyncIterator[Opener]:
    """Bind."""
    with zmq.asyncio.Context() as context, tuned(context.socket(zmq.ROUTER)) as router:
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.bind("tcp://127.0.0.1:*")
        yield ZmqOpener(router, sites)


@asynccontextmanager
async def site(address: str, index: int) -> AsyncIterator[None]:
    """Connect, and answer every message."""
    with zmq.asyncio.Context() as context, tuned(context.socket(zmq.DEALER)) as dealer:
        dealer.setsockopt(zmq.IDENTITY, name(index))
        dealer.connect(address)
        assembly = Assembly()

        async def answer() -> None:
            while True:
                message = await dealer.recv(copy=False)
                if assembly.take(message.buffer):
                    await dealer.send(b"k")

        await dealer.send(b"joined")
        async with asyncio.TaskGroup() as tg:
            task = tg.create_task(answer())
            yield
            task.cancel()
