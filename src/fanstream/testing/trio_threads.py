"""Keeps Trio's mock clock from jumping ahead of worker threads, of which it knows nothing."""

from __future__ import annotations

import inspect
import math
from types import CodeType
from typing import Any, Final

import trio.abc
import trio.lowlevel
import trio.testing

_RUN_SYNC: Final[CodeType] = inspect.unwrap(trio.to_thread.run_sync).__code__


class ThreadWatch(trio.abc.Instrument):
    """While a task waits for a worker thread, has *clock* go at the pace of the real one instead of jumping."""

    def __init__(self, clock: trio.testing.MockClock) -> None:
        self._clock = clock
        self._waiting: set[trio.lowlevel.Task] = set()

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
