"""What every test may use: the two backends, and the gate before tests that need torch."""

from __future__ import annotations

import gc
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import settings

from fanstream.protocol import core

# Half of what is usual: there are many such tests, and they run often. How long one takes says how busy the machine is.
settings.register_profile("suite", max_examples=50, deadline=None)
settings.load_profile("suite")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("trio", {}), id="trio"),
    ],
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run a test marked `anyio` on both backends, with the options that each is started with."""
    backend: tuple[str, dict[str, Any]] = request.param
    return backend


def pytest_collection_finish() -> None:
    """Take what stays until the end, above all thousands of tests, out of every later garbage collection."""
    gc.collect()
    gc.freeze()


COMPILED = not (getattr(core, "__file__", "") or "").endswith(".py")
"""Whether the package under test is a compiled build."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `torch` where torch is not installed, and `interpreted` where the package is compiled."""
    if COMPILED and item.get_closest_marker("interpreted") is not None:
        pytest.skip("nothing can take the place of a part that is compiled")
    if item.get_closest_marker("torch") is not None and find_spec("torch") is None:
        pytest.skip("torch is not installed; `nox -s torch` runs this test")
