"""How long a site may take for an object, by the pace that it has shown and by whether it still moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Final

from .frames import SMALL_OBJECT
from .gather import Flight, Gathering

_FADING: Final = 0.75  # what an earlier object still counts, so that the last four or so make the pace
_LOOKS: Final = 4  # in one progress timeout: a site that has stopped is found after 1.25 of them at most

Progress = Callable[[str], Hashable]
"""A site's mark: something that differs from what it was before whenever bytes have moved to the site or from it.

None while the site waits for this side, which must not count against it.
"""


class Pace:
    """One site's pace on one stream.

    Attributes:
        unanswered: bytes of the objects that it was sent and has not answered.
        turned: when it last answered, and so turned to the next object.
        moved: when bytes were last seen to move.
    """

    __slots__ = ("_bytes", "_mark", "_seconds", "moved", "turned", "unanswered")

    def __init__(self) -> None:
        self._bytes = 0.0
        self._seconds = 0.0
        self._mark: Hashable = None
        self.unanswered = 0
        self.turned = -math.inf
        self.moved = -math.inf

    def expected(self, size: int) -> float:
        """Return how long *size* bytes take at this pace, in seconds; 0 until it is known."""
        return size * self._seconds / self._bytes if self._bytes else 0.0

    @property
    def known(self) -> bool:
        """Whether it has answered an object that tells a pace."""
        return self._bytes > 0

    def answered(self, size: int, sent: float, now: float) -> None:
        """Learn from an answer to an object of *size* bytes, which was sent at *sent*."""
        if size > SMALL_OBJECT:  # a smaller one tells of round trips, which say nothing about a large one
            self._bytes = self._bytes * _FADING + size
            self._seconds = self._seconds * _FADING + now - max(sent, self.turned)
        self.unanswered -= size
        self.turned = now

    def look(self, mark: Hashable, now: float) -> None:
        """Note whether anything has moved since the last look."""
        if mark is None or mark != self._mark:
            self._mark = mark
            self.moved = now

    def start(self, mark: Hashable) -> None:
        """Note where things stand as the site gets something to do."""
        self._mark = mark

    def due(self, sent: float, size: int, timeout: float) -> float:
        """Return when the site has to have answered, unless something moves meanwhile.

        Args:
            sent: when the object was sent.
            size: of the object and those before it that are not answered either.
            timeout: how long the site may take beyond its pace, and how long it may show no progress.
        """
        return max(max(sent, self.turned) + self.expected(size), self.moved) + timeout


class Pacing:
    """The paces of all the sites of one stream.

    A site's budget for an object is the time that the object takes at the pace seen so far, and *timeout* on top; and
    for as long as bytes move, the last sign of that and *timeout*. Whether they do is looked at every so often, so
    nothing is done for it where they move.

    Args:
        gathering: the stream's account.
        timeout: the progress timeout, in seconds.
        progress: tells a site's mark.
    """

    def __init__(self, gathering: Gathering, timeout: float, progress: Progress) -> None:
        self._gathering = gathering
        self._timeout = timeout
        self._progress = progress
        self._paces = {name: Pace() for name in gathering.sites}

    def budget(self, name: str, size: int) -> float:
        """Return how long a site will have for an object of *size* bytes if it is sent now, in seconds.

        It is infinite until a pace is known: then only progress counts.
        """
        pace = self._paces[name]
        return pace.expected(pace.unanswered + size) + self._timeout if pace.known else math.inf

    def sent(self, flight: Flight) -> float:
        """Take note of an object that was sent to every active site; return when to look, at the latest."""
        for name in self._gathering.active:
            pace = self._paces[name]
            if not pace.unanswered:
                pace.start(self._progress(name))
            pace.unanswered += flight.size
        return flight.sent + self._timeout / _LOOKS

    def answered(self, name: str, flight: Flight, now: float) -> None:
        """Take note of a site's reply, a late one too."""
        self._paces[name].answered(flight.size, flight.sent, now)

    def overdue(self, now: float) -> tuple[Sequence[tuple[Flight, str, str]], float]:
        """Say who has been too slow, or has stopped.

        Returns:
            Each object, site and reason of that; and when to look again, infinite when nobody is waited for.
        """
        found: list[tuple[Flight, str, str]] = []
        flights = self._gathering.flights
        again = math.inf
        for name, site in self._gathering.active.items():
            pace = self._paces[name]
            if not site.backlog:
                continue
            pace.look(self._progress(name), now)
            size = 0
            for seq in range(site.answered, site.sent):
                flight = flights[seq]
                size += flight.size
                if name not in flight.waiting:
                    continue
                due = pace.due(flight.sent, size, self._timeout)
                if due > now:  # and so are those behind it
                    again = min(again, due, now + self._timeout / _LOOKS)
                    break
                found.append((flight, name, self._reason(pace, flight, size, now)))
        return found, again

    def _reason(self, pace: Pace, flight: Flight, size: int, now: float) -> str:
        start = max(flight.sent, pace.turned)
        quiet = f"no progress for {now - max(start, pace.moved):.3g} s, the progress timeout is {self._timeout:g} s"
        if not pace.known:
            return quiet
        return f"{quiet}; {now - start:.3g} s for what takes {pace.expected(size):.3g} s at this site's pace"
