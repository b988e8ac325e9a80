"""The names that sites, channels and topics may have."""

from __future__ import annotations

import re
from typing import Any, Final

SITE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
WILDCARD: Final = "*"
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
    if name.startswith("_"):
        raise ValueError(f"{argument} is {name!r}: names that begin with '_' are the engine's own")
    if name == WILDCARD and not wildcard:
        raise ValueError(f"{argument} is '*', which only a registration may use")
    return name
