"""The parent of an engine's tasks, and the one timer behind its deadlines."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.abc

from .deadlines import Deadlines
from .wakeup import Face, current_face

_log = logging.getLogger(__name__)


class Tasks:
    """Where an engine's tasks live.

    They are children of a shielded task, since a cancelled body of ``async with StreamEngine`` must not stop them
    before its streams have ended; :meth:`stop` ends them all.

    Attributes:
        face: the running event loop.
        deadlines: called by one timer, here.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.face: Face = current_face()
        self._timer = self.face.wakeup()
        self.deadlines = Deadlines(self._timer.set)
        self._births: deque[tuple[Callable[..., Coroutine[Any, Any, None]], tuple[Any, ...], str]] = deque()
        self._born = self.face.wakeup()
        self._closing = anyio.Event()

    async def start(self) -> None:
        """Begin; the task that calls this has to call :meth:`stop`."""
        self._outer = await anyio.create_task_group().__aenter__()
        with anyio.CancelScope(shield=True):  # cancelled half-way it would wait for a shielded task that nobody ends
            tg: anyio.abc.TaskGroup = await self._outer.start(self._hold)
        tg.start_soon(self._run_timer, name=f"{self._name}: timer")
        tg.start_soon(self._run_births, tg, name=f"{self._name}: births")

    async def stop(self) -> None:
        """Cancel every task, and wait for them."""
        self._closing.set()
        await self._outer.__aexit__(None, None, None)

    async def _hold(self, *, task_status: anyio.abc.TaskStatus[anyio.abc.TaskGroup]) -> None:
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tg:
                task_status.started(tg)
                await self._closing.wait()
                tg.cancel_scope.cancel()

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any, name: str) -> None:
        """Start a task, also from a callback of the loop, where anyio knows no loop."""
        self._births.append((function, args, f"{self._name}: {name}"))
        self._born.set()

    async def _run_births(self, tg: anyio.abc.TaskGroup) -> None:
        while True:
            await self._born.wait()
            while self._births:
                function, args, name = self._births.popleft()
                tg.start_soon(function, *args, name=name)

    async def _run_timer(self) -> None:
        while True:
            when = self.deadlines.next()
            if when is None:
                await self._timer.wait()
                continue
            delay = when - self.face.time()
            if delay > 0:
                with anyio.move_on_after(delay):
                    await self._timer.wait()
            else:
                await anyio.lowlevel.checkpoint()
            try:
                self.deadlines.run(self.face.time())
            except Exception:  # noqa: BLE001 - one defect must not stop every deadline of the engine
                _log.exception("engine %s: a deadline's callback failed: a defect", self._name)
