"""What streamers check of their arguments, before anything is sent or registered."""

from __future__ import annotations

from typing import Any, Final

from ..engine import StreamEngine
from ..options import StreamOptions

DEFAULT_OPTIONS: Final = StreamOptions(window=8)  # no reply decides what is sent next, so the sender need not wait


def check_engine(engine: Any) -> None:
    """Refuse what is no engine.

    Raises:
        TypeError: *engine* is no StreamEngine.
    """
    if not isinstance(engine, StreamEngine):
        raise TypeError(f"engine is of type {type(engine).__name__}, expected a StreamEngine")


def check_options(options: Any) -> StreamOptions:
    """Return *options*, or the streamers' default where it is None.

    Raises:
        TypeError: *options* is something else.
    """
    if options is None:
        return DEFAULT_OPTIONS
    if not isinstance(options, StreamOptions):
        raise TypeError(f"options is of type {type(options).__name__}, expected StreamOptions or None")
    return options


def check_callback(function: Any, argument: str) -> None:
    """Refuse what cannot be called.

    Raises:
        TypeError: *function* cannot be called.
    """
    if not callable(function):
        raise TypeError(f"{argument} is of type {type(function).__name__}, expected a function")


def check_number(value: Any, argument: str, *, least: int = 0) -> int:
    """Return *value* if it is a whole number of at least *least*.

    Raises:
        TypeError: it is no int.
        ValueError: it is less.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{argument} is {value!r} of type {type(value).__name__}, expected a whole number")
    if value < least:
        raise ValueError(f"{argument} is {value}, expected at least {least}")
    return value
