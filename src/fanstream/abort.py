"""AbortSignal: a tree of signals to wait for, to poll from a thread, or to use as cancellation scopes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio

from .wakeup import Face, current_face


class AbortSignal:
    """Tells everyone below it to stop, once.

    Signals form a tree: triggering one triggers its children, such as a run's signal its streams'. ``trigger`` and
    ``triggered`` may be used from any thread; ``wait`` and ``scope`` belong to the event loop.

    Args:
        parent: the signal whose trigger is also this one's.
    """

    def __init__(self, parent: AbortSignal | None = None) -> None:
        self._lock = threading.Lock()
        self._triggered = False
        self._reason: Any = None
        self._listeners: dict[int, tuple[Face, Callable[[], object]]] = {}
        self._names = 0
        self._children: weakref.WeakSet[AbortSignal] = weakref.WeakSet()
        self.parent = parent
        if parent is not None:
            parent._adopt(self)

    def _adopt(self, child: AbortSignal) -> None:
        with self._lock:
            if not self._triggered:
                self._children.add(child)
                return
        child.trigger(self._reason)

    @property
    def triggered(self) -> bool:
        """Whether this signal, or one above it, was triggered."""
        return self._triggered

    @property
    def reason(self) -> Any:
        """What ``trigger`` was given, or None."""
        return self._reason

    def trigger(self, reason: Any = None) -> None:
        """Trigger the signal and all below it; from any thread, and only the first time counts."""
        with self._lock:
            if self._triggered:
                return
            self._triggered, self._reason = True, reason
            listeners, self._listeners = self._listeners, {}
            children = list(self._children)
            self._children.clear()
        for face, callback in listeners.values():
            face.call_from_anywhere(callback)
        for child in children:
            child.trigger(reason)

    def child(self) -> AbortSignal:
        """Make a signal below this one."""
        return AbortSignal(self)

    def subscribe(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Have *callback* called on the running event loop when the signal is triggered; at once if it already was.

        Returns:
            A function that takes the subscription back.
        """
        face = current_face()
        with self._lock:
            if not self._triggered:
                self._names += 1
                name = self._names
                self._listeners[name] = (face, callback)

                def unsubscribe() -> None:
                    with self._lock:
                        self._listeners.pop(name, None)

                return unsubscribe
        callback()
        return lambda: None

    async def wait(self) -> None:
        """Wait until the signal is triggered."""
        if self._triggered:
            await anyio.lowlevel.checkpoint()
            return
        wakeup = current_face().wakeup()
        unsubscribe = self.subscribe(wakeup.set)
        try:
            await wakeup.wait()
        finally:
            unsubscribe()

    @contextmanager
    def scope(self) -> Iterator[anyio.CancelScope]:
        """Cancel the body of ``with signal.scope():`` when the signal is triggered."""
        with anyio.CancelScope() as scope:
            unsubscribe = self.subscribe(scope.cancel)
            try:
                yield scope
            finally:
                unsubscribe()

    def __repr__(self) -> str:
        return f"<AbortSignal {'triggered' if self._triggered else 'quiet'}>"
