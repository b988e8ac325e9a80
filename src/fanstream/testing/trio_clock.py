"""Keeps Trio's mock clock from jumping ahead of worker threads, of which it knows nothing, and gives it a tick."""

from __future__ import annotations

import inspect
import math
from types import CodeType
from typing import Any, Final

import trio.abc
import trio.lowlevel
import trio.testing

_RUN_SYNC: Final[CodeType] = inspect.unwrap(trio.to_thread.run_sync).__code__


class ClockKeeper(trio.abc.Instrument):
    """While a task waits for a worker thread, has *clock* go at the pace of the real one instead of jumping.

    Args:
        clock: the run's.
        tick: what the time that tasks see is a multiple of, in seconds.
    """

    def __init__(self, clock: trio.testing.MockClock, tick: float) -> None:
        self._clock = clock
        self._tick = tick
        self._waiting: set[trio.lowlevel.Task] = set()

    def before_io_wait(self, timeout: float) -> None:
        beyond = self._clock.current_time() % self._tick
        if beyond:
            self._clock.jump(self._tick - beyond)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if _waits_for_thread(task.coro):
            self._waiting.add(task)
            if len(self._waiting) == 1:
                self._clock.autojump_threshold = math.inf
                self._clock.rate = 1.0
        elif task in self._waiting:
            self._waiting.remove(task)
            if not self._waiting:
                self._clock.rate = 0.0
                self._clock.autojump_threshold = 0.0


def _waits_for_thread(coroutine: Any) -> bool:
    """Whether a coroutine is suspended in ``trio.to_thread.run_sync``, which anyio's leads to."""
    while coroutine is not None:
        if getattr(coroutine, "cr_code", None) is _RUN_SYNC:
            return True
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return False
