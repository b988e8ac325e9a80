"""A proxy between an engine and its hub that breaks real connections as told: real sockets, real kernels, real loss.

``faults`` breaks links within the process, on virtual time; this breaks TCP and Unix sockets, between processes too. It
needs asyncio, on real time.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import socket
import struct
import tempfile
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio
import anyio.lowlevel

from ..errors import ConnectError
from ..transports.addresses import Address, parse
from ..wakeup import current_face

CAPACITY: Final = 1024 * 1024
"""Bytes under way in one direction before the proxy reads no more of it, beside what the kernel holds."""

_READ: Final = 256 * 1024
_BACKLOG: Final = 128
_NO_LINGER: Final = struct.pack("ii", 1, 0)  # closing sends RST, and drops what was not sent
_STEP: Final = 0.01  # seconds of a limited rate that go as one write


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What becomes of the bytes that go one way; what is not set does nothing.

    Attributes:
        cut_after: close both ends once so many bytes have gone this way.
        reset_after: the same with a TCP reset, so that also what the kernel holds is lost; Unix sockets know none, and
            are cut.
        half_close_after: tell the receiver after so many bytes that nothing follows, and drop what does; the other way
            goes on.
        stall_after: let nothing more through after so many bytes, until ``resume``.
        flip_at: invert the lowest bit of the byte at this offset.
        piece: bytes handed on with one write; 1 for a byte at a time.
        rate: bytes per second; infinite unless set.
        delay: how long each byte is under way, in seconds.

    Raises:
        ValueError: a value is out of range.
    """

    cut_after: int | None = None
    reset_after: int | None = None
    half_close_after: int | None = None
    stall_after: int | None = None
    flip_at: int | None = None
    piece: int | None = None
    rate: float = math.inf
    delay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("cut_after", "reset_after", "half_close_after", "stall_after", "flip_at"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}, expected at least 0")
        if self.piece is not None and self.piece < 1:
            raise ValueError(f"piece is {self.piece}, expected at least 1")
        if not self.rate > 0:
            raise ValueError(f"rate is {self.rate}, expected more than 0")
        if not 0 <= self.delay < math.inf:
            raise ValueError(f"delay is {self.delay}, expected a finite number of at least 0")


@dataclass(frozen=True, slots=True)
class Faults:
    """What becomes of one connection.

    Attributes:
        up: what the dialler sends to the target.
        down: what the target sends to the dialler.
    """

    up: Fault = Fault()
    down: Fault = Fault()


class Way:
    """One direction of a proxied connection.

    Attributes:
        carried: bytes handed on.
    """

    def __init__(self, connection: ProxiedConnection, source: socket.socket, sink: socket.socket, fault: Fault) -> None:
        face = current_face()
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._source = source
        self._sink = sink
        self._fault = fault
        self._queue: deque[tuple[float, memoryview]] = deque()  # when each piece is due, and the piece; b"" is the end
        self._size = 0
        self._arrived = face.wakeup()
        self._left = face.wakeup()
        self._moving = anyio.Event()
        self._moving.set()
        self._stalled_once = False
        self.carried = 0

    def stall(self) -> None:
        """Let nothing through; the sender goes on until the buffers are full."""
        self._moving = anyio.Event()

    def resume(self) -> None:
        """Let go on what was stalled."""
        self._moving.set()

    async def run(self) -> None:
        """Carry until the end."""
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._read)
            await self._write()
            tg.cancel_scope.cancel()

    async def _read(self) -> None:
        loop, queue = self._loop, self._queue
        while True:
            while self._size >= CAPACITY:
                await self._left.wait()
            data = await loop.sock_recv(self._source, _READ)
            queue.append((loop.time() + self._fault.delay, memoryview(data)))
            self._size += len(data)
            self._arrived.set()
            if not data:
                return

    async def _next(self) -> memoryview:
        while not self._queue:
            await self._arrived.wait()
        due, data = self._queue[0]
        if self._fault.delay:
            await anyio.sleep(due - self._loop.time())
        self._queue.popleft()
        self._size -= len(data)
        self._left.set()
        return data

    async def _write(self) -> None:
        fault = self._fault
        while True:
            if await self._ends_here():
                return
            data = await self._next()
            if not data:
                await self._moving.wait()
                self._sink.shutdown(socket.SHUT_WR)
                return
            while data:
                await self._moving.wait()
                if await self._ends_here():
                    return
                count = min(len(data), self._unbroken())
                await self._loop.sock_sendall(self._sink, self._flipped(data[:count]))
                data = data[count:]
                self.carried += count
                if fault.rate < math.inf:
                    await anyio.sleep(count / fault.rate)

    def _unbroken(self) -> int:
        """Return how many bytes may go in one write: up to the next fault, and no more than a piece."""
        fault = self._fault
        sizes = [_READ, fault.piece or _READ]
        if fault.rate < math.inf:
            sizes.append(max(1, int(fault.rate * _STEP)))
        stops = (fault.cut_after, fault.reset_after, fault.half_close_after, fault.stall_after)
        sizes += [stop - self.carried for stop in stops if stop is not None and stop > self.carried]
        return min(sizes)

    def _flipped(self, data: memoryview) -> bytes | memoryview:
        at = self._fault.flip_at
        if at is None or not self.carried <= at < self.carried + len(data):
            return data
        changed = bytearray(data)
        changed[at - self.carried] ^= 1
        return bytes(changed)

    async def _ends_here(self) -> bool:
        """Do what is due after the bytes carried so far; return whether nothing follows."""
        fault, carried = self._fault, self.carried
        if carried == fault.stall_after and not self._stalled_once:
            self._stalled_once = True
            self.stall()
            await self._moving.wait()
        if carried == fault.half_close_after:
            self._sink.shutdown(socket.SHUT_WR)
            while await self._next():  # so that the sender does not come to wait
                pass
            return True
        if carried == fault.reset_after:
            self._connection.reset()
            return True
        if carried == fault.cut_after:
            self._connection.cut()
            return True
        return False


class ProxiedConnection:
    """One connection through a proxy.

    Attributes:
        number: 0 for the first that was accepted.
        up: from the dialler to the target.
        down: from the target to the dialler.
        alive: whether neither end has closed, and nobody has broken it.
    """

    def __init__(self, number: int, dialler: socket.socket, target: socket.socket, faults: Faults) -> None:
        self._sockets = (dialler, target)
        self._scope = anyio.CancelScope()
        self.number = number
        self.alive = True
        self.up = Way(self, dialler, target, faults.up)
        self.down = Way(self, target, dialler, faults.down)

    def stall(self) -> None:
        """Let nothing through, either way: as if the other end had frozen."""
        self.up.stall()
        self.down.stall()

    def resume(self) -> None:
        """Let go on what was stalled."""
        self.up.resume()
        self.down.resume()

    def cut(self) -> None:
        """Close both ends now; what is under way in the proxy is lost."""
        self.alive = False
        self._scope.cancel()

    def reset(self) -> None:
        """Reset both ends now: also what their kernels hold for each other is lost."""
        for sock in self._sockets:
            if sock.family != socket.AF_UNIX and sock.fileno() != -1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.cut()

    async def run(self) -> None:
        """Carry both ways until both have ended, or the connection is broken."""
        try:
            with self._scope:
                try:
                    async with anyio.create_task_group() as tg:
                        tg.start_soon(self.up.run)
                        tg.start_soon(self.down.run)
                except* OSError:  # one end has broken it: so hears the other
                    self.reset()
        finally:
            self.alive = False
            for sock in self._sockets:
                sock.close()


class FaultProxy:
    """Listens in place of a target, and breaks what it carries: ``async with FaultProxy(hub.addresses[0]) as proxy``.

    Engines connect to ``proxy.address``. The target need not be there yet, and may come back after it has gone; a
    connection that comes while it is away is closed. TLS goes through unread.

    Args:
        target: where connections lead, as a URL: ``tcp``, ``tls`` or ``unix``.
        script: what becomes of the first connection, the second, and so on; those beyond it have no faults.

    Attributes:
        address: where the proxy listens, as a URL of the target's scheme; on loopback, or in a directory of its own.
        connections: all that were accepted and led on to the target, in their order.
        refusing: whether further connections are closed at once.
    """

    address: str

    def __init__(self, target: str, script: Iterable[Faults] = ()) -> None:
        self._target = parse(target, "target")
        if self._target.scheme == "memory":
            raise ValueError(f"target is {target!r}, expected an address of sockets; FaultyNetwork breaks memory links")
        self._script = iter(script)
        self._folder: str | None = None
        self.connections: list[ProxiedConnection] = []
        self.refusing = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._accepted = current_face().wakeup()
        self._listener, bound = self._listen()
        self.address = str(bound)
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._accept, name=f"fault proxy at {bound}")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)  # told of the body's error, it would wrap it in a group
        finally:
            self._listener.close()
            if self._folder is not None:
                shutil.rmtree(self._folder)

    async def connection(self, number: int = -1) -> ProxiedConnection:
        """Return a connection by its number, and wait until there is one; the newest by default.

        One task at a time may wait.
        """
        while not -len(self.connections) <= number < len(self.connections):
            await self._accepted.wait()
        return self.connections[number]

    def _listen(self) -> tuple[socket.socket, Address]:
        if self._target.scheme == "unix":
            sock = socket.socket(socket.AF_UNIX)
            self._folder = tempfile.mkdtemp(prefix="proxy-")  # readable by its owner alone
            bound = replace(self._target, path=str(Path(self._folder) / "s"))
            sock.bind(bound.path)
        else:
            sock = socket.socket()
            sock.bind(("127.0.0.1", 0))
            bound = replace(self._target, host="127.0.0.1", port=sock.getsockname()[1])
        sock.listen(_BACKLOG)
        sock.setblocking(False)
        return sock, bound

    async def _accept(self) -> None:
        while True:
            sock, _peer = await self._loop.sock_accept(self._listener)
            self._tasks.start_soon(self._serve, sock)

    async def _serve(self, dialler: socket.socket) -> None:
        with dialler:
            if self.refusing:
                return
            try:
                target = await self._dial()
            except ConnectError:
                return
            for sock in (dialler, target):
                if sock.family != socket.AF_UNIX:
                    with suppress(OSError):  # it may have broken already
                        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            faults = next(self._script, Faults())
            connection = ProxiedConnection(len(self.connections), dialler, target, faults)
            self.connections.append(connection)
            self._accepted.set()
            await connection.run()

    async def _dial(self) -> socket.socket:
        target = self._target
        try:
            if target.scheme == "unix":
                family, where = socket.AF_UNIX, target.path
            else:
                found = await self._loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
                family, where = found[0][0], found[0][4]  # type: ignore[assignment]  # a path or an address
            sock = socket.socket(family)
        except OSError as exc:
            raise ConnectError(f"{target}: {exc}") from exc
        try:
            sock.setblocking(False)
            await self._loop.sock_connect(sock, where)
        except OSError as exc:
            sock.close()
            raise ConnectError(f"{target}: {exc}") from exc
        except BaseException:
            sock.close()
            raise
        return sock
