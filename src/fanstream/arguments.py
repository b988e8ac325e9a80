"""Arguments that many calls take: the names of sites, channels and topics, timeouts, and numbers of things."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

SITE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
WILDCARD: Final = "*"
OWN: Final = "_"
"""What the names of the engine's own channels begin with."""
LONGEST_TIMEOUT: Final = 2**32 // 1000 - 1  # seconds: what the wire's 32 bits of milliseconds hold, about 49 days
_MAX_ADDRESS: Final = 255  # characters: room for any name, and two of them leave OPEN's routing part small


def check_site(name: Any, argument: str) -> str:
    """Return *name* if it is a site's name.

    Raises:
        TypeError: it is not a str.
        ValueError: it is not ``[A-Za-z0-9][A-Za-z0-9._-]{0,62}``.
    """
    if not isinstance(name, str):
        raise TypeError(f"{argument} is {name!r} of type {type(name).__name__}, expected a site's name as a str")
    if SITE_NAME.match(name) is None:
        raise ValueError(f"{argument} is {name!r}, expected a site's name: [A-Za-z0-9][A-Za-z0-9._-]{{0,62}}")
    return name


def check_address(name: Any, argument: str, *, wildcard: bool = False) -> str:
    """Return *name* if it can be a channel or a topic.

    Args:
        name: what the caller gave.
        argument: the argument's name, for the message.
        wildcard: whether ``"*"`` is a name here.

    Raises:
        TypeError: it is not a str.
        ValueError: it is empty, too long, ``"*"`` where that is no name, or begins with the engine's own ``"_"``.
    """
    if not isinstance(name, str):
        raise TypeError(f"{argument} is {name!r} of type {type(name).__name__}, expected a str")
    if not name or len(name) > _MAX_ADDRESS:
        raise ValueError(f"{argument} has {len(name)} characters, expected 1 to {_MAX_ADDRESS}")
    if name.startswith(OWN):
        raise ValueError(f"{argument} is {name!r}: names that begin with '_' are the engine's own")
    if name == WILDCARD and not wildcard:
        raise ValueError(f"{argument} is '*', which only a registration may use")
    return name


def check_targets(targets: Any, own_name: str) -> list[str]:
    """Return the targets of a stream.

    Raises:
        TypeError: they are a bare str, or not all of them are str.
        ValueError: there are none, one is no site's name, one is there twice, or one is this site itself.
    """
    if isinstance(targets, (str, bytes)) or not isinstance(targets, Sequence):
        raise TypeError(f"targets is {targets!r} of type {type(targets).__name__}, expected a list of site names")
    if not targets:
        raise ValueError("targets is empty, expected at least one site's name")
    names = [check_site(name, f"targets[{index}]") for index, name in enumerate(targets)]
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            raise ValueError(f"targets[{index}] is {name!r}, which is there before: each site once")
        if name == own_name:
            raise ValueError(f"targets[{index}] is {name!r}, this site's own name")
        seen.add(name)
    return names


def check_timeout(timeout: Any, argument: str = "timeout") -> float:
    """Return a timeout in seconds.

    Raises:
        TypeError: it is no number and no timedelta.
        ValueError: it is not positive and finite, or too long for the wire.
    """
    if type(timeout) is float and 0 < timeout <= LONGEST_TIMEOUT:
        return timeout
    if isinstance(timeout, timedelta):
        timeout = timeout.total_seconds()
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"{argument} is {timeout!r} of type {type(timeout).__name__}, expected seconds or a timedelta")
    seconds = float(timeout)
    if not math.isfinite(seconds) or seconds <= 0 or seconds > LONGEST_TIMEOUT:
        raise ValueError(f"{argument} is {timeout!r}, expected a positive number of seconds up to {LONGEST_TIMEOUT}")
    return seconds


def check_type(value: Any, argument: str, kind: type) -> None:
    """Check that *value* is of a type.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{argument} is of type {type(value).__name__}, expected {kind.__name__}")


def check_count(value: Any, argument: str, *, least: int = 0) -> int:
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
