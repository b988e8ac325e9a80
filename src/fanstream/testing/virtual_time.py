"""A clock that jumps to the next timer when nothing is ready: hours of timeouts pass at once, and to the digit.

What it needs is that nothing from outside can still come, so it knows two things that are outside:

- a **worker thread** (``anyio.to_thread``, ``run_in_executor``, and so every synchronous producer and consumer): while
  one is at work the clock goes at the pace of the real one while nothing is ready, and stands still while code runs.
  A thread that was started by hand is not seen.
- a **socket**: there is no telling whether bytes are still under way in it, so ``VirtualTimeLoop`` refuses to watch
  one. Links are ``memory://``.

While code runs the clock stands still: a loop that waits by looking at the time without awaiting never ends. Its ticks
are those of a real clock, about a microsecond, so that sums and differences of moments agree in spite of rounding.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple, Unpack

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

TICK: Final = 2.0**-20
"""What the time is a multiple of, in seconds: a power of two, so that for centuries such sums are exact."""

# Seconds until it is looked again whether a thread is still at work, for it may just have reported; and how far the
# clock goes until then at most: where a busy machine gives the process no time, no deadline passes because of that.
_PACE: Final = 0.01
_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop on virtual time: ``asyncio.run(main(), loop_factory=VirtualTimeLoop)`` on Python 3.12.

    ``time()`` starts at 0. Watching a real socket or pipe raises ``RuntimeError``.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._calls = 0  # to an executor, under way
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Return the virtual time, in seconds."""
        return self._now

    def wall(self) -> float:
        """Return the time of day: there is no other than the virtual time."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock on, to the next tick; what is due runs in the loop's next turn.

        Raises:
            ValueError: *seconds* is negative.
        """
        if seconds < 0:
            raise ValueError(f"seconds is {seconds}, expected at least 0: time does not go back")
        self._now = math.ceil((self._now + seconds) / TICK) * TICK

    @property
    def held(self) -> bool:
        """Whether a worker thread is at work, so that the clock keeps the pace of the real one."""
        return self._calls > 0 or any(_works_for(thread, self) for thread in threading.enumerate())

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[_Ts]], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        future = super().run_in_executor(executor, func, *args)
        self._calls += 1
        future.add_done_callback(self._returned)
        return future

    def _returned(self, future: asyncio.Future[Any]) -> None:
        self._calls -= 1

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        self._calls += 1  # from Python 3.12 on it has a timeout, which must not come before the threads have ended
        try:
            await super().shutdown_default_executor(*args, **kwargs)
        finally:
            self._calls -= 1


def _works_for(thread: threading.Thread, loop: VirtualTimeLoop) -> bool:
    """Whether an anyio worker thread of *loop* has a call under way; it reports back before it counts as idle."""
    return getattr(thread, "loop", None) is loop and bool(thread.queue.unfinished_tasks)  # type: ignore[attr-defined]


class _JumpingSelector(selectors.BaseSelector):
    """Waits by moving the clock; only the loop's own pipe, by which threads wake it, is really watched."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self._loop = loop
        self._real = selectors.DefaultSelector()

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        if self._real.get_map():  # the loop's own pipe is there
            raise RuntimeError(
                f"the virtual clock cannot wait for file descriptor {fileobj}: nobody knows what is on its way there. "
                "Use memory:// addresses, or a real event loop"
            )
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:  # nothing to jump to, so whatever comes will come from a thread
            return self._real.select(timeout)
        if self._loop.held:
            began = time.monotonic()
            ready = self._real.select(min(timeout, _PACE))
            self._loop.advance(min(timeout, _PACE, time.monotonic() - began))
            return ready
        ready = self._real.select(0)
        if not ready:
            self._loop.advance(timeout)
        return ready

    def close(self) -> None:
        self._real.close()

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        return self._real.get_map()


def asyncio_backend() -> tuple[str, dict[str, Any]]:
    """Return asyncio on virtual time, as anyio's pytest plugin takes a backend: its name and its options."""
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def trio_backend() -> tuple[str, dict[str, Any]]:
    """Return Trio on virtual time, likewise; needs Trio.

    The clock is a ``trio.testing.MockClock`` that jumps, and goes at the real pace while a worker thread is at work.
    Runs that share these options share the clock: one begins where the last one ended.
    """
    from trio.testing import MockClock

    from .trio_clock import ClockKeeper

    clock = MockClock(autojump_threshold=0)
    return "trio", {"clock": clock, "instruments": [ClockKeeper(clock, TICK, _PACE)]}
