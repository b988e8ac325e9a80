"""When the replies to an object are enough, and what becomes of a site that stays behind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Quorum:
    """A gather that has enough once *k* sites have replied.

    Args:
        k: replies that are enough.
        patience: how long the gather then stays open for the others: until the median of the stream's recent arrivals
            and so many times their median absolute deviation have passed since the object was sent. None: not at all.

    Raises:
        ValueError: *k* is not a positive whole number, or *patience* is negative or not finite.
    """

    k: int
    patience: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise ValueError(f"Quorum: k is {self.k!r}, expected a whole number of at least 1")
        patience = self.patience
        if patience is not None and (
            not isinstance(patience, int | float) or isinstance(patience, bool) or not 0 <= patience < math.inf
        ):
            raise ValueError(f"Quorum: patience is {patience!r}, expected a number of at least 0, or None")


@dataclass(frozen=True, slots=True)
class Drop:
    """A straggler policy: drop a site after *n* objects in a row that it did not answer in time.

    Raises:
        ValueError: *n* is not a positive whole number.
    """

    n: int

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or isinstance(self.n, bool) or self.n < 1:
            raise ValueError(f"Drop: n is {self.n!r}, expected a whole number of at least 1")


Gather = Literal["all", "first"] | Quorum
Straggler = Literal["wait"] | Drop
