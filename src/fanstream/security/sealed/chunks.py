"""Bulk data, sealed in chunks (the STREAM construction) and, where it has many readers, signed in spans.

What is sealed is a sequence of parts: the first, the *head*, tells of the others. Each part is cut into chunks of its
own, so that each can be opened straight into the memory it will live in. Chunks are numbered over all parts.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ...errors import SealError
from .messages import SEGMENT
from .suites import Digest, expand

TAG: Final = 16
SEGMENT_CHUNKS: Final = 1 << 16
"""Chunks under one key: 64 GiB of chunks of 1 MiB."""
SPAN_CHUNKS: Final = 64
"""A signature covers the ciphertext up to each multiple of as many full chunks, and up to the end."""

_NONCE: Final = struct.Struct(">7xIB")
_AAD: Final = struct.Struct(">QHIBI")  # seq, attempt, segment, status, head
_STATEMENT: Final = struct.Struct(">QHBIQ")  # seq, attempt, status, head, length
_COUNT: Final = struct.Struct(">I")
_SIZE: Final = struct.Struct(">Q")

Sign = Callable[[bytes], bytes]
Check = Callable[[bytes, bytes], None]
"""Takes a signature and a message, and raises SealError where they do not belong together."""


@dataclass(frozen=True, slots=True)
class Lane:
    """What the sealed objects of one kind and stream have in common.

    Attributes:
        secret: what their keys are derived from.
        label: the kind: ``obj``, ``reply`` or ``ctx``.
        stream: the stream's id.
        bound: what the chunks are bound to besides their place.
        chunk: bytes of plaintext in a chunk, at most.
        digest: makes the running hash of what is signed; None where nothing is.
    """

    secret: bytes
    label: bytes
    stream: bytes
    bound: bytes
    chunk: int
    digest: Callable[[], Digest] | None = None

    @property
    def span(self) -> int:
        """Bytes of ciphertext from one signature to the next."""
        return SPAN_CHUNKS * (self.chunk + TAG)

    def sealed_size(self, sizes: Sequence[int]) -> int:
        """Return the bytes of ciphertext of parts of these sizes."""
        chunk = self.chunk
        return sum(sizes) + TAG * sum([(size + chunk - 1) // chunk for size in sizes])


@dataclass(frozen=True, slots=True)
class Place:
    """Which object, or reply to it: its number, its attempt, and its status, a byte that both ends give a meaning."""

    seq: int
    attempt: int = 0
    status: int = 0


class _Cipher:
    """Keys, nonces and associated data of one object's chunks, in their order."""

    __slots__ = ("_aad", "_head", "_index", "_key", "_lane", "_place")

    def __init__(self, lane: Lane, place: Place, head: int) -> None:
        self._lane = lane
        self._place = place
        self._head = head
        self._index = 0

    def next(self, last: bool) -> tuple[AESGCM, bytes, bytes]:
        """Return the next chunk's key, nonce and associated data."""
        segment, number = divmod(self._index, SEGMENT_CHUNKS)
        self._index += 1
        if not number:
            lane, place = self._lane, self._place
            context = lane.stream + SEGMENT.pack(place.seq, place.attempt, segment)
            self._key = AESGCM(expand(lane.secret, lane.label, context))
            self._aad = lane.bound + _AAD.pack(place.seq, place.attempt, segment, place.status, self._head)
        return self._key, _NONCE.pack(number, last), self._aad


class _Statements:
    """What the signatures of one object say, as its ciphertext passes by."""

    __slots__ = ("_digest", "_head", "_lane", "_place", "done")

    def __init__(self, lane: Lane, place: Place, head: int) -> None:
        assert lane.digest is not None
        self._lane = lane
        self._place = place
        self._head = head
        self._digest = lane.digest()
        self.done = 0

    def update(self, data: memoryview) -> None:
        """Take the next bytes; never beyond ``next_end``."""
        self._digest.update(data)
        self.done += len(data)

    @property
    def next_end(self) -> int:
        """Where the span ends that is being taken."""
        span = self._lane.span
        return self.done - self.done % span + span

    def statement(self) -> bytes:
        """Return what is to be signed of all that was taken."""
        place = self._place
        facts = _STATEMENT.pack(place.seq, place.attempt, place.status, self._head, self.done)
        return b"sealed-v1/obj" + self._lane.bound + facts + self._digest.digest()


def describe(envelope: bytes, sizes: Sequence[int]) -> bytes:
    """Make the head of an object: how many further parts there are, their sizes, and the envelope."""
    return b"".join([_COUNT.pack(len(sizes)), *map(_SIZE.pack, sizes), envelope])


def head_size(envelope: bytes, sizes: Sequence[int]) -> int:
    """Return the bytes of what ``describe`` makes."""
    return _COUNT.size + _SIZE.size * len(sizes) + len(envelope)


def seal(lane: Lane, place: Place, parts: Sequence[bytes | memoryview], out: memoryview, sign: Sign) -> list[bytes]:
    """Seal parts into *out*, which has ``lane.sealed_size`` bytes.

    Args:
        lane: what it has in common with others.
        place: which one it is.
        parts: the head, and what it describes; none is empty.
        out: takes the ciphertext.
        sign: signs its spans; not called where the lane has no digest.

    Returns:
        The signatures, in order.
    """
    head, total = len(parts[0]), len(out)
    cipher = _Cipher(lane, place, head)
    statements = _Statements(lane, place, head) if lane.digest is not None else None
    signatures: list[bytes] = []
    at = 0
    for part in parts:
        view = memoryview(part)
        for begin in range(0, len(view), lane.chunk):
            piece = view[begin : begin + lane.chunk]
            end = at + len(piece) + TAG
            key, nonce, aad = cipher.next(end == total)
            key.encrypt_into(nonce, piece, aad, out[at:end])
            at = end
            while statements is not None and statements.done < end:
                statements.update(out[statements.done : min(end, statements.next_end)])
                if statements.done == total or not statements.done % lane.span:
                    signatures.append(sign(statements.statement()))
    return signatures


class Opening:
    """One sealed object being opened: first its ``head``, then the rest ``into`` its destinations.

    Nothing is decrypted before a signature that covers it has been checked, if the lane is a signed one.

    Args:
        lane: what it has in common with others.
        place: which one it has to be.
        head: bytes of plaintext in its first part, as its clear head says.
        sealed: the ciphertext, whole.
        signatures: of its spans.
        check: checks them.

    Attributes:
        sizes: of the parts after the head, once that is open.
    """

    __slots__ = ("_at", "_check", "_cipher", "_head", "_lane", "_sealed", "_signatures", "_statements", "sizes")

    def __init__(
        self, lane: Lane, place: Place, head: int, sealed: memoryview, signatures: Sequence[bytes], check: Check
    ) -> None:
        spans = (len(sealed) + lane.span - 1) // lane.span if lane.digest is not None else 0
        if len(signatures) != spans:
            raise SealError(f"{len(signatures)} signatures, expected {spans} for {len(sealed)} bytes")
        if not 0 < head < 1 << 32 or lane.sealed_size([head]) > len(sealed):
            raise SealError(f"a head of {head} bytes in {len(sealed)} bytes of ciphertext")
        self._lane = lane
        self._cipher = _Cipher(lane, place, head)
        self._statements = _Statements(lane, place, head) if lane.digest is not None else None
        self._signatures = signatures
        self._check = check
        self._head = head
        self._sealed = sealed
        self._at = 0
        self.sizes: Sequence[int] = ()

    def _cover(self, end: int) -> None:
        """Check signatures until one covers the ciphertext up to *end*."""
        statements, span = self._statements, self._lane.span
        while statements is not None and statements.done < end:
            index = statements.done // span
            statements.update(self._sealed[statements.done : statements.next_end])
            self._check(self._signatures[index], statements.statement())

    def _open(self, part: memoryview) -> None:
        chunk, sealed = self._lane.chunk, self._sealed
        for begin in range(0, len(part), chunk):
            piece = part[begin : begin + chunk]
            end = self._at + len(piece) + TAG
            self._cover(end)
            key, nonce, aad = self._cipher.next(end == len(sealed))
            try:
                key.decrypt_into(nonce, sealed[self._at : end], aad, piece)
            except InvalidTag as exc:
                raise SealError("a chunk was changed, moved, or sealed for something else") from exc
            self._at = end

    def head(self) -> memoryview:
        """Open the head.

        Returns:
            The envelope.

        Raises:
            SealError: it is not what the sender sealed.
        """
        plain = memoryview(bytearray(self._head))
        self._open(plain)
        if len(plain) < _COUNT.size:
            raise SealError(f"a head of {len(plain)} bytes, expected at least {_COUNT.size}")
        (count,) = _COUNT.unpack_from(plain)
        start = _COUNT.size + _SIZE.size * count
        if start > len(plain):
            raise SealError(f"a head of {len(plain)} bytes that describes {count} parts")
        self.sizes = struct.unpack_from(f">{count}Q", plain, _COUNT.size)
        expected = self._lane.sealed_size([self._head, *self.sizes])
        if 0 in self.sizes or expected != len(self._sealed):
            raise SealError(f"{len(self._sealed)} bytes of ciphertext, {expected} described")
        return plain[start:]

    def into(self, destinations: Sequence[memoryview]) -> None:
        """Open the rest; *destinations* have the sizes that the head described.

        Raises:
            SealError: it is not what the sender sealed; the destinations hold nothing of use.
        """
        assert [len(view) for view in destinations] == list(self.sizes), "destinations of other sizes than described"
        for view in destinations:
            self._open(view)
