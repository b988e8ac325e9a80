"""Memory: destinations of arrays, used again once nobody holds what was received into them.

Touching fresh memory for the first time costs more than the wire does (docs/explanation/performance.md), and an
allocator gives large blocks back to the kernel as soon as they are free. Here a block comes back when the last
reference to its array is gone, wherever that happens.
"""

from __future__ import annotations

import mmap
import weakref
from collections import OrderedDict, deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from .libraries import is_loaded

if TYPE_CHECKING:
    import numpy as np

    Bytes = np.ndarray[Any, np.dtype[np.uint8]]

SMALLEST: Final = 64 * 1024
"""Bytes below which the allocator keeps freed memory anyway."""


class Memory:
    """Blocks of memory already touched, by their size.

    What is kept idle never adds to the peak: blocks in use and idle ones together are never more than were once in use
    at the same time since the last :meth:`clear`, and the idle ones alone no more than *limit*.

    Arrays may be dropped in any thread. What that does is one append to a deque; all else happens in :meth:`take` and
    :meth:`clear`, which belong to one thread.

    Args:
        limit: bytes kept idle at most.

    Attributes:
        lent: bytes of blocks in use.
        idle: bytes of blocks kept.
    """

    __slots__ = ("_back", "_idle", "_leases", "_limit", "_peak", "_serial", "idle", "lent")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._leases: dict[int, weakref.ref[Bytes]] = {}  # what tells that a block is free; without it, nothing does
        self._back: deque[tuple[int, Bytes]] = deque()
        self._idle: OrderedDict[int, list[Bytes]] = OrderedDict()  # sizes used last stand last
        self._peak = 0
        self._serial = 0  # of leases; not their addresses, which the next one may have
        self.lent = 0
        self.idle = 0

    @property
    def held(self) -> bool:
        """Whether there is anything to clear."""
        return bool(self._leases or self._idle)

    def take(self, size: int) -> memoryview:
        """Return *size* bytes, writable, of any content; the block comes back once no view of them is left.

        Before numpy was loaded for anything else, what is returned is used once.
        """
        while self._back:
            self._store(*self._back.popleft())
        if not is_loaded("numpy"):  # which is not imported here, for that takes long
            return memoryview(mmap.mmap(-1, size))
        blocks = self._idle.get(size)
        if blocks:
            block = blocks.pop()
            self.idle -= size
            self._idle.move_to_end(size)
        else:
            block = self._allocate(size)
        self.lent += size
        lease = block[:]
        self._serial += 1
        self._leases[self._serial] = weakref.ref(lease, partial(self._returned, self._serial, block))
        # As a memoryview: numpy would let an array that is made of the lease itself refer to the block alone.
        return lease.data

    def _allocate(self, size: int) -> Bytes:
        import numpy as np

        self._peak = max(self._peak, self.lent + size)
        while self.idle and self.lent + self.idle + size > self._peak:
            self._drop_one()
        return np.empty(size, np.uint8)

    def _drop_one(self) -> None:
        size, blocks = next(iter(self._idle.items()))
        if blocks:
            blocks.pop()
            self.idle -= size
        if not blocks:
            del self._idle[size]

    def _returned(self, key: int, block: Bytes, _lease: object) -> None:
        self._back.append((key, block))

    def _store(self, key: int, block: Bytes) -> None:
        if self._leases.pop(key, None) is None:
            return  # lent before clear(), which has forgotten it
        size = len(block)
        self.lent -= size
        if self.idle + size <= self._limit:
            self._idle.setdefault(size, []).append(block)
            self.idle += size

    def clear(self) -> None:
        """Keep nothing; blocks in use go to the allocator when they are free."""
        self._leases.clear()
        self._back.clear()
        self._idle.clear()
        self._peak = self.lent = self.idle = 0
