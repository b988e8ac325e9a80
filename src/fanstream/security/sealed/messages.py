"""What is signed and sent besides the sealed data: canonical msgpack arrays, of which there is one spelling each."""

from __future__ import annotations

import struct
from typing import Any, Final, TypeVar

import msgspec

from ...errors import SealError

DAY: Final = 24 * 3600
SKEW: Final = 300
"""Seconds by which two sites' clocks may differ."""
VERSION: Final = 1
STREAM_ID: Final = 16
CHUNK: Final = 1024 * 1024
SMALLEST_CHUNK: Final = 1024

_encode = msgspec.msgpack.Encoder().encode
_T = TypeVar("_T", bound=msgspec.Struct)


class Message(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A canonical body."""

    def encode(self) -> bytes:
        """Return its one spelling."""
        return _encode(self)


class Header(Message, frozen=True):
    """All that a sealed stream's opener says about it, the same for every site.

    Attributes:
        version: 1.
        suite: the suite's name.
        federation: what the sites' certificates name.
        stream: the stream's id, 16 bytes.
        opener: the name of the site that opens it.
        epoch: the opener's incarnation.
        channel, topic: the stream's address.
        targets: names of the sites, sorted.
        chunk: bytes of plaintext in a sealed chunk, at most.
        created, expires: seconds since 1970.
        context: SHA-256 of the sealed context.
        commit: commits the opener to the root.
    """

    version: int
    suite: str
    federation: str
    stream: bytes
    opener: str
    epoch: bytes
    channel: str
    topic: str
    targets: list[str]
    chunk: int
    created: int
    expires: int
    context: bytes
    commit: bytes


class PreKey(Message, frozen=True):
    """A public key that a site will be able to unwrap with for a while.

    Attributes:
        kind: ``prekey-v1``.
        federation, site: whose it is.
        certificate: SHA-256 of the certificate that signs.
        suite: the suite's name.
        key_id: 16 random bytes.
        public: the public key.
        not_before, not_after: seconds since 1970.
        challenge: the asker's 32 bytes.
    """

    kind: str
    federation: str
    site: str
    certificate: bytes
    suite: str
    key_id: bytes
    public: bytes
    not_before: int
    not_after: int
    challenge: bytes


class Signed(Message, frozen=True):
    """A body with its signature and the certificate chain of the site that signed it, leaf first, as DER."""

    body: bytes
    signature: bytes
    chain: list[bytes]


class Invitation(Message, frozen=True):
    """What OPEN carries to one site.

    Attributes:
        header: the signed header.
        key_id: which pre-key the keys are wrapped for.
        wrapped: the root and the pair key.
        context: what the application sends along, sealed.
    """

    header: Signed
    key_id: bytes
    wrapped: bytes
    context: bytes


class Sealing(Message, frozen=True):
    """The clear head of a sealed object or reply.

    Attributes:
        attempt: 0, or how often the object was produced again.
        head: bytes of plaintext in the first part, which describes the others.
        signatures: of an object's spans, in order; none for a reply.
        sealed: the ciphertext where it is small; empty where it travels apart.
    """

    attempt: int
    head: int
    signatures: list[bytes]
    sealed: bytes


_decoders: dict[type, Any] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (Header, PreKey, Signed, Invitation, Sealing)
}


def decode(kind: type[_T], data: bytes | memoryview) -> _T:
    """Decode a canonical body.

    Raises:
        SealError: the bytes are no such body, or not its one spelling.
    """
    try:
        body: _T = _decoders[kind].decode(data)
        same = _encode(body) == data
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise SealError(f"{kind.__name__} of {len(data)} bytes cannot be decoded: {exc}") from exc
    if not same:
        raise SealError(f"{kind.__name__} of {len(data)} bytes is not in its canonical form")
    return body


def join(*parts: str | bytes) -> bytes:
    """Encode several strings as one, such that no other strings give the same."""
    return _encode(parts)


PLACE: Final = struct.Struct(">QH")
"""seq and attempt."""
SEGMENT: Final = struct.Struct(">QHI")
"""seq, attempt and segment."""
