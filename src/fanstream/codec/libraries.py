"""Which of the libraries that values may need are loaded: importing one takes tenths of a second, or seconds."""

from __future__ import annotations

import sys


def is_loaded(name: str) -> bool:
    """Whether importing a library takes no time now, as importlib sees it: it may be under way in another thread."""
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)
