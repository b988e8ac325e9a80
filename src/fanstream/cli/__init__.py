"""The command line, ``fanstream``; needs the extra ``cli``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: those of the command line; None takes the process's own.

    Returns:
        The status of the process: 0, 1 where the command failed, 2 where it was misspelt.
    """
    try:
        import cyclopts
    except ImportError:
        sys.stderr.write("fanstream: the command line needs an extra: pip install 'fanstream[cli]'\n")
        return 1
    from ..errors import EngineError
    from . import federation, hub  # noqa: F401 - each adds its commands
    from .app import commands

    try:
        commands(arguments, exit_on_error=False, result_action="return_none")
    except cyclopts.CycloptsError:  # it is printed already
        return 2
    except (EngineError, OSError) as exc:
        sys.stderr.write(f"fanstream: {exc}\n")
        return 1
    return 0
