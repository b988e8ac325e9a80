"""Raw blocking sockets: what the kernel gives, and what all the others are measured against.

Settings: large objects by one thread for each site, ``sendall`` from memory that has been touched, ``recv_into`` a
block of 1 MiB that is used again and again and so stays in the cache; a byte back for each object. No framing, and no
window but the socket's own. Small objects by one thread that keeps the window, with TCP_NODELAY. Over TLS the same with
``ssl``'s blocking sockets, which receive one record (16 KiB) at a time.
"""

from __future__ import annotations

import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

from ..harness.certificates import context
from . import Opener, Work, payload

LOOP: Final = "asyncio"

_MIB: Final = 1024 * 1024
_BULK: Final = 64 * 1024
# Objects that may wait for their reply to be read: a Unix socket holds a few hundred replies, and then its site waits.
_AHEAD: Final = 128
_ORDER: Final = struct.Struct("<QQ")  # size and count of what follows
_INDEX: Final = struct.Struct("<I")


class RawOpener(Opener):
    """Keeps one connection for each site."""

    def __init__(self, server: socket.socket, address: str, sites: int) -> None:
        self.address = address
        self._tls = context(ssl.Purpose.CLIENT_AUTH) if address.startswith("tls") else None
        self._server = server
        self._sites: dict[int, socket.socket] = {}
        self._expected = sites

    async def wait_for_sites(self) -> None:
        while len(self._sites) < self._expected:
            connection, _ = self._server.accept()
            if connection.family == socket.AF_INET:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            self._sites[_INDEX.unpack(_exactly(connection, _INDEX.size))[0]] = connection

    async def run(self, work: Work) -> None:
        connections = [self._sites[index] for index in range(work.sites)]
        for connection in connections:
            connection.sendall(_ORDER.pack(work.size, work.count))
        if work.size < _BULK:
            self._in_turn(connections, work)
            return
        with ThreadPoolExecutor(work.sites) as pool:
            list(pool.map(lambda connection: self._bulk(connection, work), connections))

    @staticmethod
    def _bulk(connection: socket.socket, work: Work) -> None:
        data = payload(work.size)
        for number in range(work.count):
            if number >= _AHEAD:
                _exactly(connection, 1)
            connection.sendall(data)
        _exactly(connection, min(work.count, _AHEAD))

    @staticmethod
    def _in_turn(connections: list[socket.socket], work: Work) -> None:
        data = payload(work.size)
        for number in range(work.count + work.window):
            if number >= work.window:
                for connection in connections:
                    _exactly(connection, 1)
            if number < work.count:
                for connection in connections:
                    connection.sendall(data)

    def close(self) -> None:
        """Close every connection."""
        for connection in self._sites.values():
            connection.close()


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        more = connection.recv(count - len(found))
        if not more:
            raise ConnectionError(f"the connection ended after {len(found)} bytes of {count}")
        found += more
    return found


@contextmanager
def _listening(transport: str) -> Iterator[tuple[socket.socket, str]]:
    if transport != "unix":
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield server, f"{transport}://127.0.0.1:{server.getsockname()[1]}"
        return
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        path = str(Path(folder) / "raw")
        server.bind(path)
        server.listen()
        yield server, f"unix://{path}"


@asynccontextmanager
async def opener(sites: int, transport: str) -> AsyncIterator[Opener]:
    """Listen."""
    with _listening(transport) as (server, address):
        raw = RawOpener(server, address, sites)
        try:
            yield raw
        finally:
            raw.close()


def _connect(address: str) -> socket.socket:
    scheme, _, rest = address.partition("://")
    if scheme == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(rest)
        return connection
    host, _, port = rest.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if scheme == "tls":
        return context(ssl.Purpose.SERVER_AUTH).wrap_socket(connection, server_hostname=host)
    return connection


def _serve(connection: socket.socket) -> None:
    block = memoryview(bytearray(_MIB))
    with suppress(ConnectionError):  # the opener is done
        while True:
            size, count = _ORDER.unpack(_exactly(connection, _ORDER.size))
            for _ in range(count):
                left = size
                while left:
                    received = connection.recv_into(block[: min(left, _MIB)])
                    if not received:
                        return
                    left -= received
                connection.sendall(b"k")


@asynccontextmanager
async def site(address: str, index: int) -> AsyncIterator[None]:
    """Receive, and answer, in a thread."""
    with _connect(address) as connection:
        connection.sendall(_INDEX.pack(index))
        thread = threading.Thread(target=_serve, args=(connection,))
        thread.start()
        try:
            yield
        finally:
            connection.shutdown(socket.SHUT_RDWR)
            thread.join()
