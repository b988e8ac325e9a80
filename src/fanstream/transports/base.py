"""What a transport is: something that carries one link's bytes both ways."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..security.identity import Identity


class Pump(Protocol):
    """What a wire serves: one link."""

    def get_buffers(self) -> list[memoryview]:
        """Return where the next bytes are to be read, in order."""

    def received(self, count: int) -> None:
        """Take note that *count* bytes were read; never raises, and may close the wire."""

    def next_output(self, limit: int) -> Sequence[bytes | memoryview]:
        """Return what is to be written next; asking again says that all of the last answer was written."""


class Wire(ABC):
    """One connection's bytes.

    Attributes:
        peer: who the other end has proven to be, before any byte of it is handed on; None where nothing proves it.
    """

    peer: Identity | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """Where it leads, for logs."""

    @abstractmethod
    async def run(self, pump: Pump) -> Exception | None:
        """Carry bytes until the connection ends, in either way; cancelling it ends it at once.

        Returns:
            Why it ended: None when this side closed it.
        """

    @abstractmethod
    def wake(self) -> None:
        """There is something to write."""

    @abstractmethod
    def close(self, reason: Exception | None = None, *, flush: bool = False) -> None:
        """End the connection, with *flush* after what the pump still has to say; never waits."""


class Listener(ABC):
    """A bound address.

    Attributes:
        address: what was really bound, as a URL.
    """

    address: str

    @abstractmethod
    def close(self) -> None:
        """Accept no further connections, and free the address."""


OnConnect = Callable[[Wire], object]
"""Called with each accepted connection; returns at once."""
