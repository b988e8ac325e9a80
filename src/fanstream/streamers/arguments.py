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
