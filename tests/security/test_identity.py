"""Red team: strangers, impostors and look-alikes at a hub's door, and false hubs for a site that dials (T1, T2)."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from fanstream import EngineSettings, FLContext, Shareable, StreamContext, StreamEngine
from fanstream.errors import IdentityError
from fanstream.protocol import bodies
from fanstream.protocol.frames import FrameType
from fanstream.security import Kit, Role
from fanstream.security.identity import PURPOSES
from fanstream.security.provision import Federation
from fanstream.transports.addresses import parse

from .conftest import plan
from .forging import authority, forge, install
from .intruding import break_in, client, goodbye, hello, opening

pytestmark = pytest.mark.asyncio


@pytest.fixture(params=["asyncio", "aiofastnet"], autouse=True)
def tls_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does TLS: asyncio's transports, and aiofastnet where it is installed."""
    if request.param == "asyncio":
        monkeypatch.setitem(sys.modules, "aiofastnet", None)
    elif find_spec("aiofastnet") is None:
        pytest.skip("aiofastnet is not installed")


@asynccontextmanager
async def hub(federation: Federation, **limits: float) -> AsyncIterator[StreamEngine]:
    kit = Kit.load(federation.kits / "server")
    settings = EngineSettings(limits=limits)  # type: ignore[arg-type]
    with anyio.fail_after(20):
        async with StreamEngine("server", listen="tls://127.0.0.1:0", identity=kit, settings=settings) as engine:
            yield engine


async def attempt(engine: StreamEngine, context: ssl.SSLContext | None, says: bytes, then: bytes = b"") -> bytes:
    return await anyio.to_thread.run_sync(break_in, engine.addresses[0], context, says, then)


async def test_who_has_a_kit_is_greeted(federation: Federation) -> None:
    """The attacks below fail for what they are, and not for how they are made."""
    async with hub(federation) as server:
        heard = await attempt(server, client(federation.kits / "site-1"), hello("site-1"), goodbye())
        assert heard[4] == FrameType.HELLO
        assert b"server" in heard


Forge = Callable[[Federation], Path | None]


def forged(**changes: object) -> Forge:
    return lambda federation: install(federation.kits / "site-1", forge(authority(federation), **changes))  # type: ignore[arg-type]


def of_others(federation: Federation) -> Path:
    return Federation.make(plan(), federation.folder.parent / "others").kits / "site-1"


def revoked(federation: Federation) -> Path:
    federation.revoke(["site-1"])
    return federation.kits / "site-1"


def of_an_old_root(federation: Federation) -> Path:
    folder = federation.folder.parent / "old"
    folder.mkdir()
    for name in ("certificate.pem", "key.pem"):
        (folder / name).write_bytes((federation.kits / "site-1" / name).read_bytes())
    federation.add_root()
    federation.renew()
    federation.retire_roots()
    return folder


STRANGERS = [
    pytest.param(lambda federation: None, "PEER_DID_NOT_RETURN_A_CERTIFICATE", id="no certificate"),
    pytest.param(of_others, "unable to get local issuer certificate", id="another federation's root"),
    pytest.param(of_an_old_root, "unable to get local issuer certificate", id="a root that was retired"),
    pytest.param(forged(federation="banks"), "is of banks, expected hospitals", id="another federation"),
    pytest.param(forged(ends=timedelta(seconds=-1)), "certificate has expired", id="expired"),
    pytest.param(forged(begins=timedelta(hours=1)), "certificate is not yet valid", id="not yet valid"),
    pytest.param(revoked, "is revoked", id="revoked"),
    pytest.param(lambda federation: federation.kits / "server", "unsuitable certificate purpose", id="the hub itself"),
    pytest.param(forged(role=Role.HUB), "unsuitable certificate purpose", id="a hub"),
    pytest.param(forged(purposes=list(PURPOSES.values())), "extendedKeyUsage is neither", id="hub and site in one"),
    pytest.param(forged(ca=True), "it is an authority's|invalid CA certificate|purpose", id="an authority"),
    pytest.param(forged(names=[]), "Empty Subject Alternative Name", id="nobody"),
]


@pytest.mark.parametrize(("make", "reason"), STRANGERS)
async def test_a_stranger_is_not_heard(
    make: Forge, reason: str, federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    kit = make(federation)
    async with hub(federation) as server:
        heard = await attempt(server, client(kit), hello("site-1") + b"\x00" * 1000)
        assert heard == b"", "nothing of it was answered"
        assert server.sites() == set()
        while server._links:
            await anyio.lowlevel.checkpoint()
    (record,) = [record for record in caplog.records if "refused a peer" in record.message]
    assert any(part in record.message for part in reason.split("|")), record.message
    assert "127.0.0.1 port" in record.message, "it says where the peer called from"


async def test_older_tls_and_no_tls_are_refused(federation: Federation) -> None:
    async with hub(federation) as server:
        older = client(federation.kits / "site-1", newest=ssl.TLSVersion.TLSv1_2)
        assert await attempt(server, older, hello("site-1")) == b""
        assert b"server" not in await attempt(server, None, hello("site-1"))
        assert server.sites() == set()


def flood(address: str) -> int:
    """Begin a ClientHello of 130 KB, which OpenSSL would take; return how much was taken before the end."""
    where = parse(address, "address")
    record = b"\x16\x03\x01\x40\x00"
    first = b"\x01" + (130_000).to_bytes(3, "big") + b"\x03\x03" + bytes(16384 - 6)
    sent = 0
    with socket.create_connection((where.host, where.port), timeout=10) as sock:
        try:
            for fragment in (first, *[bytes(16384)] * 6):
                sock.sendall(record + fragment)
                sent += len(record + fragment)
            while sock.recv(1024):
                pass
        except ConnectionError:
            pass
    return sent


async def test_a_handshake_that_is_too_long_is_cut_off(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    async with hub(federation, hello_timeout=15.0) as server:
        with anyio.fail_after(5):
            await anyio.to_thread.run_sync(flood, server.addresses[0])
            while server._links:
                await anyio.lowlevel.checkpoint()
    assert "a handshake of more than 65536 bytes" in caplog.text


async def test_a_chain_of_certificates_that_is_too_long_is_cut(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenSSL takes up to 100 KB of them, and that the handshake has ended by then is no excuse."""
    kit = federation.kits / "site-1"
    chain = (kit / "certificate.pem").read_bytes()
    (kit / "certificate.pem").write_bytes(chain * 160)
    async with hub(federation) as server:
        assert await attempt(server, client(kit), hello("site-1")) == b""
        while server._links:
            await anyio.lowlevel.checkpoint()
    assert "a handshake of more than 65536 bytes" in caplog.text


async def test_who_says_nothing_in_a_handshake_has_a_deadline_and_is_counted(federation: Federation) -> None:
    async with hub(federation, hello_timeout=0.5, half_open=2) as server:
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
        kit = Kit.load(federation.kits / "site-1")
        async with StreamEngine("site-1", connect=server.addresses, identity=kit):
            await server.wait_for_sites(["site-1"])


async def test_who_is_verified_and_says_nothing_has_the_same_deadline(federation: Federation) -> None:
    async with hub(federation, hello_timeout=0.5) as server:
        assert await attempt(server, client(federation.kits / "site-1"), b"") == b""


# --- names (T2) ---


@pytest.mark.parametrize(
    "name",
    [
        "site-2",
        "server",
        "Site-1",
        "site-1.",
        "site-1\x00",
        "s\u0456te-1",
        "site-1" + "x" * 60,
        "",
    ],
    ids=["another site", "the hub", "case", "dot", "NUL", "Cyrillic", "too long", "empty"],
)
async def test_a_greeting_in_another_name_ends_the_link(
    name: str, federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    async with hub(federation) as server:
        heard = await attempt(
            server, client(federation.kits / "site-1"), hello(name) + opening(name, "server", alias=1)
        )
        assert heard[4] == FrameType.GOAWAY
        assert bodies.decode(bodies.Goodbye, heard[24:]).code == "protocol"
        assert server.sites() == set()
    assert "the peer broke the protocol: HELLO from" in caplog.text


async def test_a_name_is_its_owners_however_early_another_claims_it(federation: Federation) -> None:
    kits = {name: Kit.load(federation.kits / name) for name in ("site-1", "site-2")}
    async with hub(federation) as server:
        for _ in range(3):
            await attempt(server, client(federation.kits / "site-2"), hello("site-1"))
        async with StreamEngine("site-1", connect=server.addresses, identity=kits["site-1"]) as one:
            await server.wait_for_sites(["site-1"])
            (link,) = server._links
            for _ in range(3):
                await attempt(server, client(federation.kits / "site-2"), hello("site-1"))
            assert server._links._links == {link}, "its link is not even probed"
            assert one.sites() >= {"server"}


async def test_a_member_opens_no_stream_in_anothers_name(federation: Federation) -> None:
    async with hub(federation) as server:
        opened = []

        @server.consumer("demo", "hello")
        async def take(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Shareable:
            opened.append(stream_ctx)
            return Shareable()

        own = client(federation.kits / "site-1")
        heard = await attempt(server, own, hello("site-1"), opening("site-2", "server", alias=1))
        assert heard[4] == FrameType.HELLO, "it was greeted"
        assert b"site-1 opens a stream in the name of site-2" in heard
        assert server.sites() == set()
        assert opened == []


# --- false hubs ---


class FalseHub:
    """A server that a site is led to; remembers what it heard."""

    def __init__(self, says: bytes = b"") -> None:
        self.heard = b""
        self.met = asyncio.Event()
        self._says = says

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(self._says)
            while data := await reader.read(65536):
                self.heard += data
        except (ssl.SSLError, ConnectionError):
            pass
        finally:
            writer.close()
            self.met.set()


def server_context(kit: Path) -> ssl.SSLContext:
    """That of an impostor: any client is welcome."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(kit / "certificate.pem", kit / "key.pem")
    return context


async def lead_to(false: FalseHub, context: ssl.SSLContext, federation: Federation) -> None:
    """Have site-1 dial a false hub."""
    server = await asyncio.start_server(false.meet, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    try:
        with anyio.fail_after(10):
            kit = Kit.load(federation.kits / "site-1")
            async with StreamEngine("site-1", connect=f"tls://127.0.0.1:{port}", identity=kit) as site:
                await site.wait_for_sites(["server"])
    finally:
        server.close()


def impostor(**changes: object) -> Forge:
    def make(federation: Federation) -> Path:
        changed = {"name": "server", "role": Role.HUB} | changes
        return install(federation.kits / "server", forge(authority(federation), **changed))  # type: ignore[arg-type]

    return make


def hub_of_others(federation: Federation) -> Path:
    return Federation.make(plan(), federation.folder.parent / "others").kits / "server"


def hub_that_was_revoked(federation: Federation) -> Path:
    federation.revoke(["server"])
    return federation.kits / "server"


@pytest.mark.parametrize(
    ("make", "code"),
    [
        pytest.param(hub_of_others, "untrusted", id="another federation's root"),
        pytest.param(impostor(federation="banks"), "wrong-federation", id="another federation"),
        pytest.param(lambda federation: federation.kits / "site-2", "wrong-role", id="a site"),
        pytest.param(impostor(role=Role.SITE), "wrong-role", id="a site in the hub's name"),
        pytest.param(impostor(name="spare"), "wrong-name", id="another hub"),
        pytest.param(impostor(name="Server"), "wrong-name", id="case"),
        pytest.param(impostor(name="server."), "wrong-name", id="dot"),
        pytest.param(impostor(ends=timedelta(seconds=-1)), "expired", id="expired"),
        pytest.param(impostor(begins=timedelta(hours=1)), "not-yet-valid", id="not yet valid"),
        pytest.param(hub_that_was_revoked, "revoked", id="revoked"),
        pytest.param(impostor(purposes=list(PURPOSES.values())), "malformed", id="hub and site in one"),
    ],
)
async def test_a_false_hub_hears_nothing_and_the_site_says_why(
    make: Callable[[Federation], Path], code: str, federation: Federation
) -> None:
    false = FalseHub(hello("server", hub=True))
    with pytest.raises(IdentityError) as caught:
        await lead_to(false, server_context(make(federation)), federation)
    assert caught.value.code == code
    assert false.heard == b""


async def test_a_hub_that_greets_in_another_name_gets_no_stream_in(federation: Federation) -> None:
    kit = Kit.load(federation.kits / "server")
    false = FalseHub(hello("site-2", hub=True) + opening("site-2", "site-1", alias=2))
    server = await asyncio.start_server(false.meet, "127.0.0.1", 0, ssl=kit.context)
    port = server.sockets[0].getsockname()[1]
    opened = []
    try:
        with anyio.fail_after(10):
            own = Kit.load(federation.kits / "site-1")
            async with StreamEngine("site-1", connect=f"tls://127.0.0.1:{port}", identity=own) as site:

                @site.consumer("demo", "hello")
                async def take(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Shareable:
                    opened.append(stream_ctx)
                    return Shareable()

                await false.met.wait()
                assert site.sites() == set()
                assert not site._incoming
    finally:
        server.close()
    assert not opened
    assert false.heard[4] == FrameType.HELLO, "the hub itself was the right one"


async def test_the_name_in_the_address_goes_before_the_kits(federation: Federation) -> None:
    async with hub(federation) as server:
        address = f"{server.addresses[0]}?name=spare"
        kit = Kit.load(federation.kits / "site-1")
        async with StreamEngine("site-1", connect=address, identity=kit) as site:
            with pytest.raises(IdentityError, match="server answers, expected spare") as caught:
                await site.wait_for_sites(["server"])
            assert caught.value.code == "wrong-name"


async def test_no_name_of_a_site_is_sent_in_the_clear(federation: Federation) -> None:
    """Neither as the server's name, nor in a certificate: TLS 1.3 encrypts those."""
    seen = bytearray()

    async def listen_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to: int) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", to)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                seen.extend(data)
                sink.write(data)
            sink.close()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(copy(reader, other_writer))
            tasks.create_task(copy(other_reader, writer))

    async with hub(federation) as server:
        port = parse(server.addresses[0], "address").port
        tap = await asyncio.start_server(partial(listen_in, to=port), "127.0.0.1", 0)
        address = f"tls://127.0.0.1:{tap.sockets[0].getsockname()[1]}"
        kit = Kit.load(federation.kits / "site-1")
        async with StreamEngine("site-1", connect=address, identity=kit) as site:
            await site.wait_for_sites(["server"])
        tap.close()
    assert len(seen) > 1000
    assert not [name for name in (b"site-1", b"server", b"hospitals") if name in bytes(seen)]
