"""How a wire over a socket ends: at once, or after what its link still has to say."""

from __future__ import annotations

import asyncio
from abc import abstractmethod

from ..wakeup import AsyncioFace
from .base import Pump, Wire


def tells_once(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a loop watches a socket no more once it has told of an error there, which may come along with data.

    Loops of libuv do, such as uvloop. A reader that does not read on until it fails has to ask for the error.
    """
    return not isinstance(loop, asyncio.BaseEventLoop)


class EndingWire(Wire):
    """What is the same for all wires over sockets: the name, and the way to the end.

    Args:
        name: where it leads.
        face: the event loop.
    """

    def __init__(self, name: str, face: AsyncioFace) -> None:
        self._loop = face.loop
        self._name = name
        self._pump: Pump | None = None  # none before it is run
        self._closing = False  # once all has been written
        self._ended = False
        self._reason: Exception | None = None
        self._done = face.wakeup()

    @property
    def name(self) -> str:
        return self._name

    def close(self, reason: Exception | None = None, *, flush: bool = False) -> None:
        if self._ended or (self._closing and flush):
            return
        self._reason = self._reason or reason
        if not flush or self._pump is None:
            self._end(reason)
            return
        self._closing = True
        self._stop_reading()
        self.wake()

    def _end(self, reason: Exception | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._reason = self._reason or reason
        self._release()
        self._done.set()

    @abstractmethod
    def _stop_reading(self) -> None:
        """Read nothing more."""

    @abstractmethod
    def _release(self) -> None:
        """Let go of the socket; what was not written is lost."""
