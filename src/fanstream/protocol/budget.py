"""Budgets: how many bytes of objects an engine holds, for each origin site and in all."""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

LEAST_ASIDE: Final = 4
"""Objects: for fewer nothing is set aside."""
ASIDE: Final = 4
"""What of a site's share may be set aside for one stream: one part in so many."""


class Holder(Protocol):
    """One direction of one stream, which holds objects.

    Attributes:
        origin: the site whose objects it holds: the sender of the bytes, never the hub between.
        held: bytes it holds now, without what is set aside; kept by the budget.
        aside: bytes set aside for objects to come; kept by the budget.
        standing: bytes of objects that come unasked which it has room for; kept by the budget.
    """

    origin: str
    held: int
    aside: int
    standing: int

    def granted(self) -> None:
        """Hear that the oldest reservation that had to wait is made."""


class Budget:
    """Reserves whole objects before their data is let in.

    A holder that holds nothing may always reserve one object, alone and whatever its size: so every stream moves, and
    an object larger than its share is still received. What does not fit waits, in order of arrival.

    Small objects come unasked. They have room of their own, which streams take in large pieces and keep.

    Args:
        origin_limit: bytes for each origin site.
        engine_limit: bytes in all.
        unasked_limit: bytes of what comes unasked for each origin site; in all, the engine's, or as much if that is
            more.

    Attributes:
        used: bytes of reservations.
        standing: bytes for what comes unasked.
    """

    def __init__(self, origin_limit: int, engine_limit: int, unasked_limit: int) -> None:
        self._origin_limit = origin_limit
        self._engine_limit = engine_limit
        self._unasked_limit = unasked_limit
        self._all_unasked = max(engine_limit, unasked_limit)
        self._origins: dict[str, int] = {}
        self._waiting: deque[tuple[Holder, int]] = deque()
        self._unasked: dict[str, int] = {}
        self.used = 0
        self.standing = 0

    @property
    def waiting(self) -> int:
        """How many reservations wait."""
        return len(self._waiting)

    def used_by(self, origin: str) -> int:
        """Return the bytes held for one origin site."""
        return self._origins.get(origin, 0)

    def charge(self, holder: Holder, size: int) -> None:
        """Count bytes that are let in without asking: small objects, bounded by the stream's backlog."""
        holder.held += size
        self._take(holder, size)

    def request(self, holder: Holder, size: int) -> bool:
        """Reserve *size* bytes now if they fit; otherwise the holder's ``granted`` is called once they do."""
        if not any(other is holder for other, _ in self._waiting) and self._fits(holder, size):
            self.charge(holder, size)
            return True
        self._waiting.append((holder, size))
        return False

    def _fits(self, holder: Holder, size: int) -> bool:
        if holder.held == 0:
            return True
        return (
            self.used + size <= self._engine_limit and self._origins.get(holder.origin, 0) + size <= self._origin_limit
        )

    def release(self, holder: Holder, size: int) -> None:
        """Give bytes back, and let in what waited for them."""
        self._give_back(holder, size)
        if self._waiting:
            self._admit()

    def set_aside(self, holder: Holder, least: int, most: int) -> int:
        """Reserve *least* to *most* bytes for a holder's objects to come, while there is plenty; until it is forgotten.

        Half of what a site may have, and of the engine's, is left to objects that ask.

        Returns:
            How many bytes were set aside; 0 where there is not so much room.
        """
        room = min(self._engine_limit // 2 - self.used, self._origin_limit // 2 - self._origins.get(holder.origin, 0))
        size = min(most, room)
        if size < least or self._waiting:
            return 0
        holder.aside += size
        self._take(holder, size)
        return size

    def stand(self, holder: Holder, size: int) -> bool:
        """Give *size* bytes more to what comes unasked, until *holder* is forgotten; return whether they were there."""
        taken = self._unasked.get(holder.origin, 0) + size
        if taken > self._unasked_limit or self.standing + size > self._all_unasked:
            return False
        self._unasked[holder.origin] = taken
        self.standing += size
        holder.standing += size
        return True

    def _take(self, holder: Holder, size: int) -> None:
        self.used += size
        self._origins[holder.origin] = self._origins.get(holder.origin, 0) + size

    def _give_back(self, holder: Holder, size: int) -> None:
        holder.held -= size
        self._free(holder, size)

    def _free(self, holder: Holder, size: int) -> None:
        self.used -= size
        left = self._origins.get(holder.origin, 0) - size
        if left:
            self._origins[holder.origin] = left
        else:
            self._origins.pop(holder.origin, None)

    def withdraw(self, holder: Holder) -> None:
        """Drop what a holder waits for."""
        if self._waiting:
            self._waiting = deque(entry for entry in self._waiting if entry[0] is not holder)

    def forget(self, holder: Holder) -> None:
        """Drop all that a holder holds or waits for; it has ended."""
        self.withdraw(holder)
        if holder.held:
            self._give_back(holder, holder.held)
        if holder.aside:
            size, holder.aside = holder.aside, 0
            self._free(holder, size)
        if holder.standing:
            size, holder.standing = holder.standing, 0
            self.standing -= size
            self._unasked[holder.origin] -= size
            if not self._unasked[holder.origin]:
                del self._unasked[holder.origin]
        if self._waiting:
            self._admit()

    def _admit(self) -> None:
        blocked: set[int] = set()  # a holder's reservations are made in its own order
        still: deque[tuple[Holder, int]] = deque()
        ready: list[Holder] = []
        while self._waiting:
            holder, size = self._waiting.popleft()
            if id(holder) in blocked or not self._fits(holder, size):
                blocked.add(id(holder))
                still.append((holder, size))
            else:
                self.charge(holder, size)
                ready.append(holder)
        self._waiting = still
        for holder in ready:
            holder.granted()
