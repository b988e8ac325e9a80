"""pyzmq with blocking sockets: a ROUTER at the opener, a DEALER at each site, each used by one thread.

Settings: as of ``pyzmq``, but messages of 1 MiB. What a program gets that gives ZeroMQ threads of its own, and has no
event loop to serve.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import zmq

from . import MIB, Assembly, Gather, Opener, Work
from .pyzmq import name, tuned

LOOP: Final = "asyncio"


class ZmqOpener(Opener):
    """Sends by one socket, and takes the replies from it."""

    piece = MIB

    def __init__(self, router: Any, sites: int) -> None:
        self.address = router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._router = router
        self._expected = sites

    async def wait_for_sites(self) -> None:
        joined: set[bytes] = set()
        while len(joined) < self._expected:
            joined.add(self._router.recv_multipart()[0])

    async def run(self, work: Work) -> None:
        router = self._router
        pieces = self.pieces(work)
        names = [name(index) for index in range(work.sites)]
        indices = {each: index for index, each in enumerate(names)}
        free = work.window

        def complete() -> None:
            nonlocal free
            free += 1

        gather = Gather(work.sites, work.window, complete)
        left = work.count
        while left or free < work.window:
            if left and free:
                left -= 1
                free -= 1
                for piece in pieces:
                    for each in names:
                        router.send(each, zmq.SNDMORE)
                        router.send(piece, copy=False)
            else:
                sender, _ = router.recv_multipart()
                gather.replied(indices[sender])


@asynccontextmanager
async def opener(sites: int, transport: str) -> AsyncIterator[Opener]:
    """Bind."""
    with zmq.Context() as context, tuned(context.socket(zmq.ROUTER)) as router:
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.bind("tcp://127.0.0.1:*")
        yield ZmqOpener(router, sites)


def answer(context: Any, address: str, index: int) -> None:
    """Answer every message, until the context ends."""
    with tuned(context.socket(zmq.DEALER)) as dealer:
        dealer.setsockopt(zmq.IDENTITY, name(index))
        dealer.connect(address)
        assembly = Assembly()
        dealer.send(b"joined")
        try:
            while True:
                if assembly.take(dealer.recv(copy=False).buffer):
                    dealer.send(b"k")
        except zmq.ContextTerminated:
            return


@asynccontextmanager
async def site(address: str, index: int) -> AsyncIterator[None]:
    """Connect, and answer in a thread."""
    context = zmq.Context()
    thread = threading.Thread(target=answer, args=(context, address, index))
    thread.start()
    try:
        yield
    finally:
        context.term()
        thread.join()
