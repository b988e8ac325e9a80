"""Sites with certificates of one root, for what seals streams; made anew in each run."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fanstream.errors import SecurityError
from fanstream.security.sealed.suites import sign_with

FEDERATION = "bench"
_DAY = dt.timedelta(days=1)


class Root:
    """Certifies sites."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self.certify(FEDERATION, self._key.public_key())

    def certify(self, name: str, public: Any) -> x509.Certificate:
        """Issue a certificate that says *name*."""
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, FEDERATION)]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
            .sign(self._key, hashes.SHA256())
        )


class Site:
    """One of them, with an ECDSA key (``security.sealed.prekeys.Member``)."""

    federation = FEDERATION

    def __init__(self, root: Root, name: str) -> None:
        self._root = root
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.name = name
        certificate = root.certify(name, self._key.public_key())
        self.chain = [certificate.public_bytes(serialization.Encoding.DER)]

    def sign(self, message: bytes) -> bytes:
        """Sign a message."""
        return sign_with(self._key, message)

    def site_of(self, chain: Sequence[bytes], now: float) -> str:
        """Return whose certificate this is."""
        leaf = x509.load_der_x509_certificate(chain[0])
        if not leaf.not_valid_before_utc.timestamp() <= now < leaf.not_valid_after_utc.timestamp():
            raise SecurityError("a certificate is out of date")
        leaf.verify_directly_issued_by(self._root.certificate)
        return str(leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
