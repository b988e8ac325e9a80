"""Certificates as no federation issues them: everything that the profile fixes can be set."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fanstream.security import Authority, Issued, Role
from fanstream.security.identity import PURPOSES, SIGNS_ONLY, uri
from fanstream.security.provision import Federation


def authority(federation: Federation) -> Authority:
    """The federation's root, with its key."""
    return federation._issuer()


def forge(
    root: Authority,
    name: str = "site-1",
    *,
    federation: str = "hospitals",
    role: Role = Role.SITE,
    names: Sequence[x509.GeneralName] | None = None,
    purposes: Sequence[x509.ObjectIdentifier] | None = None,
    usage: x509.KeyUsage = SIGNS_ONLY,
    ca: bool = False,
    key: Any = None,
    begins: timedelta = timedelta(hours=-1),
    ends: timedelta = timedelta(days=1),
    without: type[x509.ExtensionType] | None = None,
    extra: x509.ExtensionType | None = None,
) -> Issued:
    """Issue a certificate that is that of a site but for what is given."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=ca, path_length=None), True),
        (usage, True),
        (x509.ExtendedKeyUsage([PURPOSES[role]] if purposes is None else purposes), True),
        (
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier(uri(federation, name))] if names is None else names
            ),
            False,
        ),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key()), False),
    ]
    if extra is not None:
        extensions.append((extra, True))
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site-1")]))
        .issuer_name(root.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
    )
    for extension, critical in extensions:
        if without is None or not isinstance(extension, without):
            builder = builder.add_extension(extension, critical)
    return Issued(builder.sign(root.key, hashes.SHA256()), key)


def install(kit: Path, issued: Issued) -> Path:
    """Put a certificate and its key into a kit."""
    (kit / "certificate.pem").write_bytes(issued.certificate_pem)
    (kit / "key.pem").write_bytes(issued.key_pem)
    return kit
