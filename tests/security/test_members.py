"""Engines with kits: they find each other over TLS, directly and through the hub, with every kind of key and loop."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import anyio
import pytest

from fanstream import FLContext, Shareable, StreamContext, StreamEngine
from fanstream.protocol.frames import FrameType
from fanstream.security import Kit, Role
from fanstream.security.authority import KeyKind
from fanstream.security.provision import Federation
from tests.transports.conftest import UNWATCHED

from .conftest import plan
from .intruding import break_in, client, goodbye, hello

ASYNCIO: tuple[str, dict[str, Any]] = ("asyncio", {"use_uvloop": False})
UVLOOP: tuple[str, dict[str, Any]] = ("asyncio", {"use_uvloop": True})
LOOPS = [
    pytest.param(ASYNCIO, id="asyncio"),
    pytest.param(
        UVLOOP, id="uvloop", marks=pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")
    ),
    pytest.param(UNWATCHED, id="unwatched"),
]


@pytest.fixture(scope="module", params=list(KeyKind))
def keyed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A federation whose keys are all of one kind."""
    return Federation.make(plan(key=request.param), tmp_path_factory.mktemp("keyed") / "hospitals")


def greet(engine: StreamEngine) -> None:
    @engine.consumer("demo", "hello")
    async def hello(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Shareable:
        return Shareable({"size": len(shareable["data"]), "by": engine.name})


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", LOOPS, indirect=True)
async def test_members_stream_to_each_other(keyed: Federation) -> None:
    kits = {name: Kit.load(keyed.kits / name) for name in keyed.plan.roles()}
    with anyio.fail_after(20):
        async with (
            StreamEngine("server", listen="tls://127.0.0.1:0", identity=kits["server"]) as server,
            StreamEngine("site-1", connect=server.addresses, identity=kits["site-1"]) as one,
            StreamEngine("site-2", connect=server.addresses, identity=kits["site-2"]) as two,
        ):
            greet(server)
            greet(two)
            await one.wait_for_sites(["server", "site-2"])
            async with one.open_stream("demo", "hello", ["server", "site-2"]) as stream:
                for size in (1, 100_000, 5_000_000):
                    replies = await stream.send(Shareable({"data": b"x" * size}))
                    assert {name: reply["size"] for name, reply in replies.items()} == {"server": size, "site-2": size}
            (link,) = one._links
            assert link.proven is not None
            assert (link.proven.name, link.proven.role) == ("server", Role.HUB)
            assert link.proven == kits["server"].identity
            assert {link.proven.name for link in server._links if link.proven} == {"site-1", "site-2"}


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", LOOPS, indirect=True)
async def test_a_name_is_checked_however_early_it_comes(federation: Federation) -> None:
    """The greeting is there together with the end of the handshake; some loops hand it on before they say so."""
    kit = Kit.load(federation.kits / "server")
    with anyio.fail_after(20):
        async with StreamEngine("server", listen="tls://127.0.0.1:0", identity=kit) as server:
            own = client(federation.kits / "site-1")
            says = [hello("site-1"), hello("site-2"), hello("site-1") + hello("site-1")]
            heard = [
                await anyio.to_thread.run_sync(break_in, server.addresses[0], own, said, goodbye()) for said in says
            ]
            assert [answer[4] for answer in heard] == [FrameType.HELLO, FrameType.GOAWAY, FrameType.GOAWAY]
            assert b"HELLO from site-2, and the certificate is that of site-1" in heard[1]
