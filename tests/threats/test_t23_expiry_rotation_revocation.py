"""T23: what a certificate allowed ends with it, on links that are open too; and replacing one interrupts nothing."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from fanstream import FLContext, Shareable, StreamContext, StreamEngine
from fanstream.codec import Codec
from fanstream.errors import IdentityError
from fanstream.observe import LinkOpened, PeerRefused, StreamAdmitted
from fanstream.options import Limits
from fanstream.protocol.frames import PAYLOAD, FrameType, pack
from fanstream.security import Kit
from fanstream.security.provision import Federation
from fanstream.transports import fast_tls
from fanstream.transports.addresses import parse
from tests.federation import until
from tests.security.conftest import Clock, plan
from tests.security.intruding import client, hello, opening

pytestmark = pytest.mark.asyncio

PROMISED = 5.0  # seconds


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.make(plan(), tmp_path / "hospitals")


class Members:
    """A hub and two sites that are connected to it."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.clock = Clock()
        self.kits = {name: Kit.load(federation.kits / name, clock=self.clock) for name in federation.plan.roles()}
        self.engines: dict[str, StreamEngine] = {}

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        with anyio.fail_after(30):
            async with (
                self.engine("server", listen="tls://127.0.0.1:0") as server,
                self.engine("site-1", connect=server.addresses) as one,
                self.engine("site-2", connect=server.addresses) as two,
            ):
                for engine, others in ((server, ["site-1", "site-2"]), (one, ["server"]), (two, ["server"])):
                    await engine.wait_for_sites(others)
                yield

    @asynccontextmanager
    async def engine(self, name: str, **where: object) -> AsyncIterator[StreamEngine]:
        async with StreamEngine(name, identity=self.kits[name], **where) as engine:  # type: ignore[arg-type]

            @engine.consumer("demo", "number")
            async def take(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Shareable:
                return Shareable({"number": shareable["number"]})

            self.engines[name] = engine
            yield engine

    async def until(self, condition: Callable[[], bool]) -> float:
        """Wait; return how many seconds it took."""
        began = time.monotonic()
        while not condition():  # noqa: ASYNC110 - an engine tells nobody of its links
            await anyio.sleep(0.01)
        return time.monotonic() - began

    async def ask(self, opener: str, target: str, number: int = 0) -> str:
        async with self.engines[opener].open_stream("demo", "number", [target]) as stream:
            replies = await stream.send(Shareable({"number": number}), timeout=10)
        return str(replies[target].get_return_code())


async def test_a_site_that_is_revoked_is_out_within_the_promise_and_the_others_notice_nothing(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    members = Members(federation)
    async with members.connected():
        server, out = members.engines["server"], members.engines["site-1"]
        async with (
            server.open_stream("demo", "number", ["site-1"]) as to_revoked,
            server.open_stream("demo", "number", ["site-2"]) as to_other,
        ):
            for stream in (to_revoked, to_other):
                await stream.send(Shareable({"number": 1}), timeout=10)
            federation.revoke(["site-1"])
            took = await members.until(lambda: "site-1" not in server.sites())
            assert took < PROMISED
            replies = await to_revoked.send(Shareable({"number": 2}), timeout=10)
            assert replies["site-1"].get_return_code() == "COMMUNICATION_ERROR"
            replies = await to_other.send(Shareable({"number": 2}), timeout=10)
            assert replies["site-2"]["number"] == 2
        with pytest.raises(IdentityError):
            await out.wait_for_sites(["server"])
        await anyio.sleep(0.3)  # it dials again and again meanwhile
        assert server.sites() == {"site-2"}
    assert "link to site-1 ends: site-1's certificate" in caplog.text
    assert "is revoked" in caplog.text


async def test_who_was_revoked_comes_back_with_a_new_certificate_without_a_restart(federation: Federation) -> None:
    members = Members(federation)
    async with members.connected():
        server = members.engines["server"]
        federation.revoke(["site-1"])
        await members.until(lambda: "site-1" not in server.sites())
        federation.renew(["site-1"])
        await members.until(lambda: "site-1" in server.sites())
        assert await members.ask("server", "site-1") == "OK"


async def test_a_hub_that_is_revoked_is_left_by_its_sites(federation: Federation) -> None:
    members = Members(federation)
    alone = federation.kits.parent / "alone"
    shutil.copytree(federation.kits / "server", alone)  # the false hub's operator does not take up the list
    members.kits["server"] = Kit.load(alone)
    async with members.connected():
        federation.revoke(["server"])
        sites = [members.engines["site-1"], members.engines["site-2"]]
        assert await members.until(lambda: not any(site.sites() for site in sites)) < PROMISED
        with pytest.raises(IdentityError) as caught:
            await sites[0].wait_for_sites(["server"])
        assert caught.value.code == "revoked"


async def test_a_hub_whose_trust_ends_between_handshake_and_greeting_is_not_used(federation: Federation) -> None:
    """Nor is the stream taken that it opens in one breath with its greeting."""
    Federation.make(plan(days=730), federation.folder).renew(["site-1"])
    clock = Clock()
    kits = {name: Kit.load(federation.kits / name, clock=clock) for name in ("server", "site-1")}

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await until(lambda: any(link.proven for link in site._links))
        clock.ahead = kits["server"].identity.not_after - time.time() + 1
        head = PAYLOAD.pack(1000, 0, 0, 0)
        carried = Codec(Limits()).encode(Shareable({"number": 1})).envelope
        first = pack(FrameType.OBJECT, 2, 0, body=head + carried)
        writer.write(hello("server", hub=True) + opening("server", "site-1", alias=2) + first)
        await reader.read()
        writer.close()

    false_hub = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    false_hub.load_cert_chain(federation.kits / "server" / "certificate.pem", federation.kits / "server" / "key.pem")
    with anyio.fail_after(30):
        async with await asyncio.start_server(greet, "127.0.0.1", 0, ssl=false_hub) as listener:
            where = f"tls://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
            consumed: list[Shareable] = []
            async with StreamEngine("site-1", connect=where, identity=kits["site-1"]) as site:
                events = site.events()

                @site.consumer("demo", "hello")
                async def take(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
                    consumed.append(shareable)

                with pytest.raises(IdentityError) as caught:
                    await site.wait_for_sites(["server"])
                assert (caught.value.code, site.sites()) == ("expired", set())
            told = [event async for event in events]
            assert any(isinstance(event, PeerRefused) for event in told)
            assert not any(isinstance(event, (LinkOpened, StreamAdmitted)) for event in told)
            assert consumed == []


async def test_a_site_whose_trust_ends_between_handshake_and_greeting_is_not_let_in(federation: Federation) -> None:
    Federation.make(plan(days=730), federation.folder).renew(["server"])
    clock = Clock()
    kits = {name: Kit.load(federation.kits / name, clock=clock) for name in ("server", "site-1")}
    with anyio.fail_after(30):
        async with StreamEngine("server", listen="tls://127.0.0.1:0", identity=kits["server"]) as server:
            events = server.events()
            where = parse(server.addresses[0], "address")
            reader, writer = await asyncio.open_connection(
                where.host, where.port, ssl=client(federation.kits / "site-1")
            )
            await until(lambda: any(link.proven for link in server._links))
            clock.ahead = kits["site-1"].identity.not_after - time.time() + 1
            writer.write(hello("site-1"))
            heard = await reader.read()
            assert heard[4:5] != bytes([FrameType.HELLO])
            writer.close()
            await until(lambda: not server._links)
            assert server._links._half_open == 0
        told = [event async for event in events]
        assert [event.code for event in told if isinstance(event, PeerRefused)] == ["expired"]
        assert not any(isinstance(event, LinkOpened) for event in told)


async def test_links_end_with_the_certificate_of_their_peer(federation: Federation) -> None:
    longer = Federation.make(plan(days=730), federation.folder)
    longer.renew(["server", "site-2"])
    members = Members(longer)
    async with members.connected():
        server = members.engines["server"]
        left = members.kits["site-1"].identity.not_after - time.time()
        members.clock.ahead = left - 2.5
        await anyio.sleep(1.5)  # a look at the links, which finds nothing
        assert server.sites() == {"site-1", "site-2"}
        assert await members.until(lambda: "site-1" not in server.sites()) < PROMISED
        assert members.clock() >= members.kits["site-1"].identity.not_after
        assert await members.ask("server", "site-2") == "OK"


async def test_a_site_whose_own_certificate_has_expired_says_so(federation: Federation) -> None:
    members = Members(federation)
    async with members.connected():
        site = members.engines["site-1"]
        members.clock.ahead = members.kits["site-1"].identity.not_after - time.time() + 1
        await members.until(lambda: not site.sites())

        said: set[str] = set()
        while not any("site-1's certificate expired at" in text for text in said):  # the hub may have said so first
            with pytest.raises(IdentityError) as caught:
                await site.wait_for_sites(["server"])
            said.add(str(caught.value))
            await anyio.sleep(0.02)


async def test_links_end_with_the_root_of_their_peer(federation: Federation) -> None:
    members = Members(federation)
    old = {path.name: path.read_bytes() for path in (federation.kits / "site-1").iterdir()}
    behind = federation.kits.parent / "behind"
    shutil.copytree(federation.kits / "site-1", behind)
    members.kits["site-1"] = Kit.load(behind)  # it does not hear of the new root
    async with members.connected():
        server = members.engines["server"]
        federation.add_root()
        federation.renew()
        await members.until(lambda: not any(members.kits[name].changed() for name in ("server", "site-2")))
        assert server.sites() == {"site-1", "site-2"}, "old and new roots are trusted side by side"
        assert await members.ask("server", "site-1") == "OK"
        federation.retire_roots()
        assert await members.until(lambda: "site-1" not in server.sites()) < PROMISED
        await members.until(lambda: "site-2" in server.sites())  # it has its new certificate, and is back at once
        assert await members.ask("server", "site-2") == "OK"
        assert "site-1" not in server.sites()
    assert {path.name: path.read_bytes() for path in behind.iterdir()} == old


async def test_what_is_replaced_is_used_for_new_links_within_a_second(federation: Federation) -> None:
    members = Members(federation)
    async with members.connected():
        before = members.kits["server"].identity
        federation.add_root()
        federation.renew()
        assert await members.until(lambda: not any(kit.changed() for kit in members.kits.values())) < PROMISED
        after = members.kits["server"].identity
        assert before.root != after.root
        (link,) = members.engines["site-1"]._links
        assert link.proven == before, "a link that is there stays"


async def test_twenty_rotations_under_load_lose_nothing(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams run on through all of them, and each new certificate is used for links of its own."""
    # aiofastnet holds the interpreter's lock: beside a loop that has no rest, a thread takes seconds to read a kit.
    monkeypatch.setattr(fast_tls, "library", lambda: None)
    members = Members(federation)
    rotations, answered, stop = 20, {"site-1": 0, "hub": 0}, anyio.Event()
    seen: set[str] = set()

    async def load(opener: str, target: str, kind: str) -> None:
        async with members.engines[opener].open_stream("demo", "number", [target]) as stream:
            number = 0
            while not stop.is_set():
                replies = await stream.send(Shareable({"number": number, "bulk": b"x" * 100_000}), timeout=10)
                assert replies[target]["number"] == number
                number += 1
        assert stream.result is not None
        assert stream.result.complete, stream.result
        answered[kind] = number

    async with members.connected():
        server = members.engines["server"]
        visitor_kit = members.kits["site-2"]
        await members.engines["site-2"]._links.aclose()  # its place is taken by a new engine in each round
        async with anyio.create_task_group() as tg:
            tg.start_soon(load, "server", "site-1", "site-1")
            tg.start_soon(load, "site-1", "server", "hub")
            for rotation in range(rotations):
                if rotation % 5 == 0:
                    federation.add_root()
                federation.renew()
                for kit in members.kits.values():
                    await anyio.to_thread.run_sync(kit.reload)
                async with StreamEngine("site-2", connect=server.addresses, identity=visitor_kit) as visitor:
                    await visitor.wait_for_sites(["server"])
                    (link,) = visitor._links
                    assert link.proven == members.kits["server"].identity
                    seen.add(link.proven.fingerprint)
                    async with visitor.open_stream("demo", "number", ["server", "site-1"]) as stream:
                        replies = await stream.send(Shareable({"number": rotation}), timeout=10)
                        assert {reply["number"] for reply in replies.values()} == {rotation}
            stop.set()
    assert len(seen) == rotations
    assert len(members.kits["server"].trust.roots) == 1 + rotations // 5
    assert min(answered.values()) >= rotations
