"""Every transport, the faulty network without faults too, passes one suite: which is why a fake can be trusted."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fanstream.testing import FaultyNetwork
from fanstream.testing.conformance import Transport, TransportConformance
from fanstream.transports import Wire

ASYNCIO: tuple[str, dict[str, Any]] = ("asyncio", {"use_uvloop": False})
UVLOOP: tuple[str, dict[str, Any]] = ("asyncio", {"use_uvloop": True})
TRIO: tuple[str, dict[str, Any]] = ("trio", {})

needs_uvloop = pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")


class Faulty(Transport):
    """Memory links of a faulty network, without a fault."""

    async def dial(self, address: str) -> Wire:
        with FaultyNetwork():
            return await super().dial(address)


@pytest.fixture
def transport(request: pytest.FixtureRequest) -> Iterator[Transport]:
    kind: str = request.param
    if kind == "unix":
        with tempfile.TemporaryDirectory() as folder:  # not tmp_path: a socket's path may have about 100 characters
            yield Transport(f"unix://{Path(folder) / 's'}")
    elif kind == "faulty":
        yield Faulty("memory://conformance-faulty")
    else:
        yield Transport({"memory": "memory://conformance", "tcp": "tcp://127.0.0.1:0"}[kind])


@pytest.mark.parametrize(
    ("anyio_backend", "transport"),
    [
        pytest.param(ASYNCIO, "memory", id="asyncio-memory"),
        pytest.param(TRIO, "memory", id="trio-memory"),
        pytest.param(ASYNCIO, "tcp", id="asyncio-tcp"),
        pytest.param(ASYNCIO, "unix", id="asyncio-unix"),
        pytest.param(UVLOOP, "tcp", id="uvloop-tcp", marks=needs_uvloop),
        pytest.param(UVLOOP, "unix", id="uvloop-unix", marks=needs_uvloop),
        pytest.param(UVLOOP, "memory", id="uvloop-memory", marks=needs_uvloop),
        pytest.param(ASYNCIO, "faulty", id="asyncio-faulty"),
        pytest.param(TRIO, "faulty", id="trio-faulty"),
    ],
    indirect=True,
    scope="class",
)
class TestConformance(TransportConformance):
    """A further transport joins by a line above."""
