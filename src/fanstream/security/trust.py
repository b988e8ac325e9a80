"""Whom a site trusts: the federation's roots, and what they have revoked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

from ..errors import IdentityError
from .identity import ISSUES_ONLY, Identity, check_key, fingerprint, parsing, read_profile

_STRONG: Final = (SHA256, SHA384, SHA512)
_PEM_LIST: Final = re.compile(rb"-----BEGIN X509 CRL-----\s.+?\s-----END X509 CRL-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Trust:
    """The roots of a federation and their revocation lists; several roots while one takes the place of another.

    Attributes:
        federation: the federation's name.
        roots: by fingerprint.
        revoked: serial numbers of revoked certificates, by the fingerprint of their root.
        numbers: the number of each root's revocation list; a newer list has a higher one.
    """

    federation: str
    roots: Mapping[str, x509.Certificate]
    revoked: Mapping[str, frozenset[int]]
    numbers: Mapping[str, int]

    @classmethod
    def read(cls, federation: str, roots: bytes, revoked: bytes) -> Self:
        """Read roots and revocation lists, each one or more in PEM.

        Raises:
            ValueError: they cannot be read, a root is none, or a root's own list is not there.
        """
        known = read_roots(roots)
        lists = read_lists(revoked)
        serials: dict[str, frozenset[int]] = {}
        numbers: dict[str, int] = {}
        with parsing():
            for name, root in known.items():
                own = [found for found in lists if _is_by(found, root)]
                if not own:
                    raise ValueError(f"there is no revocation list signed by the root {root.subject.rfc4514_string()}")
                newest = max(own, key=_number)
                numbers[name] = _number(newest)
                serials[name] = frozenset(entry.serial_number for entry in newest)
        return cls(federation, known, serials, numbers)

    def identify(self, certificate: x509.Certificate, *, now: float) -> Identity:
        """Return who shows a certificate.

        Args:
            certificate: of the peer, which has proven that it holds the key.
            now: seconds since 1970.

        Raises:
            IdentityError: it is not one of this federation's, is out of date, or is revoked.
        """
        federation, name, role = read_profile(certificate)
        if not _is_strong(certificate):
            raise IdentityError("a certificate is signed with an outdated hash", code="malformed")
        issuer = next((known for known, root in self.roots.items() if _issued(certificate, root)), None)
        if issuer is None:
            raise IdentityError(
                f"no root of {self.federation} has issued a certificate that names {name} of {federation}",
                code="untrusted",
            )
        if federation != self.federation:
            raise IdentityError(
                f"a certificate is of {federation}, expected {self.federation}", code="wrong-federation"
            )
        not_before = certificate.not_valid_before_utc.timestamp()
        if now < not_before:
            raise IdentityError(
                f"{name}'s certificate is valid from {_moment(not_before)}, and this clock says {_moment(now)}",
                code="not-yet-valid",
            )
        identity = Identity(
            federation,
            name,
            role,
            certificate.not_valid_after_utc.timestamp(),
            certificate.serial_number,
            fingerprint(certificate),
            issuer,
        )
        self.check(identity, now=now)
        return identity

    def check(self, identity: Identity, *, now: float) -> None:
        """Check that what was accepted before still is.

        Raises:
            IdentityError: it has expired, was revoked, or its root is no longer trusted.
        """
        root = self.roots.get(identity.root)
        if root is None:
            raise IdentityError(f"the root of {identity.name}'s certificate is no longer trusted", code="untrusted")
        if identity.serial in self.revoked[identity.root]:
            raise IdentityError(f"{identity.name}'s certificate {identity.serial:x} is revoked", code="revoked")
        not_after = min(identity.not_after, root.not_valid_after_utc.timestamp())
        if now >= not_after:
            raise IdentityError(f"{identity.name}'s certificate expired at {_moment(not_after)}", code="expired")

    def check_successor(self, newer: Trust) -> None:
        """Check that lists which are to replace these are no older.

        Raises:
            ValueError: one has a lower number.
        """
        for name, number in self.numbers.items():
            if newer.numbers.get(name, number) < number:
                raise ValueError(f"it holds list number {newer.numbers[name]}, and number {number} is known already")


def read_roots(pem: bytes) -> dict[str, x509.Certificate]:
    """Read root certificates in PEM, by fingerprint, in their order.

    Raises:
        ValueError: they cannot be read, or one is no root.
    """
    with parsing():
        found = {fingerprint(root): root for root in x509.load_pem_x509_certificates(pem)}
        for root in found.values():
            _check_root(root)
    return found


def _check_root(root: x509.Certificate) -> None:
    title = root.subject.rfc4514_string()
    try:
        ca = root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        usage = root.extensions.get_extension_for_class(x509.KeyUsage).value
        check_key(root.public_key())
    except (x509.ExtensionNotFound, IdentityError) as exc:
        raise ValueError(f"{title} is no root: {exc}") from exc
    if not ca or usage != ISSUES_ONLY or not _issued(root, root):
        raise ValueError(f"{title} is no root: it does not sign itself, certificates and lists, and nothing else")


def read_lists(pem: bytes) -> list[x509.CertificateRevocationList]:
    """Read revocation lists in PEM.

    Raises:
        ValueError: they cannot be read, or there is none.
    """
    with parsing():
        found = [x509.load_pem_x509_crl(match) for match in _PEM_LIST.findall(pem)]
        if not found:
            raise ValueError("it holds no revocation list in PEM")
        for one in found:
            for extension in one.extensions:
                if extension.critical:
                    raise ValueError(f"a list's extension {extension.oid.dotted_string} is critical and not known here")
    return found


def _number(found: x509.CertificateRevocationList) -> int:
    try:
        return found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound as exc:
        raise ValueError("a revocation list has no number") from exc


def _is_by(found: x509.CertificateRevocationList, root: x509.Certificate) -> bool:
    return (
        found.issuer == root.subject and _is_strong(found) and found.is_signature_valid(root.public_key())  # type: ignore[arg-type]  # check_key knows which keys there are
    )


def _is_strong(signed: x509.Certificate | x509.CertificateRevocationList) -> bool:
    """Whether a signature is of SHA-256 or longer, or of a kind that needs none, such as Ed25519's."""
    try:
        return isinstance(signed.signature_hash_algorithm, (*_STRONG, type(None)))
    except UnsupportedAlgorithm:
        return False


def _issued(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _moment(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
