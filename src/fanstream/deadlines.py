"""All the deadlines of one engine in one heap: no task and no timer for each of them."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count


class Deadline:
    """One moment and what is to be called when it comes."""

    __slots__ = ("callback", "queued")

    def __init__(self, callback: Callable[[float], object]) -> None:
        self.callback: Callable[[float], object] | None = callback
        self.queued = True


class Deadlines:
    """A heap of deadlines with cheap cancellation.

    A cancelled entry stays in the heap until it surfaces, or until the cancelled ones outnumber the living, when the
    heap is rebuilt: amortised, both operations cost O(log n), and memory follows the living.

    Args:
        on_earlier: called when a new deadline is earlier than all before it, so that the one timer can be set anew.
    """

    def __init__(self, on_earlier: Callable[[], object]) -> None:
        self._heap: list[tuple[float, int, Deadline]] = []
        self._order = count()
        self._dead = 0
        self._on_earlier = on_earlier

    def __len__(self) -> int:
        """How many deadlines are to come."""
        return len(self._heap) - self._dead

    def at(self, when: float, callback: Callable[[float], object]) -> Deadline:
        """Have *callback* called with the time once *when* (loop clock, seconds) has come."""
        order = next(self._order)
        deadline = Deadline(callback)
        heap = self._heap
        heapq.heappush(heap, (when, order, deadline))
        if heap[0][2] is deadline:
            self._on_earlier()
        return deadline

    def cancel(self, deadline: Deadline) -> None:
        """Forget a deadline; again, or after it has come, does nothing."""
        if deadline.callback is None:
            return
        deadline.callback = None
        if not deadline.queued:
            return
        self._dead += 1
        if self._dead > 64 and self._dead * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    def next(self) -> float | None:
        """Return the earliest deadline, or None when there is none."""
        heap = self._heap
        while heap and heap[0][2].callback is None:
            heapq.heappop(heap)
            self._dead -= 1
        return heap[0][0] if heap else None

    def run(self, now: float) -> None:
        """Call what is due at *now*; a deadline made meanwhile that is already due waits for the next call."""
        due: list[Deadline] = []
        while self._heap and self._heap[0][0] <= now:
            deadline = heapq.heappop(self._heap)[2]
            deadline.queued = False
            if deadline.callback is None:
                self._dead -= 1
            else:
                due.append(deadline)
        for deadline in due:
            callback, deadline.callback = deadline.callback, None
            if callback is not None:  # an earlier one of this batch may have cancelled it
                callback(now)
