"""Transports: listen and dial by an address's scheme. They carry frames, and know nothing of streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import memory
from .addresses import Address, parse_all
from .base import Listener, OnConnect, Pump, Wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from ssl import SSLContext

__all__ = ["Address", "Listener", "OnConnect", "Pump", "Wire", "dial", "listen", "parse_all"]


async def listen(
    address: Address, on_connect: OnConnect, *, allow_plain: bool, context: Callable[[], SSLContext] | None = None
) -> Listener:
    """Bind an address, and call *on_connect* with each connection.

    Args:
        address: where.
        on_connect: called with a wire that nobody runs yet.
        allow_plain: permit ``tcp`` beyond loopback.
        context: for ``tls``, asked for each connection, since certificates are replaced while a listener is bound.

    Raises:
        ConnectError: it cannot be bound.
        SecurityError: it is plain TCP beyond loopback, and that was not asked for.
    """
    if address.scheme == "memory":
        return memory.MemoryListener(address.host, on_connect)
    from . import sockets

    return await sockets.listen(address, on_connect, allow_plain=allow_plain, context=context)


async def dial(address: Address, from_name: str, *, allow_plain: bool, context: SSLContext | None = None) -> Wire:
    """Connect to an address.

    Args:
        address: where.
        from_name: who this is, for the other end's logs.
        allow_plain: permit ``tcp`` beyond loopback.
        context: for ``tls``; it is told the name in the address, or else the host, as ``server_hostname``.

    Raises:
        ConnectError: it cannot be reached.
        SecurityError: it is plain TCP beyond loopback, and that was not asked for; or another user's Unix socket.
    """
    if address.scheme == "memory":
        return memory.dial(address.host, from_name)
    from . import sockets

    return await sockets.dial(address, allow_plain=allow_plain, context=context)
