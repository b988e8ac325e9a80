"""Members of sets and keys of dicts that are not strings, and what a peer could do with their hashes."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Final

from .faults import Fault

# Strings and bytes hash by a secret; ints, tuples and complex numbers by plain arithmetic, and so thousands of them can
# be chosen to hash alike. Inserting n of those takes n * n / 2 comparisons: half a second for what fits in an envelope.
# Honest members hardly ever share a hash (-1 and -2 do).
_FREE: Final = 16
_SHARE: Final = 16


def check_spread(members: Collection[Hashable]) -> None:
    """Refuse members of which too many share a hash.

    Raises:
        Fault: a member is not hashable, or more than 16 and more than a 16th of them share another's hash.
    """
    try:
        # Equal ints meet at their first probe, so this set itself cannot be flooded.
        alike = len(members) - len(set(map(hash, members)))
    except TypeError as exc:
        raise Fault(f"a member or key cannot be hashed: {exc}") from None
    limit = max(_FREE, len(members) // _SHARE)
    if alike > limit:
        raise Fault(f"{alike} of {len(members)} members or keys have a hash that another has too, limit {limit}")
