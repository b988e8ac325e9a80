"""Links through asyncio's transports: TLS, and loops that cannot watch sockets, pass the suite like all others."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fanstream.testing.conformance import Transport, TransportConformance
from fanstream.transports import Listener, OnConnect, Wire, dial, listen
from fanstream.transports.addresses import parse

from .conftest import UNWATCHED, Contexts

ASYNCIO: tuple[str, dict[str, Any]] = ("asyncio", {"use_uvloop": False})
UVLOOP: tuple[str, dict[str, Any]] = ("asyncio", {"use_uvloop": True})
needs_uvloop = pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")


class Secured(Transport):
    def __init__(self, contexts: Contexts) -> None:
        super().__init__("tls://127.0.0.1:0")
        self._contexts = contexts

    async def listen(self, address: str, on_connect: OnConnect) -> Listener:
        return await listen(
            parse(address, "address"), on_connect, allow_plain=False, context=lambda: self._contexts.listen
        )

    async def dial(self, address: str) -> Wire:
        return await dial(parse(address, "address"), "dialler", allow_plain=False, context=self._contexts.connect)


@pytest.fixture
def transport(request: pytest.FixtureRequest, contexts: Contexts) -> Iterator[Transport]:
    kind: str = request.param
    if kind == "tls":
        yield Secured(contexts)
    elif kind == "unix":
        with tempfile.TemporaryDirectory() as folder:
            yield Transport(f"unix://{Path(folder) / 's'}")
    else:
        yield Transport("tcp://127.0.0.1:0")


@pytest.mark.parametrize(
    ("anyio_backend", "transport"),
    [
        pytest.param(ASYNCIO, "tls", id="asyncio-tls"),
        pytest.param(UVLOOP, "tls", id="uvloop-tls", marks=needs_uvloop),
    ],
    indirect=True,
    scope="class",
)
class TestTls(TransportConformance):
    pass


@pytest.mark.parametrize(
    ("anyio_backend", "transport"),
    [
        pytest.param(UNWATCHED, "tcp", id="unwatched-tcp"),
        pytest.param(UNWATCHED, "unix", id="unwatched-unix"),
        pytest.param(UNWATCHED, "tls", id="unwatched-tls"),
    ],
    indirect=True,
    scope="class",
)
class TestUnwatched(TransportConformance):
    pass
