"""Keeps Trio's mock clock from jumping ahead of worker threads, of which it knows nothing, and gives it a tick."""

from __future__ import annotations

import math
import time
from typing import Final

import trio.abc
import trio.testing

_FOR_EVER: Final = 1e9  # seconds of real time that a run waits where its clock would jump first


class ClockKeeper(trio.abc.Instrument):
    """While a worker thread is at work, has a clock go at the pace of the real one, as far as the run is idle.

    Trio asks its clock how long it may wait whenever no task can run, and only then. So that is where to look for
    threads: no task has to be watched or started for it. A mock clock cannot be derived from, so it is told what to
    answer.

    Args:
        clock: the run's.
        tick: what the time that tasks see is a multiple of, in seconds.
        pace: how far the clock goes at once while a thread is at work, in seconds: where the process gets no time to
            run, no more than that passes.
    """

    def __init__(self, clock: trio.testing.MockClock, tick: float, pace: float) -> None:
        self._clock = clock
        self._tick = tick
        self._pace = pace
        self._most = 0.0  # how far the clock goes with the wait that begins
        self._began = 0.0
        clock.deadline_to_sleep_time = self._time_to_wait  # type: ignore[method-assign]
        clock.wall = clock.current_time  # type: ignore[attr-defined]  # the time of day; see AsyncioFace

    def _time_to_wait(self, deadline: float) -> float:
        clock = self._clock
        held = trio.testing.active_thread_count() > 0
        threshold = math.inf if held or deadline == math.inf else 0.0
        if clock.autojump_threshold != threshold:
            clock.autojump_threshold = threshold
        if not held:
            return _FOR_EVER
        self._most = max(0.0, min(self._pace, deadline - clock.current_time()))
        self._began = time.monotonic()
        return self._most

    def before_io_wait(self, timeout: float) -> None:
        beyond = self._clock.current_time() % self._tick
        if beyond:
            self._clock.jump(self._tick - beyond)

    def after_io_wait(self, timeout: float) -> None:
        if self._most:
            self._clock.jump(min(self._most, time.monotonic() - self._began))
            self._most = 0.0
