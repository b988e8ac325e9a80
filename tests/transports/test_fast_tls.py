"""TLS by aiofastnet: its sockets are closed wherever a handshake ends, and watched no more."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from fanstream.errors import BrokenError, ConnectError
from fanstream.testing.conformance import ScriptedPump, pattern
from fanstream.transports import fast_tls
from fanstream.transports.buffered import BufferedWire
from fanstream.wakeup import AsyncioFace, current_face

from .conftest import Contexts

pytestmark = [
    pytest.mark.skipif(find_spec("aiofastnet") is None, reason="aiofastnet is not installed"),
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})]),
]


def test_it_is_used_where_it_is_installed_and_can_be(anyio_backend: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fast_tls.library() is sys.modules["aiofastnet"]
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "aiofastnet", None)
        assert fast_tls.library() is None, "it is not there"
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", None)
        patched.setattr(tempfile, "_candidate_tempdir_list", list)
        assert fast_tls.library() is None, "there is nowhere to write to"
    assert fast_tls.library() is not None


class Ends:
    """A wire in its handshake, and the socket at its other end."""

    def __init__(self, wire: BufferedWire, sock: socket.socket, peer: socket.socket) -> None:
        self.wire = wire
        self.sock = sock
        self.peer = peer
        self.pump = ScriptedPump()
        self.reason: Exception | None = None
        self.complaints: list[dict[str, Any]] = []

    async def run(self) -> None:
        self.reason = await self.wire.run(self.pump)


@asynccontextmanager
async def accepting(contexts: Contexts) -> AsyncIterator[Ends]:
    """A wire that has accepted a socket; whatever becomes of it, it has to be closed soon, and nobody may complain."""
    face = current_face()
    assert isinstance(face, AsyncioFace)
    sock, peer = socket.socketpair()
    sock.setblocking(False)
    peer.setblocking(False)
    ends = Ends(BufferedWire("a peer", face, sock, context=contexts.listen), sock, peer)
    face.loop.set_exception_handler(lambda _loop, complaint: ends.complaints.append(complaint))
    with peer, anyio.fail_after(10):
        yield ends
        while sock.fileno() != -1:
            await anyio.lowlevel.checkpoint()
        peer.close()
        await _watch_successors(face.loop)
    assert not ends.complaints
    assert ends.pump.heard == b""


async def _watch_successors(loop: asyncio.AbstractEventLoop) -> None:
    """Watch new sockets with the numbers of those that are gone: a loop that watches those still is deaf."""
    near, far = socket.socketpair()
    with near, far:
        for one, other in ((near, far), (far, near)):
            heard = anyio.Event()
            loop.add_reader(one.fileno(), heard.set)
            other.send(b"hello")
            await heard.wait()
            loop.remove_reader(one.fileno())


async def nothing(peer: socket.socket, contexts: Contexts) -> None:
    """A peer that says nothing."""


async def garbage(peer: socket.socket, contexts: Contexts) -> None:
    with contextlib.suppress(BrokenPipeError):  # closed already
        peer.send(b"GET / HTTP/1.1\r\n\r\n")


async def half(peer: socket.socket, contexts: Contexts) -> None:
    """The beginning of a ClientHello."""
    with contextlib.suppress(BrokenPipeError):
        peer.send(b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03")


async def farewell(peer: socket.socket, contexts: Contexts) -> None:
    peer.shutdown(socket.SHUT_WR)


async def honest(peer: socket.socket, contexts: Contexts, says: bytes = b"") -> None:
    """Shakes hands; what it says leaves in one piece with their end, and its farewell too."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    side = contexts.connect.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    shaken = False
    while not shaken:
        try:
            with contextlib.suppress(BlockingIOError):
                incoming.write(peer.recv(65536) or b"gone")
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
                shaken = True
                if says:
                    side.write(says)
                    side.unwrap()
            peer.send(outgoing.read())
        except (ConnectionError, ssl.SSLError):  # closed already
            return
        await anyio.lowlevel.checkpoint()


PEERS = [nothing, garbage, half, farewell, honest]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("way", ["cancelled", "closed"])
async def test_a_socket_is_closed_wherever_its_handshake_ends(
    way: str, peer: Callable[[socket.socket, Contexts], Any], contexts: Contexts
) -> None:
    for turns in range(24):
        async with accepting(contexts) as ends, anyio.create_task_group() as tg:
            tg.start_soon(ends.run)
            tg.start_soon(peer, ends.peer, contexts)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            if way == "cancelled":
                tg.cancel_scope.cancel()
            else:
                ends.wire.close()


@pytest.mark.parametrize(
    ("peer", "error"), [(garbage, ConnectError), (farewell, BrokenError)], ids=["garbage", "farewell"]
)
async def test_why_a_handshake_failed_is_told(
    peer: Callable[[socket.socket, Contexts], Any], error: type[Exception], contexts: Contexts
) -> None:
    async with accepting(contexts) as ends, anyio.create_task_group() as tg:
        tg.start_soon(peer, ends.peer, contexts)
        await ends.run()
    assert isinstance(ends.reason, error)


async def test_what_comes_with_the_end_of_a_handshake_is_heard_though_nothing_follows(contexts: Contexts) -> None:
    face = current_face()
    assert isinstance(face, AsyncioFace)
    sock, peer = socket.socketpair()
    sock.setblocking(False)
    peer.setblocking(False)
    ends = Ends(BufferedWire("a peer", face, sock, context=contexts.listen), sock, peer)
    with peer, anyio.fail_after(10):
        async with anyio.create_task_group() as tg:
            tg.start_soon(ends.run)
            await honest(peer, contexts, b"last words")
        while sock.fileno() != -1:
            await anyio.lowlevel.checkpoint()
    assert ends.pump.heard == b"last words"
    assert isinstance(ends.reason, BrokenError)


async def test_a_reset_that_comes_together_with_data_ends_it(contexts: Contexts) -> None:
    face = current_face()
    assert isinstance(face, AsyncioFace)
    with socket.create_server(("127.0.0.1", 0)) as server, anyio.fail_after(10):
        peer = socket.create_connection(server.getsockname())
        sock, _address = server.accept()
        sock.setblocking(False)
        peer.setblocking(False)
        ends = Ends(BufferedWire("a peer", face, sock, context=contexts.listen), sock, peer)
        async with anyio.create_task_group() as tg:
            tg.start_soon(ends.run)
            await honest(peer, contexts)
            await anyio.wait_all_tasks_blocked()
            peer.send(b"\x17\x03\x03\x40\x00 the beginning of a record")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
    assert isinstance(ends.reason, BrokenError)


async def test_nothing_waits_for_a_handshake_that_has_ended(
    contexts: Contexts,
) -> None:
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):
        pytest.skip("only asyncio's own loop can be asked")
    for peer in (nothing, garbage, farewell):
        async with accepting(contexts) as ends, anyio.create_task_group() as tg:
            tg.start_soon(ends.run)
            tg.start_soon(peer, ends.peer, contexts)
            for _ in range(12):
                await anyio.lowlevel.checkpoint()
            tg.cancel_scope.cancel()
    timers = [timer for timer in vars(loop)["_scheduled"] if "handshake" in repr(timer) and not timer.cancelled()]
    assert not timers


@pytest.mark.parametrize("accepts", ["aiofastnet", "asyncio"])
@pytest.mark.parametrize("dials", ["aiofastnet", "asyncio"])
async def test_both_ways_understand_each_other(
    accepts: str, dials: str, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = current_face()
    assert isinstance(face, AsyncioFace)
    ways = iter([accepts, dials])
    found = fast_tls.library()
    monkeypatch.setattr(fast_tls, "library", lambda: found if next(ways) == "aiofastnet" else None)
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    sides = [
        (BufferedWire("near", face, near, context=contexts.listen), ScriptedPump(pattern(1_000_000))),
        (BufferedWire("far", face, far, context=contexts.connect, server_name="127.0.0.1"), ScriptedPump(b"hello")),
    ]
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tg:
            for wire, pump in sides:
                tg.start_soon(wire.run, pump)
            await sides[0][1].until(lambda: sides[0][1].heard == b"hello")
            await sides[1][1].until(lambda: sides[1][1].heard == pattern(1_000_000))
            tg.cancel_scope.cancel()
        while near.fileno() != -1 or far.fileno() != -1:
            await anyio.lowlevel.checkpoint()
