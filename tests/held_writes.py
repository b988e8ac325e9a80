"""A disk that stops before a given write, so that an engine can be killed between any two."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from fanstream.store import Store


class HeldWrites:
    """Lets so many writes of all journals through, and holds those that follow until ``release``.

    Attributes:
        stopped: whether one is held: what is on the disk now is what a crash leaves.
    """

    def __init__(self, patch: pytest.MonkeyPatch, passing: int) -> None:
        self._left = passing
        self._released = threading.Event()
        self.stopped = False
        write = Store.write

        def held(store: Store, steps: Any) -> Any:
            if not self._left:
                self.stopped = True
                self._released.wait(30)
            self._left -= 1
            return write(store, steps)

        patch.setattr(Store, "write", held)

    def killed(self, crash: Callable[[], object]) -> Callable[[], None]:
        """Return what crashes an engine, and only then lets its writes through."""

        def kill() -> None:
            crash()
            self.release()

        return kill

    def release(self) -> None:
        """Let all through: who is dead may write where nobody reads."""
        self._left = -1
        self._released.set()
