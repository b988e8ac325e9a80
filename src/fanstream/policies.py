"""When the replies to an object are enough, and what becomes of a site that stays behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Quorum:
    """A gather that is complete once *k* sites have replied.

    Raises:
        ValueError: *k* is not a positive whole number.
    """

    k: int

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise ValueError(f"Quorum: k is {self.k!r}, expected a whole number of at least 1")


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
