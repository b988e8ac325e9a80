"""A federation of fixed keys and certificates, and one sealed stream in it, so that every run sees the same bytes."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fanstream.errors import SecurityError
from fanstream.security.sealed.chunks import Place
from fanstream.security.sealed.prekeys import KeyRing, check_prekey
from fanstream.security.sealed.sessions import OpenerSession, ReceiverSession, SealedObject
from fanstream.security.sealed.suites import Suite, sign_with, suite_named

NOW = 1_800_000_000
STREAM = bytes(range(16))
EPOCH = bytes(range(16, 32))
CHALLENGE = bytes(range(32))
_PREFIX = "fed://"
_BEGIN = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
_END = dt.datetime(2035, 1, 1, tzinfo=dt.UTC)


def seeded(seed: str) -> Callable[[int], bytes]:
    """A source of bytes that are the same in every run: SHAKE-256 of the seed, read on."""
    taken = 0

    def read(size: int) -> bytes:
        nonlocal taken
        taken += size
        return hashlib.shake_256(seed.encode()).digest(taken)[-size:]

    return read


def p256(seed: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(seed.encode()).digest(), "big") >> 1, ec.SECP256R1())


class Root:
    """Certifies the sites of one federation."""

    def __init__(self, federation: str = "hospitals") -> None:
        self.federation = federation
        self.key = p256(f"root of {federation}")
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, federation)])
        self.certificate = self._sign(name, name, self.key.public_key(), [])

    def _sign(self, subject: x509.Name, issuer: x509.Name, key: Any, extensions: list[Any]) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(1000)
            .not_valid_before(_BEGIN)
            .not_valid_after(_END)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self.key, hashes.SHA256(), ecdsa_deterministic=True)

    def certify(self, site: str, key: Any) -> bytes:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
        uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"{_PREFIX}{self.federation}/site/{site}")])
        certificate = self._sign(subject, self.certificate.subject, key.public_key(), [uri])
        return certificate.public_bytes(serialization.Encoding.DER)


class Site:
    """A site's identity (``prekeys.Member``); signs ECDSA as in RFC 6979, so that equal words have equal signatures."""

    def __init__(self, root: Root, name: str, key: Any = None, denied: frozenset[str] = frozenset()) -> None:
        self.root = root
        self.name = name
        self.federation = root.federation
        self.key = key if key is not None else p256(f"{name} of {root.federation}")
        self.chain: Sequence[bytes] = [root.certify(name, self.key)]
        self.denied = denied
        self.signed = 0

    def sign(self, message: bytes) -> bytes:
        self.signed += 1
        if not isinstance(self.key, ec.EllipticCurvePrivateKey):
            return sign_with(self.key, message)
        return self.key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))

    def site_of(self, chain: Sequence[bytes], now: float) -> str:
        try:
            leaf = x509.load_der_x509_certificate(chain[0])
            leaf.verify_directly_issued_by(self.root.certificate)
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except Exception as exc:
            raise SecurityError(f"the certificate is not one of {self.federation}") from exc
        when = dt.datetime.fromtimestamp(now, dt.UTC)
        if not leaf.not_valid_before_utc <= when < leaf.not_valid_after_utc:
            raise SecurityError("the certificate is not valid now")
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        site: str = uri.removeprefix(f"{_PREFIX}{self.federation}/site/")
        if site in self.denied:
            raise SecurityError(f"{site} is on the deny-list")
        return site


def seal_with(session: Any, place: Place, envelope: bytes, buffers: Sequence[memoryview]) -> SealedObject:
    """Seal an object, or the reply to one, into new memory."""
    size = session.size_of(envelope, [len(buffer) for buffer in buffers])
    sealed: SealedObject = session.seal(place, envelope, buffers, memoryview(bytearray(size)))
    return sealed


def make_sites(*names: str, root: Root | None = None) -> list[Site]:
    """Sites of one federation."""
    root = root or Root()
    return [Site(root, name) for name in names]


class Stream:
    """One stream from ``server`` to sites, opened at each of them."""

    def __init__(
        self,
        *targets: str,
        suite: str | Suite = "pq-sha256",
        chunk: int = 1024,
        context: bytes = b"\x83the context",
        stream: bytes = STREAM,
        seed: str = "stream",
    ) -> None:
        names = targets or ("site-1",)
        self.suite = suite_named(suite) if isinstance(suite, str) else suite
        self.server, *sites = make_sites("server", *names)
        self.sites = dict(zip(names, sites, strict=True))
        self.rings = {name: KeyRing(self.suite, seeded(name)) for name in names}
        self.opener = OpenerSession(
            self.server,
            self.suite,
            seeded(seed),
            stream=stream,
            epoch=EPOCH,
            channel="models",
            topic="weights",
            targets=names,
            context=context,
            now=NOW,
            chunk=chunk,
        )

    def answer(self, name: str = "site-1", now: float = NOW) -> bytes:
        return self.rings[name].answer(self.sites[name], CHALLENGE, now)

    def invite(self, name: str = "site-1") -> bytes:
        answer = self.answer(name)
        return self.opener.invite(name, check_prekey(answer, name, CHALLENGE, self.server, self.suite, NOW))

    def accept(self, data: bytes, name: str = "site-1", **changed: Any) -> ReceiverSession:
        said: dict[str, Any] = {
            "stream": self.opener.header.stream,
            "opener": "server",
            "channel": "models",
            "topic": "weights",
            "now": NOW,
        }
        return ReceiverSession(self.rings[name], self.sites[name], self.suite, data, **(said | changed))
