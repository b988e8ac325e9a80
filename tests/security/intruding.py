"""Bare connections to a hub that say what no engine would."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path

from fanstream.protocol import bodies
from fanstream.protocol.frames import Flag, FrameType, pack
from fanstream.testing.peer import hello as greeting
from fanstream.transports.addresses import parse


def hello(site: str, *, hub: bool = False) -> bytes:
    return greeting(site, hub=hub).pack()


def goodbye() -> bytes:
    return pack(FrameType.GOAWAY, body=bodies.encode(bodies.Goodbye("bye")))


def opening(opener: str, target: str, *, alias: int) -> bytes:
    body = bodies.Opening(os.urandom(16), opener, [target], "demo", "hello", 2)
    rest = b"\x83\xaastream_ctx\x80\xa5props\x80\xa3job\xa0"
    return pack(FrameType.OPEN, alias, body=bodies.join_opening(body, rest), flags=Flag.CRITICAL)


def client(kit: Path | None, *, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """What an attacker dials with: it takes any server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = newest
    if kit is not None:
        context.load_cert_chain(kit / "certificate.pem", kit / "key.pem")
    return context


def break_in(address: str, context: ssl.SSLContext | None, says: bytes, then: bytes = b"") -> bytes:
    """Dial, say something, once answered say more, and return what was heard until the other side closed.

    What is said first leaves in one piece with the end of the handshake.
    """
    where = parse(address, "address")
    heard = b""
    with socket.create_connection((where.host, where.port), timeout=10) as sock:
        try:
            if context is None:
                sock.sendall(says)
                while data := sock.recv(65536):
                    heard += data
                return heard
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing)
            shaken = False
            while True:
                try:
                    if not shaken:
                        tls.do_handshake()
                        shaken = True
                        tls.write(says)
                    data = tls.read(65536)
                    if not heard and then:
                        tls.write(then)
                    heard += data
                    if not data:
                        break
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    arrived = sock.recv(65536)
                    if not arrived:
                        break
                    incoming.write(arrived)
        except (ssl.SSLError, ConnectionError):
            pass
    return heard
