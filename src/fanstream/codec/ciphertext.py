"""Objects of sealed streams on their way in: what is in them, only their receiver's keys can tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from ..errors import CodecError
from .memory import Memory

SMALL: Final = 256 * 1024
"""Bytes up to which an object is sealed and opened on the event loop: it takes less than a millisecond."""


class Ciphertext(msgspec.Struct, eq=False):
    """One sealed object or reply, as it arrived.

    Attributes:
        envelope: its clear head.
        buffers: the ciphertext, if that did not travel in the head.
    """

    envelope: bytes
    buffers: tuple[memoryview, ...] = ()

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.envelope) + sum(map(len, self.buffers))

    def __repr__(self) -> str:
        return f"<Ciphertext of {self.size} bytes>"


class Landing(msgspec.Struct, eq=False):
    """One sealed object that is being received.

    Attributes:
        destinations: where its ciphertext belongs.
        slow: False; what is in it may take long, for whoever has the keys.
    """

    envelope: bytes
    destinations: tuple[memoryview, ...] = ()
    slow: bool = False

    def finish(self) -> Ciphertext:
        """Return it, once every destination has been filled."""
        destinations, self.destinations = self.destinations, ()
        return Ciphertext(self.envelope, destinations)


class Carrier:
    """Takes what ``Codec`` would decode, and leaves it as it is.

    Args:
        memory: what ciphertext is received into.
    """

    __slots__ = ("_memory",)

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def decode(self, envelope: bytes, *, imports: bool = False) -> Ciphertext:
        """Take an object that has no buffers."""
        return Ciphertext(envelope)

    def begin(self, envelope: bytes, sizes: Sequence[int], *, imports: bool = False) -> Landing:
        """Allocate what an object is to be received into.

        Raises:
            CodecError: it has more buffers than one, or there is no memory for it.
        """
        if len(sizes) != 1:
            raise CodecError(f"a sealed object with {len(sizes)} buffers, expected 1")
        try:
            return Landing(envelope, (self._memory.take(sizes[0]),))
        except MemoryError as exc:
            raise CodecError(f"no memory for a sealed object of {sizes[0]} bytes") from exc

    def land(self, envelope: bytes, sizes: Sequence[int] = ()) -> Landing:
        """Take an object, with buffers or without; raises as :meth:`begin` does."""
        return self.begin(envelope, sizes) if sizes else Landing(envelope)
