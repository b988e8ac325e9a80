"""How long a gather that has enough replies stays open for the others, by when replies have been arriving."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

_RECENT: Final = 4  # arrivals kept for each site: enough for a spread, few enough to follow a change
_FEWEST: Final = 64
_LEAST_SPREAD: Final = 0.05  # of the median: less is the noise of a loaded event loop, not a difference between sites
_LEAST_SECONDS: Final = 0.001


class Patience:
    """Median and spread of a stream's recent arrivals: each the time from an object's sending to one site's reply.

    The spread is the median absolute deviation, which a few stragglers do not move; so what they do never makes the
    others wait for them longer.

    Args:
        factor: spreads beyond the median for which a gather stays open.
        sites: of the stream.
    """

    def __init__(self, factor: float, sites: int) -> None:
        self._factor = factor
        self._recent: deque[float] = deque(maxlen=max(_FEWEST, _RECENT * sites))

    def observe(self, seconds: float) -> None:
        """Take note of one arrival, in time or late."""
        self._recent.append(seconds)

    def limit(self) -> float:
        """Return for how long after its sending an object's gather stays open, in seconds."""
        middle = _median(sorted(self._recent))
        deviation = _median(sorted(abs(seconds - middle) for seconds in self._recent))
        return middle + self._factor * max(deviation, _LEAST_SPREAD * middle, _LEAST_SECONDS)


def _median(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
