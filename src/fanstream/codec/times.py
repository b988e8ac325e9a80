"""Dates, times and durations as nodes of an envelope, and back."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from . import tags
from .faults import Fault

_MICROSECOND: Final = dt.timedelta.resolution


def datetime_node(value: dt.datetime) -> list[Any]:
    """Turn a datetime, naive or aware, into a node.

    An aware one arrives with the offset that it has at that moment, not with its zone's rules.
    """
    return [tags.DATETIME, value.replace(tzinfo=None).isoformat(), *_zone(value)]


def time_node(value: dt.time) -> list[Any]:
    """Turn a time of day, naive or with a fixed offset, into a node."""
    return [tags.TIME, value.replace(tzinfo=None).isoformat(), *_zone(value)]


def date_node(value: dt.date) -> list[Any]:
    """Turn a date into a node."""
    return [tags.DATE, value.isoformat()]


def timedelta_node(value: dt.timedelta) -> list[Any]:
    """Turn a duration into a node."""
    return [tags.TIMEDELTA, value.days, value.seconds, value.microseconds]


def read_datetime(node: list[Any]) -> dt.datetime:
    """Turn a node back into a datetime."""
    value = dt.datetime.fromisoformat(_text(node))
    _check_spelling(value, node[1])
    zone, fold = _read_zone(node)
    return value.replace(tzinfo=zone, fold=fold)


def read_time(node: list[Any]) -> dt.time:
    """Turn a node back into a time of day."""
    value = dt.time.fromisoformat(_text(node))
    _check_spelling(value, node[1])
    zone, fold = _read_zone(node)
    return value.replace(tzinfo=zone, fold=fold)


def read_date(node: list[Any]) -> dt.date:
    """Turn a node back into a date."""
    value = dt.date.fromisoformat(_text(node))
    _check_spelling(value, node[1])
    if len(node) > 2:
        raise Fault("malformed envelope: a date with a time zone")
    return value


def read_timedelta(node: list[Any]) -> dt.timedelta:
    """Turn a node back into a duration."""
    if len(node) != 4 or any(type(part) is not int for part in node):  # a tag and three numbers
        raise Fault("malformed envelope: a duration is not three whole numbers")
    value = dt.timedelta(days=node[1], seconds=node[2], microseconds=node[3])
    if [value.days, value.seconds, value.microseconds] != node[1:]:
        raise Fault("malformed envelope: a duration is not in its normal form")
    return value


def _zone(value: dt.datetime | dt.time) -> list[int | None]:
    """Write the offset (microseconds east of UTC, None where there is none) and the fold, as far as there are any."""
    # Apart from the text, since fromisoformat loses offsets of less than a second.
    offset = value.utcoffset()
    if offset is None and value.tzinfo is not None:
        raise Fault("a time whose zone gives it no offset; use a fixed offset, or no zone")
    east = None if offset is None else offset // _MICROSECOND
    if value.fold:
        return [east, 1]
    return [] if east is None else [east]


def _read_zone(node: list[Any]) -> tuple[dt.timezone | None, int]:
    rest = node[2:]
    if not rest:
        return None, 0
    east, *folds = rest
    if type(east) not in (int, type(None)) or [(type(fold), fold) for fold in folds] not in ([], [(int, 1)]):
        raise Fault("malformed envelope: a time with another offset or fold than there can be")
    if east is None and not folds:
        raise Fault("malformed envelope: a time is not in its normal form")
    return None if east is None else dt.timezone(east * _MICROSECOND), len(folds)


def _text(node: list[Any]) -> str:
    if len(node) < 2 or type(node[1]) is not str:
        raise Fault("malformed envelope: a date or time is not a text")
    return node[1]


def _check_spelling(value: dt.date | dt.time, text: str) -> None:
    # fromisoformat accepts many spellings; one moment has one here, and its offset stands beside it.
    if value.isoformat() != text or getattr(value, "tzinfo", None) is not None:
        raise Fault("malformed envelope: a date or time is not in its normal form")
