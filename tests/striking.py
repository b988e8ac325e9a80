"""Strikes a coroutine at the suspension that a test asks for: what cancellation may meet, it meets."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any

import anyio


class Strike:
    """Cancels a scope when what it watches suspends for the n-th time.

    Attributes:
        suspended: how often that has suspended.
        struck_at: when the scope was cancelled; None before.
    """

    def __init__(self, n: int, scope: anyio.CancelScope) -> None:
        self._n = n
        self._scope = scope
        self.suspended = 0
        self.struck_at: float | None = None

    def watch(self, coroutine: Coroutine[Any, Any, Any]) -> Watched:
        """Await *coroutine*, and count."""
        return Watched(self, coroutine)

    def suspend(self) -> None:
        self.suspended += 1
        if self.suspended == self._n:
            self.struck_at = anyio.current_time()
            self._scope.cancel()


class Watched:
    """Awaits a coroutine, step by step, and tells of each suspension."""

    def __init__(self, strike: Strike, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._strike = strike
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Any = self._coroutine.send
        given: Any = None
        while True:
            try:
                asked = step(given)
            except StopIteration as done:
                return done.value
            self._strike.suspend()
            try:
                given = yield asked
                step = self._coroutine.send
            except BaseException as exc:  # noqa: BLE001 - handed to the coroutine
                step, given = self._coroutine.throw, exc
