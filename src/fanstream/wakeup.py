"""What differs between asyncio and Trio above the transports: the clock, the wake-up, the call from a thread.

A wake-up is made of a bare asyncio future where there is one: an ``anyio.Event`` costs ten times as much, and these are
what the hot paths wait on (docs/explanation/performance.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import anyio
from anyio.lowlevel import current_token


class Wakeup(Protocol):
    """A flag that one task at a time may wait for; waiting takes it down again."""

    def set(self) -> None:
        """Wake the waiter, or let the next ``wait`` return at once."""

    async def wait(self) -> None:
        """Wait until the flag is set. Cancelling a wait loses no ``set``."""


class Face(Protocol):
    """One running event loop, seen from this package."""

    def time(self) -> float:
        """Return the loop's clock, in seconds."""

    def wall(self) -> float:
        """Return the time of day, in seconds since the epoch: it outlives this process, and may be set back."""

    def wakeup(self) -> Wakeup:
        """Make a wake-up of this loop."""

    def call_from_anywhere(self, function: Callable[[], object]) -> None:
        """Run *function* on the loop: at once when called on the loop's own thread, soon from any other.

        A loop that has closed ignores the call, for nothing is left there to be told.
        """


class _FutureWakeup:
    __slots__ = ("_future", "_loop", "_set")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[None] | None = None
        self._set = False

    def set(self) -> None:
        if not self._set:
            self._set = True
            future = self._future
            if future is not None and not future.done():
                future.set_result(None)

    async def wait(self) -> None:
        if not self._set:
            future = self._future = self._loop.create_future()
            try:
                await future
            finally:
                self._future = None
        self._set = False


class _EventWakeup:
    __slots__ = ("_event", "_set")

    def __init__(self) -> None:
        self._event: anyio.Event | None = None
        self._set = False

    def set(self) -> None:
        self._set = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        if not self._set:
            self._event = anyio.Event()
            try:
                await self._event.wait()
            finally:
                self._event = None
        self._set = False


class AsyncioFace:
    """An asyncio loop; ``loop`` is the loop itself, for the transports that need it."""

    __slots__ = ("_home", "loop", "time", "wall")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        # Asyncio's own loops only hand on what this says; a loop with a clock of its own is asked.
        plain = type(loop).time is asyncio.BaseEventLoop.time
        self.time: Callable[[], float] = time.monotonic if plain else loop.time
        self.wall: Callable[[], float] = getattr(loop, "wall", time.time)  # one on virtual time has its own
        self._home = threading.get_ident()

    def wakeup(self) -> Wakeup:
        return _FutureWakeup(self.loop)

    def call_from_anywhere(self, function: Callable[[], object]) -> None:
        if threading.get_ident() == self._home:
            function()
            return
        try:
            self.loop.call_soon_threadsafe(function)
        except RuntimeError:
            if not self.loop.is_closed():
                raise


class TrioFace:
    """A Trio run."""

    __slots__ = ("_home", "_token", "time", "wall")

    def __init__(self, token: Any) -> None:
        import trio

        self._token = token
        self.time = trio.current_time
        self.wall: Callable[[], float] = getattr(trio.lowlevel.current_clock(), "wall", time.time)
        self._home = threading.get_ident()

    def wakeup(self) -> Wakeup:
        return _EventWakeup()

    def call_from_anywhere(self, function: Callable[[], object]) -> None:
        if threading.get_ident() == self._home:
            function()
            return
        import trio

        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function)


def current_face() -> AsyncioFace | TrioFace:
    """Return the face of the running event loop.

    Raises:
        RuntimeError: no event loop is running in this thread.
    """
    native = current_token().native_token
    if isinstance(native, asyncio.AbstractEventLoop):
        return AsyncioFace(native)
    return TrioFace(native)
