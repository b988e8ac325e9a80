"""Transports: listen and dial by an address's scheme. They carry frames, and know nothing of streams."""

from __future__ import annotations

from . import memory
from .addresses import Address, parse_all
from .base import Listener, OnConnect, Pump, Wire

__all__ = ["Address", "Listener", "OnConnect", "Pump", "Wire", "dial", "listen", "parse_all"]


async def listen(address: Address, on_connect: OnConnect, *, allow_plain: bool) -> Listener:
    """Bind an address, and call *on_connect* with each connection.

    Raises:
        ConnectError: it cannot be bound.
    """
    if address.scheme == "memory":
        return memory.MemoryListener(address.host, on_connect)
    from . import sockets

    return await sockets.listen(address, on_connect, allow_plain=allow_plain)


async def dial(address: Address, from_name: str, *, allow_plain: bool) -> Wire:
    """Connect to an address.

    Raises:
        ConnectError: it cannot be reached.
    """
    if address.scheme == "memory":
        return memory.dial(address.host, from_name)
    from . import sockets

    return await sockets.dial(address, allow_plain=allow_plain)
