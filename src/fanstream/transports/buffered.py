"""Sockets through asyncio's transports: for TLS, and for event loops that cannot watch a socket themselves.

Reads land in the link's own buffers here too, since the protocol is a ``BufferedProtocol``.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import anyio

from ..errors import BrokenError, ConnectError, IdentityError, SecurityError, TransportError
from ..wakeup import AsyncioFace
from .base import Pump
from .ending import EndingWire

if TYPE_CHECKING:
    from ..security.identity import Identity

_OUTPUT: Final = 512 * 1024  # bytes asked of the pump at a time: so much is encrypted before the loop has its turn
_HELD: Final = 512 * 1024  # bytes of ciphertext that wait for the socket
_SHUTDOWN: Final = 5.0  # seconds for the farewell of TLS
_EARLY: Final = 64 * 1024  # bytes that may follow a handshake before the loop has said that it is over


def watches(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bool:
    """Whether a loop can watch a socket; Windows's default loop cannot."""
    try:
        loop.remove_reader(sock.fileno())
    except NotImplementedError:
        return False
    return True


class BufferedWire(EndingWire, asyncio.BufferedProtocol):
    """One connection over an asyncio transport.

    Args:
        name: where it leads.
        face: the event loop.
        sock: the connected socket; None when the loop has accepted it, and ``connection_made`` follows.
        context: for TLS; None carries plain bytes.
        server_name: for a dialler over TLS, whom the peer's certificate has to name; None for the side that accepted.
            The context compares it.
    """

    def __init__(
        self,
        name: str,
        face: AsyncioFace,
        sock: socket.socket | None = None,
        *,
        context: ssl.SSLContext | None = None,
        server_name: str | None = None,
    ) -> None:
        super().__init__(name, face)
        self._sock = sock
        self._context = context
        self._server_name = server_name
        self._transport: Any = None  # an asyncio.Transport, once there is one
        self._begun = context is None and sock is None
        self._scheduled = False
        self._paused = False  # the transport holds what it was given
        self._upgrading = False  # the loop has its transport back, and makes one of TLS of it
        self._early = bytearray()
        self._fast = False  # the transport is aiofastnet's
        self._handshake: anyio.CancelScope | None = None

    # --- the wire ---

    async def _begin(self) -> None:
        """Shake hands.

        Raises:
            ConnectError: the peer speaks no TLS, or does not accept this side's certificate.
            IdentityError: this side does not accept the peer's.
            BrokenError: the peer is gone.
        """
        self._begun = True
        try:
            if self._context is not None:
                await self._shake(self._context)
            else:
                assert self._sock is not None, "plain and accepted by the loop, and so begun"
                await self._loop.create_connection(lambda: self, sock=self._sock)
        except (ConnectionError, EOFError) as exc:
            raise BrokenError(f"{self._name}: the other end closed it in the handshake") from exc
        except ssl.SSLCertVerificationError as exc:
            from ..security.tls import explain

            error = explain(exc)
            raise IdentityError(f"{self._name}: {error}", code=error.code) from exc
        except (OSError, ssl.SSLError) as exc:
            raise ConnectError(f"{self._name}: no TLS link: {exc}") from exc

    async def _shake(self, context: ssl.SSLContext) -> None:
        from . import fast_tls  # which loads what only TLS needs

        loop, sock, expected = self._loop, self._sock, self._server_name
        tls: dict[str, Any] = {"ssl_shutdown_timeout": _SHUTDOWN}  # whoever runs the wire has the time
        if sock is None:  # and so the loop has accepted it, for a plain transport
            self._upgrading = True
            self.connection_made(await loop.start_tls(self._transport, self, context, server_side=True, **tls))
            self._upgrading = False
            self._hand_on(self._early)
        elif (fast := fast_tls.library()) is not None and watches(loop, sock):
            shaken = await fast_tls.shake(fast, loop, sock, context, expected, **tls)
            self._fast = True
            shaken.transport.set_protocol(self)
            self._take(shaken.transport, shaken.identity)
            self._hand_on(shaken.early)
            if shaken.transport.is_closing():  # it has said all that it had to say
                self.eof_received()
        elif expected is None:
            await loop.connect_accepted_socket(lambda: self, sock, ssl=context, **tls)
        else:
            await loop.create_connection(lambda: self, sock=sock, ssl=context, server_hostname=expected, **tls)

    async def run(self, pump: Pump) -> Exception | None:
        self._pump = pump
        try:
            if not self._ended and not self._begun:
                with anyio.CancelScope() as self._handshake:
                    await self._begin()
            if not self._ended:
                if not self._closing:
                    self._transport.resume_reading()
                self._write()
                await self._done.wait()
        except (TransportError, SecurityError) as exc:
            self._reason = self._reason or exc
        finally:
            self._end(None)
        return self._reason

    def wake(self) -> None:
        if not (self._scheduled or self._paused or self._ended or self._pump is None or self._transport is None):
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _stop_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():  # without one, hands are not shaken yet
            self._transport.pause_reading()

    def _release(self) -> None:
        if self._handshake is not None:
            self._handshake.cancel()
        if self._transport is not None:
            self._transport.abort()
        elif self._sock is not None and not self._begun:
            self._sock.close()

    def _flush(self) -> None:
        self._scheduled = False
        self._write()

    def _write(self) -> None:
        pump = self._pump
        assert pump is not None
        left = _OUTPUT
        while left > 0 and not (self._paused or self._ended):
            out = pump.next_output(left)
            if not out:
                break
            if self._context is not None:
                self._transport.writelines(out)  # encrypted at once, so the buffers are the link's again
            else:
                # Not writelines, which on some Pythons 3.12 keeps buffers without pausing its protocol.
                for piece in out:
                    self._transport.write(piece)
            left -= sum(map(len, out))
        if left <= 0:  # in another turn: what a link has to say at length must not hold up the others
            self.wake()
        elif self._closing and not (self._paused or self._ended):
            self._ended = True
            self._done.set()
            self._transport.close()
            if self._fast:  # or else the peer's farewell would not be read
                with suppress(AttributeError):  # where it has come, and nothing is left to read from
                    self._transport.resume_reading()

    # --- the protocol ---

    def connection_made(self, transport: Any) -> None:
        ssl_object = transport.get_extra_info("ssl_object")
        self._take(transport, getattr(ssl_object, "identity", None))

    def _take(self, transport: Any, peer: Identity | None) -> None:
        if self._ended:
            transport.abort()
            return
        self._transport = transport
        self.peer = peer
        if self._context is None:
            # A plain transport may keep the buffers it was given, and they are the link's again once it asks for more.
            transport.set_write_buffer_limits(high=0)
        else:
            transport.set_write_buffer_limits(high=_HELD)
        if self._pump is None or not self._begun:
            transport.pause_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        assert self._pump is not None, "read while paused"
        if self._upgrading:
            self._stage = bytearray(_EARLY)
            return memoryview(self._stage)
        return self._pump.get_buffers()[0]

    def buffer_updated(self, nbytes: int) -> None:
        if self._ended or self._closing or self._pump is None:
            return
        if self._upgrading:
            self._early += self._stage[:nbytes]
            if len(self._early) > _EARLY:
                self._end(BrokenError(f"{self._name}: more than {_EARLY} bytes came with the handshake"))
            return
        self._pump.received(nbytes)

    def _hand_on(self, early: bytes | bytearray) -> None:
        """Pass on what came with the end of the handshake: until then it was not known who the peer is."""
        left = memoryview(bytes(early))
        while left and not (self._ended or self._closing):
            assert self._pump is not None
            room = self._pump.get_buffers()[0]
            count = min(len(room), len(left))
            room[:count] = left[:count]
            self._pump.received(count)
            left = left[count:]

    def eof_received(self) -> None:
        if self._upgrading:  # what came before it is still to be handed on; the transport closes, and tells
            return
        self._end(BrokenError(f"{self._name}: the other end closed it"))

    def connection_lost(self, exc: Exception | None) -> None:
        error: TransportError = BrokenError(f"{self._name}: {exc or 'the other end closed it'}")
        error.__cause__ = exc
        self._end(error)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._closing:
            self.wake()  # a transport that is closed in here tells of it twice
        elif self._pump is not None and not self._ended:
            self._write()
