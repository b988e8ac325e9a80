from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import trustme


class Contexts(NamedTuple):
    listen: ssl.SSLContext
    connect: ssl.SSLContext


@pytest.fixture(scope="session")
def contexts() -> Contexts:
    """Contexts of TLS 1.3 for 127.0.0.1, both sides of which show a certificate."""
    authority = trustme.CA()
    listen = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    connect = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (listen, connect):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
        authority.issue_cert("127.0.0.1").configure_cert(context)
    return Contexts(listen, connect)


class UnwatchedLoop(asyncio.SelectorEventLoop):
    """A loop that cannot watch sockets for others, like Windows's default."""

    def add_reader(self, *_args: Any) -> None:  # type: ignore[override]
        raise NotImplementedError

    def remove_reader(self, *_args: Any) -> bool:
        raise NotImplementedError


UNWATCHED: tuple[str, dict[str, Callable[[], asyncio.AbstractEventLoop]]] = ("asyncio", {"loop_factory": UnwatchedLoop})
