"""A federation's root: it issues certificates, and signs the list of those that are revoked. No files here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import NameOID

from .identity import ISSUES_ONLY, PURPOSES, SIGNS_ONLY, Role, uri

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

_EARLIER: Final = timedelta(hours=1)  # clocks of a federation's machines may be that far apart
_PSS: Final = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)  # RFC 8446, section 4.2.3


class KeyKind(StrEnum):
    """Which keys a federation's certificates have."""

    ECDSA_P256 = "ecdsa-p256"
    ED25519 = "ed25519"
    RSA_PSS_3072 = "rsa-pss-3072"


def make_key(kind: KeyKind) -> PrivateKey:
    """Make a private key."""
    match kind:
        case KeyKind.ECDSA_P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyKind.ED25519:
            return ed25519.Ed25519PrivateKey.generate()
        case KeyKind.RSA_PSS_3072:
            return rsa.generate_private_key(65537, 3072)


def key_pem(key: PrivateKey) -> bytes:
    """Return a private key in PEM, unencrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: PrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate in PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key in PEM, unencrypted."""
        return key_pem(self.key)


@dataclass(frozen=True, slots=True)
class Authority(Issued):
    """One root of a federation."""

    @classmethod
    def make(cls, federation: str, *, kind: KeyKind = KeyKind.ECDSA_P256, lifetime: timedelta, now: float) -> Self:
        """Make a root.

        Args:
            federation: its federation's name.
            kind: of its key.
            lifetime: from *now* on.
            now: seconds since 1970.
        """
        key = make_key(kind)
        own_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        # Roots of one federation have different names, so that nothing that looks up by name mixes them up.
        name = _name(f"root {own_id.digest.hex()[:8]} of {federation}")
        start = datetime.fromtimestamp(now, UTC).replace(microsecond=0)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start - _EARLIER)
            .not_valid_after(start + lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(ISSUES_ONLY, critical=True)
            .add_extension(own_id, critical=False)
        )
        return cls(certificate.sign(key, _hash(key), rsa_padding=_padding(key)), key)

    def issue(
        self, federation: str, name: str, role: Role, *, kind: KeyKind, lifetime: timedelta, now: float
    ) -> Issued:
        """Issue a certificate with a new key.

        Args:
            federation: the federation's name.
            name: the site's.
            role: hub or site.
            kind: of its key.
            lifetime: from *now* on; a certificate does not outlive its root.
            now: seconds since 1970.
        """
        key = make_key(kind)
        start = datetime.fromtimestamp(now, UTC).replace(microsecond=0)
        names = [x509.UniformResourceIdentifier(uri(federation, name))]
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(start - _EARLIER, self.certificate.not_valid_before_utc))
            .not_valid_after(min(start + lifetime, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(SIGNS_ONLY, critical=True)
            .add_extension(x509.ExtendedKeyUsage([PURPOSES[role]]), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(self._key_id(), critical=False)
        )
        return Issued(builder.sign(self.key, _hash(self.key), rsa_padding=_padding(self.key)), key)

    def revoke(self, serials: Iterable[int], *, number: int, now: float) -> bytes:
        """Sign the list of revoked certificates.

        Args:
            serials: of all that are revoked, those of earlier lists too.
            number: one more than that of the list before.
            now: seconds since 1970.

        Returns:
            The list, in PEM.
        """
        start = datetime.fromtimestamp(now, UTC).replace(microsecond=0)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(start)
            # A list has no date by which it is stale: its number says which is newer, and a link must not end only
            # because nothing was revoked.
            .next_update(max(self.certificate.not_valid_after_utc, start + _EARLIER))
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(self._key_id(), critical=False)
        )
        for serial in sorted(set(serials)):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start).build()
            builder = builder.add_revoked_certificate(entry)
        signed = builder.sign(self.key, _hash(self.key), rsa_padding=_padding(self.key))
        return signed.public_bytes(serialization.Encoding.PEM)

    def _key_id(self) -> x509.AuthorityKeyIdentifier:
        own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])  # X.520's longest


def _hash(key: PrivateKey) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def _padding(key: PrivateKey) -> padding.PSS | None:
    return _PSS if isinstance(key, rsa.RSAPrivateKey) else None
