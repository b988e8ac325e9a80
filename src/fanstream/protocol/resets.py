"""Streams that their openers give up before anything of them was consumed: how often each site may."""

from __future__ import annotations

from collections import deque
from typing import Final

_REMEMBERED: Final = 1024  # sites; above it, those that have been quiet for long are looked for


class Resets:
    """Counts the streams that each site has reset, over a window of time that slides along (threat T17).

    Opening and resetting in turn keeps few streams open, and makes work without end.

    Args:
        most: resets within the window that a site may have.
        window: in seconds.
    """

    def __init__(self, most: int, window: float) -> None:
        self._most = most
        self._window = window
        self._times: dict[str, deque[float]] = {}  # of the latest resets, as many as tell whether there are too many

    def count(self, origin: str, now: float) -> bool:
        """Count one stream that *origin* has reset; return whether it has reset too many."""
        times = self._times.get(origin)
        if times is None:
            if len(self._times) >= _REMEMBERED:
                since = now - self._window
                self._times = {name: kept for name, kept in self._times.items() if kept[-1] > since}
            times = self._times[origin] = deque(maxlen=self._most + 1)
        times.append(now)
        return self.too_many(origin, now)

    def too_many(self, origin: str, now: float) -> bool:
        """Return whether *origin* has reset more streams within the window than it may."""
        times = self._times.get(origin)
        return times is not None and len(times) > self._most and times[0] > now - self._window
