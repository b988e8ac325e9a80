"""TLS by ``aiofastnet`` where that is installed: by OpenSSL directly, without Python for each record.

It makes no ``ssl.SSLObject``, so what ours sees to in a handshake (``security/tls.py``) is seen to here: who the peer
is becomes known before a byte of it is handed on, and a handshake has the same limit. docs/explanation/design.md tells
what else it needs.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import tempfile
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..security.tls import LONGEST, FederationContext
from .ending import tells_once

if TYPE_CHECKING:
    from ..security.identity import Identity

_STAGE: Final = 4 * 1024  # bytes read at a time in a handshake, and so the most that may come with its end
_HANDSHAKE: Final = 60.0  # seconds; whoever runs the wire has less patience


class Shaken(NamedTuple):
    """A connection whose peer is known; nothing is read from it yet, and it may have ended."""

    transport: Any  # an asyncio.Transport
    identity: Identity | None  # None where the context is no federation's
    early: bytes  # what came with the end of the handshake


def library() -> Any:
    """Return ``aiofastnet``; None where it is not installed, or cannot be used."""
    try:
        import aiofastnet

        tempfile.gettempdir()  # a peer's certificate becomes a file for a moment, by which it is decoded
    except (ImportError, OSError):
        return None
    # Without the libraries that Python's own ssl has loaded it would go through that, and be no faster.
    return None if aiofastnet.OPENSSL_DYN_LIBS is None else aiofastnet


async def shake(
    fast: Any,
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    context: ssl.SSLContext,
    expected: str | None,
    *,
    ssl_shutdown_timeout: float,
) -> Shaken:
    """Shake hands over a socket; it is closed if that fails or is cancelled.

    Args:
        fast: the library.
        loop: the running one, which can watch the socket.
        sock: connected.
        context: what TLS is told.
        expected: for a dialler, whom the peer's certificate has to name; None for the side that accepted.
        ssl_shutdown_timeout: seconds that the end of TLS may take.

    Raises:
        ssl.SSLCertVerificationError: the peer's certificate is not accepted.
        OSError: the peer is gone, or does something else than shake hands.
    """
    above = _Above()
    try:
        plain, _ = await fast.connect_accepted_socket(loop, lambda: above, sock)
        below = _Below(plain, sock)
        loop.call_soon(below.enter)  # start_tls takes the socket over at once, and reads from it after this
        transport = await fast.start_tls(
            loop,
            plain,
            above,
            context,
            server_side=expected is None,
            server_hostname=expected if context.check_hostname else None,  # what nobody compares is not sent either
            ssl_handshake_timeout=_HANDSHAKE,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        if not transport.is_closing():
            transport.pause_reading()
        elif not above.shaken:
            raise ConnectionResetError("it is gone")
        identity = None
        if isinstance(context, FederationContext):
            identity = context.identify(transport.get_extra_info("ssl_object").getpeercert(True), expected)
        below.leave(loop)
    except BaseException:
        _drop(loop, sock, above.plain)
        raise
    return Shaken(transport, identity, bytes(above.early))


def _drop(loop: asyncio.AbstractEventLoop, sock: socket.socket, plain: Any) -> None:
    """Close a socket, whatever has become of its transport."""
    if plain is not None:
        plain.abort()
    if sock.fileno() != -1:
        # A transport that was told to pause before it had begun to watch its socket watches it still.
        loop.remove_reader(sock.fileno())
        loop.remove_writer(sock.fileno())
        sock.close()


class _Above(asyncio.BufferedProtocol):
    """Stands in for the wire until its peer is known, and keeps what has come by then."""

    def __init__(self) -> None:
        self.plain: Any = None
        self.shaken = False
        self.early = bytearray()
        self._stage = bytearray(_STAGE)

    def connection_made(self, transport: Any) -> None:
        self.plain = transport
        transport.pause_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        self.shaken = True
        self.plain.pause_reading()  # there is time to look at the peer
        return memoryview(self._stage)

    def buffer_updated(self, nbytes: int) -> None:
        self.early += self._stage[:nbytes]


class _Below(asyncio.BufferedProtocol):
    """Stands between a socket and TLS in a handshake, and counts its bytes (threat T1); on some loops longer.

    Args:
        plain: the socket's transport.
        sock: it.
    """

    def __init__(self, plain: Any, sock: socket.socket) -> None:
        self._plain = plain
        self._sock = sock
        self._tls: Any = None
        self._read = 0
        self._shaken = False
        self._failure: OSError | None = None

    def enter(self) -> None:
        """Take the place of TLS, which has been put over the socket."""
        self._tls = self._plain.get_protocol()
        self._plain.set_protocol(self)

    def leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let TLS read for itself, where the loop tells of a reset that comes together with data."""
        self._shaken = True
        if not tells_once(loop):
            self._plain.set_protocol(self._tls)

    def get_buffer(self, sizehint: int) -> memoryview:
        room: memoryview = self._tls.get_buffer(sizehint)
        return room if self._shaken else room[:_STAGE]

    def buffer_updated(self, nbytes: int) -> None:
        if self._shaken:
            self._tls.buffer_updated(nbytes)
            if self._sock.fileno() != -1 and self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._plain.abort()
            return
        self._read += nbytes
        if self._read > LONGEST:
            self._failure = ssl.SSLError(f"a handshake of more than {LONGEST} bytes")
            self._plain.abort()
        else:
            self._tls.buffer_updated(nbytes)

    def eof_received(self) -> None:
        if self._shaken:
            self._tls.eof_received()

    def pause_writing(self) -> None:
        self._tls.pause_writing()

    def resume_writing(self) -> None:
        self._tls.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._shaken:  # not None, by which start_tls would end as if hands were shaken
            exc = self._failure or exc or ConnectionResetError("it is gone")
        self._tls.connection_lost(exc)
