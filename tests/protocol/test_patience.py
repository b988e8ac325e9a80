from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanstream.protocol.patience import Patience

seconds = st.floats(0, 1e5)


def limit(arrivals: list[float], factor: float = 3.0, sites: int = 1) -> float:
    patience = Patience(factor, sites)
    for arrival in arrivals:
        patience.observe(arrival)
    return patience.limit()


@pytest.mark.parametrize(
    ("arrivals", "expected"),
    [
        ([1, 2, 3, 4, 5], 3 + 3 * 1),
        ([1, 2, 3, 4], 2.5 + 3 * 1),
        ([2, 2, 2, 90], 2 + 3 * 0.05 * 2),  # the deviation is 0, and the floor a twentieth of the median
        ([0, 0, 0], 3 * 0.001),
        ([10], 10 + 3 * 0.5),
    ],
)
def test_it_is_the_median_and_so_many_deviations(arrivals: list[float], expected: float) -> None:
    assert limit(arrivals) == pytest.approx(expected)


def test_what_is_long_ago_counts_no_more() -> None:
    assert limit([100.0] * 500 + [1.0] * 64) == pytest.approx(1.15)
    assert limit([100.0] * 500 + [1.0] * 64, sites=100) == pytest.approx(115)


@given(st.lists(seconds, min_size=1, max_size=60))
def test_the_order_of_arrivals_does_not_matter(arrivals: list[float]) -> None:
    assert limit(arrivals) == limit(sorted(arrivals)) == limit(arrivals[::-1])


@given(st.lists(seconds, min_size=3, max_size=31), st.floats(1e5, 1e9))
def test_stragglers_fewer_than_half_never_make_it_wait_for_them(arrivals: list[float], late: float) -> None:
    """Whatever a minority does, the limit stays within what the others' arrivals span."""
    stragglers = [late] * ((len(arrivals) - 1) // 2)
    highest = max(arrivals)
    assert limit([*arrivals, *stragglers], factor=1.0) <= highest + max(highest, 0.001)


@given(st.lists(seconds, min_size=1, max_size=60), st.floats(0, 10))
def test_it_grows_with_the_factor_and_is_never_before_the_median(arrivals: list[float], factor: float) -> None:
    assert limit(arrivals, 0.0) <= limit(arrivals, factor) <= limit(arrivals, factor + 1)
    assert limit(arrivals, 0.0) >= min(arrivals)
