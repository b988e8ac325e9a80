from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from fanstream.errors import CodecError

from .carrying import CODEC, carry_one, raw, same


@pytest.mark.parametrize(
    "value",
    [
        dt.datetime.min,  # noqa: DTZ901  # naive ones travel too
        dt.datetime.max,  # noqa: DTZ901
        dt.datetime(2026, 1, 1, 1, 30, fold=1),  # noqa: DTZ001
        dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        dt.datetime(2026, 1, 1, fold=1, tzinfo=dt.timezone(dt.timedelta(hours=-5, seconds=7, microseconds=3))),
        dt.date.min,
        dt.date.max,
        dt.time.min,
        dt.time.max,
        dt.time(1, 2, 3, tzinfo=dt.timezone(dt.timedelta(microseconds=1))),
        dt.timedelta.min,
        dt.timedelta.max,
        dt.timedelta(microseconds=-1),
    ],
)
def test_the_edges_of_time(value: Any) -> None:
    assert same(carry_one(value), value)


class Berlin(dt.tzinfo):
    """The rules of a place, on one night in October: 2:30 comes twice."""

    def utcoffset(self, moment: dt.datetime | None) -> dt.timedelta | None:
        return None if moment is None else dt.timedelta(hours=1 if moment.fold else 2)

    def dst(self, _moment: dt.datetime | None) -> None:
        return None

    def tzname(self, _moment: dt.datetime | None) -> str:
        return "CET"


def test_an_aware_moment_arrives_with_its_offset() -> None:
    for fold, hours in ((0, 2), (1, 1)):
        sent = dt.datetime(2026, 10, 25, 2, 30, tzinfo=Berlin(), fold=fold)
        received = carry_one(sent)
        assert received.timestamp() == sent.timestamp()
        assert received.utcoffset() == dt.timedelta(hours=hours)
        assert type(received.tzinfo) is dt.timezone


def test_a_time_of_day_without_an_offset_is_refused() -> None:
    with pytest.raises(CodecError, match=r"^a: a time whose zone gives it no offset"):
        CODEC.encode({"a": dt.time(1, tzinfo=Berlin())})


@pytest.mark.parametrize(
    "node",
    [
        *([13], [13, 1], [13, "2026-02-30T00:00:00"], [13, "2026-01-01"], [13, "2026-01-01T00:00:00+00:00"]),
        *([13, "20260101T000000"], [13, "2026-01-01T00:00:00", None], [13, "2026-01-01T00:00:00", 86_400_000_000]),
        *(
            [13, "2026-01-01T00:00:00", 0, 0],
            [13, "2026-01-01T00:00:00", 0, True],
            [13, "2026-01-01T00:00:00", 0, 1, 1],
        ),
        *([13, "2026-01-01T00:00:00", 0.5], [13, "2026-01-01T00:00:00", True], [13, "2026-01-01T00:00:00", 1 << 63]),
        *([14], [14, "2026-1-1"], [14, "2026-W01"], [14, "2026-01-01", 0], [15, "25:00:00"], [15, "01:00"], [15, 1]),
        *([16], [16, 1, 2], [16, 1, 2, 3.0], [16, 1, 2, True], [16, 0, -1, 0], [16, 0, 86_400, 0], [16, 1 << 40, 0, 0]),
    ],
)
def test_times_from_the_wire_are_checked(node: list[Any]) -> None:
    with pytest.raises(CodecError, match=r"^a: malformed envelope"):
        CODEC.begin(raw(1, {}, {"a": node}), ())
