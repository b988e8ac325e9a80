"""A kit as sealed streams see it: what its site signs with, and how it knows the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..errors import SealError
from .authority import PrivateKey
from .identity import Identity, parsing
from .sealed.suites import sign_with
from .trust import Trust


class KitMember:
    """The site of a kit as it is now (``sealed.prekeys.Member``); whom it trusts follows the kit.

    Args:
        identity: who it is.
        certificate: its certificate.
        key: the certificate's key.
        trust: returns whom it trusts.
    """

    def __init__(
        self, identity: Identity, certificate: x509.Certificate, key: PrivateKey, trust: Callable[[], Trust]
    ) -> None:
        self.name = identity.name
        self.federation = identity.federation
        self.chain: Sequence[bytes] = (certificate.public_bytes(Encoding.DER),)
        self._key = key
        self._trust = trust

    def sign(self, message: bytes) -> bytes:
        """Sign with the certificate's key."""
        return sign_with(self._key, message)

    def site_of(self, chain: Sequence[bytes], now: float) -> str:
        """Return the name of the site that a certificate belongs to; roots issue sites' certificates themselves.

        Raises:
            SecurityError: it is not one of the federation's, is out of date, or is revoked.
        """
        if len(chain) != 1:
            raise SealError(f"a chain of {len(chain)} certificates, expected 1")
        try:
            with parsing():
                certificate = x509.load_der_x509_certificate(chain[0])
        except ValueError as exc:
            raise SealError("a certificate cannot be read") from exc
        return self._trust().identify(certificate, now=now).name
