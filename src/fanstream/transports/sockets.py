"""TCP and Unix sockets on asyncio: gathered writes, and reads straight into their destinations.

What is not TLS, on a loop that can watch sockets, is driven by readiness (``add_reader``, ``add_writer``) rather than
through asyncio's transports and streams: those copy or allocate for every read (docs/explanation/performance.md).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import stat
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from ..errors import BrokenError, ConnectError, SecurityError
from ..wakeup import AsyncioFace, current_face
from .addresses import Address, is_loopback
from .base import Listener, OnConnect, Pump, Wire
from .buffered import BufferedWire, watches
from .ending import EndingWire, tells_once

_log = logging.getLogger(__name__)

_OUTPUT: Final = 2 * 1024 * 1024  # bytes asked of the pump at a time
_BURST: Final = 4 * 1024 * 1024  # bytes written by one callback before the loop has its turn
_READ_BURST: Final = 1024 * 1024  # bytes read by one: into memory touched for the first time they take longest
_READS: Final = 4  # system calls of one callback
_UNIX_BUFFER: Final = 1024 * 1024  # bytes; the system may allow less
_ACCEPTS: Final = 32
_BACKLOG: Final = 1024
_ACCEPT_PAUSE: Final = 0.5  # seconds, when nothing can be accepted: the process may be out of file descriptors
_DEAD_AFTER: Final = 15_000  # milliseconds of unacknowledged data, as for a silent link
_UNSENT: Final = 128 * 1024
# Bytes that the kernel takes beyond what it can send now: a control frame waits behind no more of them. Over loopback
# 512 KiB is slower for objects of 1 MiB, and no limit at all is slower still; see docs/explanation/performance.md.
_CREDENTIALS: Final = struct.Struct("iII")  # unix(7): process, user, group


def _face() -> AsyncioFace:
    """Return the running loop; from a task only, for a callback of the loop has no task to tell it by."""
    face = current_face()
    if not isinstance(face, AsyncioFace):
        raise ConnectError("tcp:// and unix:// need asyncio; under Trio there is memory://")
    return face


class SocketWire(EndingWire):
    """One connected socket."""

    def __init__(self, sock: socket.socket, name: str, face: AsyncioFace) -> None:
        super().__init__(name, face)
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._unwritten: list[bytes | memoryview] = []
        self._scheduled = False
        self._armed = False  # waiting for the socket to take more
        self._told_once = tells_once(face.loop)

    async def run(self, pump: Pump) -> Exception | None:
        self._pump = pump
        try:
            if not self._ended:
                self._loop.add_reader(self._fd, self._readable)
                self._flush()
                await self._done.wait()
        finally:
            self._end(None)
            self._sock.close()
        return self._reason

    def wake(self) -> None:
        if not self._scheduled and not self._armed and not self._ended and self._pump is not None:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _stop_reading(self) -> None:
        self._loop.remove_reader(self._fd)

    def _release(self) -> None:
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._unwritten = []
        if self._pump is None:  # it was never run, which would close it
            self._sock.close()

    def _readable(self) -> None:
        pump, sock = self._pump, self._sock
        assert pump is not None
        total = 0
        try:
            for _ in range(_READS):
                buffers = pump.get_buffers()
                if len(buffers) == 1:
                    room = len(buffers[0])
                    count = sock.recv_into(buffers[0])
                else:
                    room = len(buffers[0]) + len(buffers[1])
                    count = sock.recvmsg_into(buffers)[0]
                if count == 0:
                    self._end(BrokenError(f"{self._name}: the other end closed it"))
                    return
                pump.received(count)
                total += count
                if count < room or total >= _READ_BURST or self._ended or self._closing:
                    break
            if self._told_once and not self._ended:
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    self._end(_broken(self._name, OSError(error, os.strerror(error))))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._end(_broken(self._name, exc))

    def _flush(self) -> None:
        self._scheduled = False
        if self._ended:
            return
        pump, sock = self._pump, self._sock
        assert pump is not None
        sent = 0
        out: Sequence[bytes | memoryview] = ()
        try:
            while sent < _BURST:
                out = self._unwritten or pump.next_output(_OUTPUT)
                if not out:
                    if self._armed:
                        self._armed = False
                        self._loop.remove_writer(self._fd)
                    if self._closing:
                        self._end(None)
                    return
                count = sock.send(out[0]) if len(out) == 1 else sock.sendmsg(out)
                sent += count
                if len(out) == 1 and count == len(out[0]):
                    self._unwritten = []
                    continue
                self._unwritten = _rest(out, count)
                if self._unwritten:
                    break
        except (BlockingIOError, InterruptedError):
            self._unwritten = list(out)
        except OSError as exc:
            self._end(_broken(self._name, exc))
            return
        if not self._armed:
            self._armed = True
            self._loop.add_writer(self._fd, self._flush)


def _rest(out: Sequence[bytes | memoryview], count: int) -> list[bytes | memoryview]:
    """Return what of *out* is left after *count* bytes were written."""
    for index, buffer in enumerate(out):
        size = len(buffer)
        if count < size:
            return [memoryview(buffer)[count:], *out[index + 1 :]]
        count -= size
    return []


def _broken(name: str, exc: OSError) -> BrokenError:
    error = BrokenError(f"{name}: {exc.strerror or exc}")
    error.__cause__ = exc
    return error


def _prepare(sock: socket.socket) -> None:
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_AFTER)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
    else:
        # TCP's buffers tune themselves; those of Unix sockets hold 208 KiB, which costs a turn of the loop each time.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_BUFFER)


class SocketListener(Listener):
    """A bound and listening socket that this side watches itself.

    Args:
        sock: bound and listening.
        address: what was bound.
        on_accept: called with each accepted socket.
    """

    def __init__(self, sock: socket.socket, address: Address, on_accept: Callable[[socket.socket], object]) -> None:
        sock.setblocking(False)
        self._loop = _face().loop
        self._sock = sock
        self._on_accept = on_accept
        self._path = address.path
        self._pause: asyncio.TimerHandle | None = None
        self._told = False  # why it pauses, since it last accepted
        self.address = str(address)
        self._loop.add_reader(sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, _peer = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:  # threat T22: out of file descriptors, most likely
                self._stop_for_now(exc)
                return
            self._told = False
            try:
                _prepare(sock)
            except OSError:  # it is gone again
                sock.close()
                continue
            self._on_accept(sock)

    def _stop_for_now(self, reason: OSError) -> None:
        if not self._told:
            self._told = True
            _log.warning("%s: %s; accepting pauses until it can go on", self.address, reason.strerror)
        self._loop.remove_reader(self._sock.fileno())
        self._pause = self._loop.call_later(_ACCEPT_PAUSE, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def close(self) -> None:
        if self._sock.fileno() == -1:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        if self._path:
            Path(self._path).unlink(missing_ok=True)


class LoopListener(Listener):
    """The same on a loop that cannot watch a socket: the loop accepts, and makes a transport of each."""

    def __init__(self, server: asyncio.Server, address: Address) -> None:
        self._server = server
        self._path = address.path
        self.address = str(address)

    def close(self) -> None:
        if self._server.is_serving():
            self._server.close()
            if self._path:
                Path(self._path).unlink(missing_ok=True)


def _check_user(sock: socket.socket, name: str) -> None:
    """Check that the other end of a Unix socket is this user's too: its mode alone may have been changed (threat T1).

    Raises:
        SecurityError: it is another's.
    """
    if sock.family != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
        return
    _process, user, _group = _CREDENTIALS.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    if user != os.geteuid():
        raise SecurityError(f"{name}: the other end runs as user {user}, this one as {os.geteuid()}")


async def listen(
    address: Address, on_connect: OnConnect, *, allow_plain: bool, context: Callable[[], ssl.SSLContext] | None = None
) -> Listener:
    """Bind an address; see ``fanstream.transports.listen``."""
    face = _face()
    tls = _required(address, context)
    if address.scheme == "unix":
        sock, bound = _bind_unix(address), address
    else:
        sock, bound = await _bind_tcp(address, allow_plain=allow_plain or tls is not None)
    name = f"a peer of {bound}"
    if not watches(face.loop, sock):
        return await _listen_by_loop(
            face, sock, bound, on_connect, lambda: BufferedWire(name, face, context=tls and tls())
        )
    if tls is not None:
        make = tls
        return SocketListener(
            sock,
            bound,
            lambda accepted: on_connect(BufferedWire(_name(accepted, name), face, accepted, context=make())),
        )

    def accept(accepted: socket.socket) -> None:
        try:
            _check_user(accepted, name)
        except SecurityError as exc:
            _log.warning("%s", exc)
            accepted.close()
            return
        on_connect(SocketWire(accepted, name, face))

    return SocketListener(sock, bound, accept)


def _name(sock: socket.socket, otherwise: str) -> str:
    """Return where a peer calls from, for the log of those that are refused."""
    try:
        host, port = sock.getpeername()[:2]
    except OSError:  # it is gone already
        return otherwise
    return f"{otherwise}, {host} port {port}"


_Context = TypeVar("_Context")


def _required(address: Address, context: _Context | None) -> _Context | None:
    if address.scheme != "tls":
        return None
    if context is None:
        raise SecurityError(f"{address} needs an identity")
    return context


async def _listen_by_loop(
    face: AsyncioFace, sock: socket.socket, bound: Address, on_connect: OnConnect, make: Callable[[], BufferedWire]
) -> Listener:
    def accepted() -> BufferedWire:
        wire = make()
        # Not before the loop has given it its transport.
        face.loop.call_soon(face.loop.call_soon, on_connect, wire)
        return wire

    create = face.loop.create_unix_server if bound.scheme == "unix" else face.loop.create_server
    return LoopListener(await create(accepted, sock=sock, backlog=_BACKLOG), bound)


async def _bind_tcp(address: Address, *, allow_plain: bool) -> tuple[socket.socket, Address]:
    family, where = await _resolve(address, allow_plain=allow_plain)
    sock = _new_socket(address, family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(_BACKLOG)
    except OSError as exc:
        sock.close()
        raise ConnectError(f"{address}: {exc.strerror or exc}") from exc
    return sock, replace(address, port=sock.getsockname()[1])


def _new_socket(address: Address, family: socket.AddressFamily) -> socket.socket:
    try:
        return socket.socket(family, socket.SOCK_STREAM)
    except OSError as exc:  # threat T22: out of file descriptors
        raise ConnectError(f"{address}: {exc.strerror or exc}") from exc


def _bind_unix(address: Address) -> socket.socket:
    path = address.path
    sock = _new_socket(address, socket.AF_UNIX)
    try:
        _remove_stale(path)
        sock.bind(path)
        Path(path).chmod(stat.S_IRUSR | stat.S_IWUSR)  # threat T1: for this user alone; nobody connects before listen()
        sock.listen(_BACKLOG)
    except OSError as exc:
        sock.close()
        raise ConnectError(f"unix://{path}: {exc.strerror or exc}") from exc
    return sock


def _remove_stale(path: str) -> None:
    """Remove a socket that a dead process left behind; anything else at that path stays."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()


async def dial(address: Address, *, allow_plain: bool, context: ssl.SSLContext | None = None) -> Wire:
    """Connect to an address; see ``fanstream.transports.dial``."""
    face = _face()
    tls = _required(address, context)
    if address.scheme == "unix":
        family: socket.AddressFamily = socket.AF_UNIX
        where: tuple[str, int] | str = address.path
    else:
        family, where = await _resolve(address, allow_plain=allow_plain or tls is not None)
    sock = _new_socket(address, family)
    sock.setblocking(False)
    try:
        await face.loop.sock_connect(sock, where)
        _check_user(sock, str(address))
        _prepare(sock)
    except OSError as exc:
        sock.close()
        raise ConnectError(f"{address}: {exc.strerror or exc}") from exc
    except BaseException:
        sock.close()
        raise
    if tls is None and watches(face.loop, sock):
        return SocketWire(sock, str(address), face)
    return BufferedWire(str(address), face, sock, context=tls, server_name=address.peer or address.host)


async def _resolve(address: Address, *, allow_plain: bool) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        found = await _face().loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise ConnectError(f"{address}: {exc.strerror or exc}") from exc
    family, _kind, _protocol, _name, where = found[0]
    host = str(where[0])
    if not allow_plain and not is_loopback(host):
        raise SecurityError(
            f"{address} leads to {host}, which is not loopback: plain TCP has no privacy and no identity. "
            "Set allow_plain_tcp=True in EngineSettings if that is what you want"
        )
    return family, (host, int(where[1]))
