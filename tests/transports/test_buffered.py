"""Links through asyncio's transports: TLS, and loops that cannot watch sockets, pass the suite like all others."""

from __future__ import annotations

import socket
import ssl
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme

from fanstream import EngineSettings, FLContext, Shareable, StreamContext, StreamEngine
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
        return await listen(parse(address, "address"), on_connect, allow_plain=False, context=self._contexts.listen)

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


def secured(contexts: Contexts, **settings: Any) -> EngineSettings:
    return EngineSettings(tls_listen=contexts.listen, tls_connect=contexts.connect, **settings)


@pytest.mark.asyncio
async def test_streams_over_tls(contexts: Contexts) -> None:
    settings = secured(contexts)
    async with (
        StreamEngine("server", listen="tls://127.0.0.1:0", settings=settings) as server,
        StreamEngine("site-1", connect=server.addresses, settings=settings) as site,
    ):
        assert server.addresses[0].startswith("tls://127.0.0.1:")

        @site.consumer("models", "weights")
        async def take(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Shareable:
            return Shareable({"size": len(shareable["data"])})

        with anyio.fail_after(10):
            await server.wait_for_sites(["site-1"])
            async with server.open_stream("models", "weights", ["site-1"]) as stream:
                for size in (1, 100_000, 20_000_000):
                    replies = await stream.send(Shareable({"data": b"x" * size}))
                    assert replies["site-1"]["size"] == size


@pytest.mark.asyncio
async def test_a_certificate_of_another_authority_is_refused_at_both_sides(
    contexts: Contexts, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority = trustme.CA()
    authority.configure_trust(stranger)
    authority.issue_cert("127.0.0.1").configure_cert(stranger)
    stranger.minimum_version = ssl.TLSVersion.TLSv1_3
    async with StreamEngine("server", listen="tls://127.0.0.1:0", settings=secured(contexts)) as server:
        settings = EngineSettings(tls_connect=stranger)
        for _ in range(2):
            async with StreamEngine("site-1", connect=server.addresses, settings=settings):
                with anyio.move_on_after(0.5) as scope:
                    await server.wait_for_sites(["site-1"])
                assert scope.cancelled_caught
            stranger.check_hostname = False  # from here on the site takes any server
            stranger.verify_mode = ssl.CERT_NONE
    assert "certificate verify failed" in caplog.text


@pytest.mark.asyncio
async def test_who_says_nothing_in_a_handshake_has_a_deadline_and_is_counted(contexts: Contexts) -> None:
    settings = secured(contexts, limits={"hello_timeout": 0.3, "half_open": 2})
    async with StreamEngine("server", listen="tls://127.0.0.1:0", settings=settings) as server:
        where = parse(server.addresses[0], "address")
        with (
            socket.create_connection((where.host, where.port)) as first,
            socket.create_connection((where.host, where.port)) as second,
            socket.create_connection((where.host, where.port)) as third,
        ):
            for sock in (first, second, third):
                sock.settimeout(5)
            assert await anyio.to_thread.run_sync(third.recv, 1) == b"", "beyond half_open: turned away at once"
            assert await anyio.to_thread.run_sync(first.recv, 1) == b""
            assert await anyio.to_thread.run_sync(second.recv, 1) == b""
        async with StreamEngine("site-1", connect=server.addresses, settings=settings):
            with anyio.fail_after(5):
                await server.wait_for_sites(["site-1"])


@pytest.mark.parametrize("argument", ["listen", "connect"])
def test_tls_needs_a_context(argument: str) -> None:
    with pytest.raises(ValueError, match=rf"{argument} has tls://127.0.0.1:1, which needs settings.tls_{argument}"):
        StreamEngine("server", **{argument: "tls://127.0.0.1:1"})  # type: ignore[arg-type]


def test_older_versions_of_tls_are_refused() -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ValueError, match=r"tls_listen has a minimum_version of .*TLSv1_2.*, expected TLSv1_3"):
        EngineSettings(tls_listen=old)
    with pytest.raises(ValueError, match=r"tls_connect is of type str, expected an ssl.SSLContext"):
        EngineSettings(tls_connect="cert.pem")
