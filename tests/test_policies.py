"""A policy that makes no sense is refused where it is made."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from fanstream import Drop, Quorum


@pytest.mark.parametrize(("kind", "field"), [(Quorum, "k"), (Drop, "n")])
@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1", None])
def test_a_quorum_or_a_drop_of_no_positive_number_is_refused(kind: type[Any], field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} is {re.escape(repr(value))}, expected a whole number"):
        kind(value)


@pytest.mark.parametrize("patience", [-0.1, math.inf, math.nan, True, "1"])
def test_a_patience_of_no_finite_number_is_refused(patience: Any) -> None:
    with pytest.raises(ValueError, match=f"patience is {re.escape(repr(patience))}, expected a number of at least 0"):
        Quorum(1, patience)
