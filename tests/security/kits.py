"""Kits for tests that need members and not their making: one federation of each name, made once and never changed."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from fanstream.security import Kit
from fanstream.security.provision import Federation

from .conftest import plan


@cache
def _federation(name: str) -> Path:
    folder = TemporaryDirectory(prefix="fanstream-kits-")
    atexit.register(folder.cleanup)
    return Federation.make(plan(name, sites=3), Path(folder.name) / name).kits


@cache
def kit(site: str, federation: str = "hospitals") -> Kit:
    """The kit of ``server``, ``site-1``, ``site-2`` or ``site-3``."""
    return Kit.load(_federation(federation) / site)


def identities(federation: str = "hospitals", *, without: str = "") -> Callable[[str], Kit | None]:
    """The kit of each site of a federation, but for one."""
    return lambda name: None if name == without else kit(name, federation)
