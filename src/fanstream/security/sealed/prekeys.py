"""Pre-keys: public keys of a site's for a few hours, whose private halves are then forgotten.

They give forward secrecy, and bound what a site must remember against replays: a stream opens once for each pre-key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from ...errors import SealError
from .messages import DAY, SKEW, PreKey, Signed, decode
from .suites import RandomBytes, Suite, Verifier, fingerprint

RENEWED_AFTER: Final = 3600
LIVES: Final = 2 * 3600
"""Seconds for which a pre-key may be used; forgotten SKEW later."""
MOST_STREAMS: Final = 1 << 16
"""Streams that may be opened with one pre-key: what is remembered of each is its id."""
CHALLENGE: Final = 32

_KIND: Final = "prekey-v1"
_LABEL: Final = b"sealed-v1/prekey"


class Member(Protocol):
    """A site of a federation as it is now: what it signs with, and how it knows the others.

    After its certificate was renewed it is another member.

    Attributes:
        name: the site's.
        federation: the name of the federation whose root vouches for all its sites.
        chain: the site's certificate and those between it and the root, as DER, its own first.
    """

    @property
    def name(self) -> str: ...
    @property
    def federation(self) -> str: ...
    @property
    def chain(self) -> Sequence[bytes]: ...

    def sign(self, message: bytes) -> bytes:
        """Sign with the certificate's key: ECDSA or RSA-PSS with SHA-256, or Ed25519."""

    def site_of(self, chain: Sequence[bytes], now: float) -> str:
        """Return the name of the site that a certificate chain belongs to.

        Raises:
            SecurityError: the chain does not end at the federation's root, is not valid at *now* (seconds since
                1970), or is denied.
        """


def sign(member: Member, label: bytes, body: bytes) -> Signed:
    """Sign a body as a site."""
    return Signed(body, member.sign(label + body), list(member.chain))


def signer_of(signed: Signed, member: Member, suite: Suite, now: float) -> tuple[str, Verifier]:
    """Return who signed a body by its certificate, and what checks the signature.

    Raises:
        SecurityError: the certificate is not one to be trusted.
    """
    if not signed.chain:
        raise SealError("a signature without a certificate")
    name = member.site_of(signed.chain, now)
    return name, Verifier(signed.chain[0], suite)


@dataclass(slots=True)
class HeldKey:
    """A pre-key whose private half is here.

    Attributes:
        private: the private half.
        prekey: what is said of it, without a challenge.
        seen: ids of the streams that were opened with it.
    """

    private: Any
    prekey: PreKey
    seen: set[bytes] = field(default_factory=set)


class KeyRing:
    """The pre-keys of one site.

    Args:
        suite: the suite in use.
        random_bytes: makes keys.
    """

    def __init__(self, suite: Suite, random_bytes: RandomBytes) -> None:
        self._suite = suite
        self._random = random_bytes
        self._held: dict[bytes, HeldKey] = {}
        self._newest: HeldKey | None = None

    def __len__(self) -> int:
        return len(self._held)

    def answer(self, member: Member, challenge: bytes, now: float) -> bytes:
        """Sign the newest pre-key for one who asks; a new one is made each hour, and with each new certificate.

        Args:
            member: the site that the keys belong to.
            challenge: the asker's 32 bytes.
            now: seconds since 1970.

        Raises:
            SealError: the challenge is not one of 32 bytes.
        """
        if len(challenge) != CHALLENGE:
            raise SealError(f"a challenge of {len(challenge)} bytes, expected {CHALLENGE}")
        self.forget(now)
        newest = self._newest
        if (
            newest is None
            or newest.prekey.certificate != fingerprint(member.chain[0])
            or not newest.prekey.not_before <= now < newest.prekey.not_before + RENEWED_AFTER
            or len(newest.seen) * 2 > MOST_STREAMS
        ):
            newest = self._newest = self._make(member, int(now))
        said = newest.prekey
        body = PreKey(
            said.kind, said.federation, said.site, said.certificate, said.suite, said.key_id, said.public,
            said.not_before, said.not_after, challenge,
        ).encode()  # fmt: skip
        return sign(member, _LABEL, body).encode()

    def _make(self, member: Member, now: int) -> HeldKey:
        private, public = self._suite.make_key(self._random)
        key_id = self._random(16)
        said = PreKey(
            _KIND, member.federation, member.name, fingerprint(member.chain[0]), self._suite.name, key_id, public,
            now, now + LIVES, b"",
        )  # fmt: skip
        held = self._held[key_id] = HeldKey(private, said)
        return held

    def forget(self, now: float) -> None:
        """Drop the private halves that have had their time."""
        for key_id, held in list(self._held.items()):
            if now >= held.prekey.not_after + SKEW:
                del self._held[key_id]
                if held is self._newest:
                    self._newest = None

    def use(self, key_id: bytes, stream: bytes, now: float) -> HeldKey:
        """Return a pre-key for a stream that it was not used for yet; ``HeldKey.seen`` is the caller's to extend.

        Raises:
            SealError: it was never here, has been forgotten, or the stream was opened before.
        """
        self.forget(now)
        held = self._held.get(key_id)
        if held is None:
            raise SealError("the keys are wrapped for a pre-key that this site does not have, or no more")
        if stream in held.seen:
            raise SealError("a stream of this id was opened before: a replay")
        if len(held.seen) >= MOST_STREAMS:
            raise SealError(f"{MOST_STREAMS} streams were opened with this pre-key: ask for a new one")
        return held


def check_prekey(data: bytes, site: str, challenge: bytes, me: Member, suite: Suite, now: float) -> PreKey:
    """Check what a site has answered, and return its pre-key.

    Args:
        data: what ``KeyRing.answer`` made.
        site: who was asked.
        challenge: what it was asked with.
        me: the asker.
        suite: the asker's.
        now: seconds since 1970.

    Raises:
        SecurityError: it is not that site's, not fresh, or of another suite; says which.
    """
    signed = decode(Signed, data)
    name, verifier = signer_of(signed, me, suite, now)
    verifier.check(signed.signature, _LABEL + signed.body)
    said = decode(PreKey, signed.body)
    checks: dict[str, tuple[object, object]] = {
        "kind": (said.kind, _KIND),
        "federation": (said.federation, me.federation),
        "suite": (said.suite, suite.name),
        "site": (said.site, site),
        "certificate's site": (name, site),
        "certificate": (said.certificate, fingerprint(signed.chain[0])),
        "challenge": (said.challenge, challenge),
    }
    for what, (is_so, expected) in checks.items():
        if is_so != expected:
            raise SealError(f"the pre-key's {what} is {is_so!r}, expected {expected!r}")
    if said.not_after - said.not_before > DAY or not said.not_before - SKEW <= now < said.not_after:
        raise SealError(f"the pre-key is good from {said.not_before} to {said.not_after}, and now is {int(now)}")
    return said
