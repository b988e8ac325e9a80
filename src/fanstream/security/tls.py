"""TLS between the sites of a federation: mutual, of version 1.3, and without a peer whose identity was not checked.

The check of the peer's identity is the last step of the handshake itself, in ``do_handshake``, so no way of driving TLS
(asyncio's, uvloop's) can hand on data of a peer that was not checked. ``transports/fast_tls.py``, which makes no
``SSLObject``, does the same with what is here.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..errors import IdentityError
from .identity import Identity, Role, parsing
from .trust import Trust

LONGEST: Final = 64 * 1024  # bytes of a handshake (threat T1); an honest one has about 2,000
_CODES: Final = {9: "not-yet-valid", 10: "expired", 26: "wrong-role"}  # OpenSSL's X509_V_ERR_...


class FederationHandshake(ssl.SSLObject):
    """One side of a connection.

    Attributes:
        identity: who the peer is; None until the handshake is over.
    """

    identity: Identity | None = None
    expected: str | None = None
    incoming: ssl.MemoryBIO
    _read = 0

    def do_handshake(self) -> None:
        """Shake hands as far as what has arrived goes, and check the peer's certificate once they are shaken.

        Raises:
            ssl.SSLWantReadError: more has to arrive.
            ssl.SSLCertVerificationError: the peer's certificate is not accepted; its cause is an ``IdentityError``.
            ssl.SSLError: the peer does something else than shake hands.
        """
        before = self.incoming.pending
        try:
            super().do_handshake()
        finally:
            self._count(before)
        context = self.context
        assert isinstance(context, FederationContext)
        self.identity = context.identify(self.getpeercert(binary_form=True), self.expected)

    def _count(self, before: int) -> None:
        self._read += before - self.incoming.pending
        if self._read > LONGEST:
            raise ssl.SSLError(f"a handshake of more than {LONGEST} bytes")


def explain(refusal: ssl.SSLCertVerificationError) -> IdentityError:
    """Say why a peer's certificate was not accepted, by us or by OpenSSL."""
    if isinstance(refusal.__cause__, IdentityError):
        return refusal.__cause__
    code = _CODES.get(refusal.verify_code, "untrusted")
    return IdentityError(f"its certificate is not accepted: {refusal.verify_message}", code=code)


class FederationContext(ssl.SSLContext):
    """What a hub needs for all its listeners, or a site for dialling; made by :func:`make_context`."""

    sslobject_class = FederationHandshake
    trust: Trust
    peers: Role
    clock: Callable[[], float]

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: Any = None,
    ) -> ssl.SSLObject:
        """Begin a connection.

        *server_hostname* is the name of the site that has to answer. It is compared with the peer's certificate, and
        not sent: a name in the clear would tell an observer what the certificates, encrypted, do not.
        """
        made = super().wrap_bio(incoming, outgoing, server_side)
        assert isinstance(made, FederationHandshake)
        made.incoming = incoming
        made.expected = server_hostname.decode() if isinstance(server_hostname, bytes) else server_hostname
        return made

    def identify(self, shown: bytes | None, expected: str | None) -> Identity:
        """Return who has shown a certificate; the last step of a handshake.

        Args:
            shown: it, in DER. TLS has found that it is a root's, and that the peer holds its key.
            expected: the name that it has to have; None takes any site.

        Raises:
            ssl.SSLCertVerificationError: it is not accepted; its cause is an ``IdentityError``.
        """
        assert shown is not None, "verified without a certificate"
        try:
            with parsing():
                certificate = x509.load_der_x509_certificate(shown)
            return self.judge(certificate, expected)
        except IdentityError as exc:
            raise ssl.SSLCertVerificationError(1, str(exc)) from exc
        except ValueError as exc:
            error = IdentityError(f"its certificate cannot be read: {exc}", code="malformed")
            raise ssl.SSLCertVerificationError(1, str(error)) from error

    def judge(self, certificate: x509.Certificate, expected: str | None) -> Identity:
        """Return who the peer is.

        Args:
            certificate: the peer's, whose key it holds.
            expected: the name that it has to have; None takes any site.

        Raises:
            IdentityError: it is not accepted.
        """
        identity = self.trust.identify(certificate, now=self.clock())
        if identity.role is not self.peers:
            raise IdentityError(
                f"{identity.name} has a {identity.role}'s certificate, expected a {self.peers}'s", code="wrong-role"
            )
        if expected is not None and identity.name != expected:
            raise IdentityError(f"{identity.name} answers, expected {expected}", code="wrong-name")
        return identity


def make_context(
    role: Role, certificate: Path, key: Path, trust: Trust, clock: Callable[[], float]
) -> FederationContext:
    """Make what one side needs.

    Args:
        role: this side's.
        certificate: its file.
        key: the file of its key.
        trust: the federation's roots, and what they have revoked.
        clock: returns seconds since 1970.

    Raises:
        ssl.SSLError: OpenSSL cannot use them.
        OSError: a file cannot be read.
    """
    listens = role is Role.HUB
    context = FederationContext(ssl.PROTOCOL_TLS_SERVER if listens else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # judge() compares the site's name, which is no host's
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    if listens:
        context.num_tickets = 0  # who comes back shows its certificate again, so that nothing outlives a revocation
    context.load_verify_locations(cadata=b"".join(root.public_bytes(Encoding.DER) for root in trust.roots.values()))
    context.load_cert_chain(certificate, key)
    context.trust = trust
    context.peers = Role.SITE if listens else Role.HUB
    context.clock = clock
    return context
