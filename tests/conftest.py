"""What every test may use: the backends, a free port, the gate before tests that need torch, a last collection."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator
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


@pytest.fixture
def free_port() -> int:
    """A port of loopback for a listener whose port has to be known before; tests that run meanwhile do not get it.

    A connection that its listener's side ended first keeps the port in TIME_WAIT: who asks for any is given another,
    and who names it has it.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        listener.accept()[0].close()
        port: int = listener.getsockname()[1]
    return port


def pytest_collection_finish() -> None:
    """Take what stays until the end, above all thousands of tests, out of every later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def nothing_fails_as_it_is_collected() -> Iterator[None]:
    """Collect what the last test left as long as it can fail for that: no process of pytest-xdist tells of it later."""
    yield
    gc.collect()


COMPILED = not (getattr(core, "__file__", "") or "").endswith(".py")
"""Whether the package under test is a compiled build."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `torch` where torch is not installed, and `interpreted` where the package is compiled."""
    if COMPILED and item.get_closest_marker("interpreted") is not None:
        pytest.skip("nothing can take the place of a part that is compiled")
    if item.get_closest_marker("torch") is not None and find_spec("torch") is None:
        pytest.skip("torch is not installed; `nox -s torch` runs this test")
