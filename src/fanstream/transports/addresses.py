"""Addresses: URLs that say how and where an engine listens or connects."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import urlsplit

from ..arguments import check_site

SCHEMES: Final = ("memory", "tcp", "tls", "unix")


@dataclass(frozen=True, slots=True)
class Address:
    """One parsed address.

    Attributes:
        scheme: one of ``SCHEMES``.
        host: for ``tcp`` and ``tls``: a name or an IP address. For ``memory``: the name.
        port: for ``tcp`` and ``tls``; 0 lets the system choose when listening.
        path: for ``unix``.
        peer: for ``tls``: the name of the site that has to answer there; empty where it is not said.
    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    peer: str = ""

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.path}"
        if self.scheme == "memory":
            return f"memory://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}" + (f"?name={self.peer}" if self.peer else "")


def parse(url: Any, argument: str) -> Address:
    """Parse an address.

    Raises:
        TypeError: it is not a str.
        ValueError: it is no address that an engine understands.
    """
    if not isinstance(url, str):
        raise TypeError(f"{argument} is {url!r} of type {type(url).__name__}, expected a URL as a str")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ValueError(f"{argument} is {url!r}: {exc}") from exc
    if parts.scheme not in SCHEMES:
        raise ValueError(f"{argument} is {url!r}, expected a URL with one of the schemes {', '.join(SCHEMES)}")
    peer = ""
    if parts.scheme == "tls" and parts.query:
        key, _, peer = parts.query.partition("=")
        if key != "name":
            raise ValueError(f"{argument} is {url!r}, expected no query but ?name=, the name of the hub there")
        check_site(peer, f"{argument} is {url!r}, whose name")
    elif parts.query:
        raise ValueError(f"{argument} is {url!r}, expected nothing but scheme and address")
    if parts.fragment or parts.username is not None:
        raise ValueError(f"{argument} is {url!r}, expected nothing but scheme and address")
    if parts.scheme == "unix":
        if parts.netloc or not PurePath(parts.path).is_absolute():
            raise ValueError(f"{argument} is {url!r}, expected unix:///absolute/path")
        if len(parts.path.encode()) > 107:  # sun_path on Linux, less its final zero
            raise ValueError(f"{argument} has a path of {len(parts.path.encode())} bytes, limit 107")
        return Address("unix", path=parts.path)
    if parts.path not in ("", "/"):
        raise ValueError(f"{argument} is {url!r}, expected no path")
    if parts.scheme == "memory":
        if not parts.netloc or port is not None:
            raise ValueError(f"{argument} is {url!r}, expected memory://name")
        return Address("memory", host=parts.netloc)
    if not parts.hostname or port is None:
        raise ValueError(f"{argument} is {url!r}, expected {parts.scheme}://host:port")
    return Address(parts.scheme, host=parts.hostname, port=port, peer=peer)


def parse_all(urls: Any, argument: str) -> list[Address]:
    """Parse None, one address, or a list of them.

    Raises:
        TypeError: they are none of these.
        ValueError: one of them is no address, or the list is empty.
    """
    if urls is None:
        return []
    if isinstance(urls, str):
        return [parse(urls, argument)]
    if not isinstance(urls, (list, tuple)):
        raise TypeError(f"{argument} is {urls!r} of type {type(urls).__name__}, expected a URL or a list of them")
    if not urls:
        raise ValueError(f"{argument} is an empty list, expected at least one URL, or None")
    return [parse(url, f"{argument}[{index}]") for index, url in enumerate(urls)]


def is_loopback(host: str) -> bool:
    """Whether an IP address, or the name ``localhost``, is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
