"""Who a certificate says it is: the one profile that all certificates of a federation keep to.

A certificate names its site in one URI, ``fed://<federation>/site/<name>``, and its role by what it may be used for:
``serverAuth`` makes a hub, ``clientAuth`` a site. Its key signs and does nothing else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from ..arguments import SITE_NAME
from ..errors import IdentityError

_URI: Final = re.compile(r"fed://([^/]+)/site/([^/]+)\Z")
_LEAST_RSA: Final = 3072  # bits: as strong as P-256 (NIST SP 800-57, part 1, table 2)
_CRITICAL: Final = frozenset(
    (
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    )
)


class Role(StrEnum):
    """What a certificate lets its holder be on a link."""

    HUB = "hub"
    """It is dialled."""
    SITE = "site"
    """It dials."""


PURPOSES: Final = {Role.HUB: ExtendedKeyUsageOID.SERVER_AUTH, Role.SITE: ExtendedKeyUsageOID.CLIENT_AUTH}


@dataclass(frozen=True, slots=True)
class Identity:
    """What a verified certificate says.

    Attributes:
        federation: the federation's name.
        name: the site's name; a hub is a site too.
        role: hub or site.
        not_after: when it expires, in seconds since 1970.
        serial: the certificate's number, by which it is revoked.
        fingerprint: SHA-256 of the certificate, in hex.
        root: SHA-256 of the root that issued it, in hex.
    """

    federation: str
    name: str
    role: Role
    not_after: float
    serial: int
    fingerprint: str
    root: str


@contextmanager
def parsing() -> Iterator[None]:
    """Let whatever ``cryptography`` raises of bytes that are no sound certificate, list or key be a ValueError."""
    try:
        yield
    except (
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        UnsupportedAlgorithm,
    ) as exc:
        raise ValueError(str(exc)) from exc


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate, in hex."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def uri(federation: str, name: str) -> str:
    """Return the URI that names a site in its certificate."""
    return f"fed://{federation}/site/{name}"


def read_profile(certificate: x509.Certificate) -> tuple[str, str, Role]:
    """Return the federation, the site's name and the role that a certificate states; who issued it is not looked at.

    Raises:
        IdentityError: it does not keep to the profile.
    """
    try:
        with parsing():
            return _read_profile(certificate)
    except x509.ExtensionNotFound as exc:
        raise _malformed(f"it has no {exc.oid._name}") from exc
    except ValueError as exc:
        raise _malformed(f"it cannot be read: {exc}") from exc


def _read_profile(certificate: x509.Certificate) -> tuple[str, str, Role]:
    extensions = certificate.extensions
    for extension in extensions:
        if extension.critical and extension.oid not in _CRITICAL:
            raise _malformed(f"its extension {extension.oid.dotted_string} is critical and not known here")
    if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise _malformed("it is an authority's, and not a site's")
    if extensions.get_extension_for_class(x509.KeyUsage).value != SIGNS_ONLY:
        raise _malformed("its keyUsage is not digitalSignature alone")
    check_key(certificate.public_key())
    names = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    match names:
        case [x509.UniformResourceIdentifier(value=text)]:
            found = _URI.match(text)
            if found is None or not all(SITE_NAME.match(part) for part in found.groups()):
                raise _malformed(f"it names {text[:200]!r}, expected fed://<federation>/site/<name>")
        case _:
            raise _malformed(f"it has {len(names)} names, expected the one URI fed://<federation>/site/<name>")
    purposes = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    for role, purpose in PURPOSES.items():
        if purposes == [purpose]:
            return found[1], found[2], role
    raise _malformed("its extendedKeyUsage is neither serverAuth alone, a hub's, nor clientAuth alone, a site's")


def check_key(key: Any) -> None:
    """Accept ECDSA P-256, Ed25519, and RSA of 3072 bits and more.

    Raises:
        IdentityError: it is another public key.
    """
    match key:
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()) | ed25519.Ed25519PublicKey():
            return
        case rsa.RSAPublicKey(key_size=bits) if bits >= _LEAST_RSA:
            return
    size = getattr(key, "key_size", None)
    raise _malformed(
        f"its key is {type(key).__name__.removesuffix('PublicKey')}{f' of {size} bits' if size else ''}, "
        f"expected ECDSA P-256, Ed25519, or RSA of {_LEAST_RSA} bits or more"
    )


def _malformed(reason: str) -> IdentityError:
    return IdentityError(f"a certificate is no site's: {reason}", code="malformed")


def _usage(*, signs: bool = False, issues: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=issues,
        crl_sign=issues,
        encipher_only=False,
        decipher_only=False,
    )


SIGNS_ONLY: Final = _usage(signs=True)
ISSUES_ONLY: Final = _usage(issues=True)
