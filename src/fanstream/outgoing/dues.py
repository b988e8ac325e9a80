"""When the objects of an outgoing stream are due: one entry of the engine's heap for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from ..deadlines import Deadline, Deadlines
from ..protocol.gather import Flight, Gathering
from ..protocol.pace import Pacing


class Dues:
    """The one timer of a stream.

    Args:
        deadlines: the engine's.
        gathering: the stream's account.
        pacing: its sites' own deadlines, if they have any.
        expire: called with an object that is due, why, and the sites whose deadline it is; None for all.
        lose_patience: called with an object that has enough replies and has waited for the others for long enough.

    Attributes:
        next: when it looks next what is due; infinite while nothing will be.
    """

    def __init__(
        self,
        deadlines: Deadlines,
        gathering: Gathering,
        pacing: Pacing | None,
        expire: Callable[[Flight, str, Collection[str] | None], object],
        lose_patience: Callable[[Flight], object],
    ) -> None:
        self._deadlines = deadlines
        self._gathering = gathering
        self._pacing = pacing
        self._expire = expire
        self._lose_patience = lose_patience
        self._timer: Deadline | None = None
        self.next = math.inf

    def look_at(self, when: float) -> None:
        """Look at *when*, and no more at ``next``."""
        if self._timer is not None:
            self._deadlines.cancel(self._timer)
            self._timer = None
        self.next = when
        if when < math.inf:
            self._timer = self._deadlines.at(when, self._look)

    def _look(self, now: float) -> None:
        """Expire what is due, and see when the next will be; most objects were answered long before."""
        self._timer = None
        look = math.inf
        for flight in list(self._gathering.flights.values()):
            if flight.waiting and flight.due <= now:
                self._expire(flight, f"no reply within the timeout of {flight.due - flight.sent:.6g} s", None)
            elif flight.closes <= now and not flight.complete:
                self._lose_patience(flight)
        if self._pacing is not None:
            overdue, look = self._pacing.overdue(now)
            for flight, name, reason in overdue:
                self._expire(flight, reason, (name,))
        for flight in self._gathering.flights.values():
            if flight.waiting:
                look = min(look, flight.due if flight.complete else min(flight.due, flight.closes))
        self.look_at(look)
