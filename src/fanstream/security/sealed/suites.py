"""The suites: which primitives seal a stream. A suite is configured, and never negotiated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import constant_time, hashes, hpke, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mlkem, padding, rsa, x25519
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from ...errors import SealError, SecurityError

KEY_SIZE: Final = 32
_MLKEM_SEED: Final = 64
_MLKEM_PUBLIC: Final = 1184
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_P256_SEED: Final = 48  # FIPS 186-5, appendix A.2.1: 128 bits more than the order, so that no scalar is more likely
_LEAST_RSA: Final = 3072
_PSS: Final = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32)

RandomBytes = Callable[[int], bytes]
"""Returns as many random bytes as it is asked for: ``os.urandom``."""


class Digest(Protocol):
    """A running hash; ``digest`` may be asked for in between."""

    def update(self, data: Any, /) -> Any: ...
    def digest(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Suite:
    """The primitives of one suite.

    Attributes:
        name: as configured, and as signed.
        kem: wraps keys for a site, with HKDF-SHA256 and AES-256-GCM.
        digest: makes the running hash that signatures cover; 32 bytes.
        signers: the kinds of public key that may sign.
    """

    name: str
    kem: hpke.KEM
    digest: Callable[[], Digest]
    signers: tuple[type, ...]

    def make_key(self, random_bytes: RandomBytes) -> tuple[Any, bytes]:
        """Make a key pair for wraps.

        Returns:
            The private half, and the public half as bytes.
        """
        if self.kem == hpke.KEM.P256:
            scalar = int.from_bytes(random_bytes(_P256_SEED), "big") % (_P256_ORDER - 1) + 1
            key = ec.derive_private_key(scalar, ec.SECP256R1())
            form = serialization.PublicFormat.UncompressedPoint
            return key, key.public_key().public_bytes(serialization.Encoding.X962, form)
        lattice = mlkem.MLKEM768PrivateKey.from_seed_bytes(random_bytes(_MLKEM_SEED))
        curve = x25519.X25519PrivateKey.from_private_bytes(random_bytes(KEY_SIZE))
        public = lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
        return hpke.MLKEM768X25519PrivateKey(lattice, curve), public

    def _load(self, public: bytes) -> Any:
        try:
            if self.kem == hpke.KEM.P256:
                return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
            return hpke.MLKEM768X25519PublicKey(
                mlkem.MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC]),
                x25519.X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC:]),
            )
        except ValueError as exc:
            raise SealError(f"a public key of {len(public)} bytes is none of suite {self.name}") from exc

    @property
    def _hpke(self) -> hpke.Suite:
        return hpke.Suite(self.kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)

    def wrap(self, secret: bytes, public: bytes, info: bytes) -> bytes:
        """Encrypt *secret* to the holder of a public key, bound to *info* (RFC 9180, base mode, single shot).

        Raises:
            SealError: *public* is no key of this suite.
        """
        try:
            return self._hpke.encrypt(secret, self._load(public), info=info)
        except ValueError as exc:  # X25519: a point of small order
            raise SealError(f"a public key of suite {self.name} cannot be used") from exc

    def unwrap(self, wrapped: bytes, private: Any, info: bytes) -> bytes:
        """Undo ``wrap``.

        Raises:
            SealError: it was made for another key or *info*, or changed.
        """
        try:
            return self._hpke.decrypt(wrapped, private, info=info)
        except (InvalidTag, ValueError) as exc:
            raise SealError("the wrapped key was not made for this site and stream, or was changed") from exc


class Verifier:
    """The public key of a certificate, which checks signatures.

    Args:
        certificate: DER; the caller has verified its chain.
        suite: says which kinds of key may sign.

    Raises:
        SecurityError: the certificate's key is of a kind that the suite does not accept.
    """

    __slots__ = ("_key",)

    _key: Any

    def __init__(self, certificate: bytes, suite: Suite) -> None:
        key: Any = x509.load_der_x509_certificate(certificate).public_key()
        curve = getattr(key, "curve", None)
        small = isinstance(key, rsa.RSAPublicKey) and key.key_size < _LEAST_RSA
        if not isinstance(key, suite.signers) or small or (curve is not None and curve.name != "secp256r1"):
            kind = f"{type(key).__name__} of {getattr(key, 'key_size', 256)} bits"
            raise SecurityError(f"the certificate holds an {kind}, which suite {suite.name} does not accept")
        self._key = key

    def check(self, signature: bytes, message: bytes) -> None:
        """Check a signature.

        Raises:
            SealError: the key's holder did not sign *message*.
        """
        key = self._key
        try:
            if isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            elif isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, message, _PSS, hashes.SHA256())
            else:
                key.verify(signature, message)
        except InvalidSignature as exc:
            raise SealError("a signature is not by the one who is said to have signed") from exc


def sign_with(key: Any, message: bytes) -> bytes:
    """Sign with a private key of a kind that ``Verifier`` knows."""
    signature: bytes
    if isinstance(key, ec.EllipticCurvePrivateKey):
        signature = key.sign(message, ec.ECDSA(hashes.SHA256()))
    elif isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(message, _PSS, hashes.SHA256())
    else:
        signature = key.sign(message)
    return signature


def expand(secret: bytes, label: bytes, context: bytes) -> bytes:
    """Derive a key of 32 bytes: HKDF-Expand (RFC 5869) with the label, a zero byte and the context as its info."""
    return HKDFExpand(hashes.SHA256(), KEY_SIZE, label + b"\0" + context).derive(secret)


def fingerprint(data: bytes | memoryview) -> bytes:
    """Return the SHA-256 of *data*."""
    return hashlib.sha256(data).digest()


def equal(left: bytes, right: bytes) -> bool:
    """Compare secrets in constant time."""
    return constant_time.bytes_eq(left, right)


def suite_named(name: str) -> Suite:
    """Return a suite: ``pq``, ``pq-sha256`` or ``fips``.

    Raises:
        SecurityError: there is none of that name, or what it needs is not installed.
    """
    any_signer = (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey, rsa.RSAPublicKey)
    if name == "fips":
        return Suite(name, hpke.KEM.P256, hashlib.sha256, (ec.EllipticCurvePublicKey,))
    if name == "pq-sha256":
        return Suite(name, hpke.KEM.MLKEM768_X25519, hashlib.sha256, any_signer)
    if name == "pq":
        try:
            from blake3 import blake3
        except ImportError as exc:
            raise SecurityError("suite pq hashes with BLAKE3: install blake3, or choose pq-sha256 everywhere") from exc
        return Suite(name, hpke.KEM.MLKEM768_X25519, blake3, any_signer)
    raise SecurityError(f"suite {name!r}, expected pq, pq-sha256 or fips")
