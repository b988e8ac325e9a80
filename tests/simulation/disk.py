"""Journals on virtual time: what worker threads do takes a while, and a crash loses what they have not done yet."""

from __future__ import annotations

import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

import anyio
import anyio.to_thread

from fanstream.store import Step, Store

SLOWEST: Final = 0.02
"""Seconds that a call in a thread takes at most, before what it does is done; and once more until that is known."""

_MEMORY: Final = Path("/dev/shm")  # where there is one: nobody has to wait for a real disk


class Threads:
    """Stands in for worker threads: what is called happens at one moment of virtual time, within the call.

    So whoever dies before that moment has not written, and whoever dies after it may not know that it has.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"threads of {seed}")

    async def run_sync(
        self,
        function: Callable[..., Any],
        *args: Any,
        abandon_on_cancel: bool = False,
        limiter: anyio.CapacityLimiter | None = None,
    ) -> Any:
        """Call a function as ``anyio.to_thread.run_sync`` does."""
        await anyio.lowlevel.checkpoint()
        async with limiter or anyio.CapacityLimiter(1):
            with anyio.CancelScope(shield=not abandon_on_cancel):
                await anyio.sleep(self._while())
                try:
                    return function(*args)
                finally:
                    await anyio.sleep(self._while())

    def _while(self) -> float:
        return self._rng.choice((0.0, 0.001, SLOWEST))

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Take the place of all worker threads."""
        with mock.patch.object(anyio.to_thread, "run_sync", self.run_sync):
            yield


class Disks:
    """The journals of one run: a file for each life of each engine that has one.

    Attributes:
        full: names of engines whose disks have no room now.
    """

    def __init__(self) -> None:
        self.full: set[str] = set()
        self._folder: Path | None = None
        self._lives: dict[str, int] = {}

    def path(self, name: str) -> Path:
        """Return the file of an engine's life."""
        if self._folder is None:
            memory = _MEMORY if _MEMORY.is_dir() else None
            self._folder = Path(tempfile.mkdtemp(prefix="simulated-", dir=memory))
        return self._folder / f"{name}-{self._lives.get(name, 0)}"

    def crash(self, name: str) -> None:
        """Leave to an engine's next life what is on its disk now; what this one still writes is never read."""
        before = self.path(name)
        self._lives[name] = self._lives.get(name, 0) + 1
        for file in before.parent.glob(f"{before.name}*"):
            if file.name in (before.name, f"{before.name}-wal"):
                shutil.copy(file, str(file).replace(before.name, self.path(name).name))

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Have nothing be written where there is no room."""
        commit = Store._commit

        def commit_if_there_is_room(store: Store, steps: Sequence[Step]) -> None:
            full = store.path.name.rpartition("-")[0] in self.full
            commit(store, [*steps, _find_no_room] if full else steps)

        with mock.patch.object(Store, "_commit", commit_if_there_is_room):
            yield

    def close(self) -> None:
        """Remove them all."""
        if self._folder is not None:
            shutil.rmtree(self._folder)


def _find_no_room(store: Store) -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error
