"""One sealed stream: its opener's session, and that of each site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from ...errors import SealError, SecurityError
from .chunks import TAG, Check, Lane, Opening, Place, describe, head_size, seal
from .control import OPENER, SITE, Control
from .messages import (
    CHUNK,
    DAY,
    SKEW,
    SMALLEST_CHUNK,
    STREAM_ID,
    VERSION,
    Header,
    Invitation,
    PreKey,
    Sealing,
    Signed,
    decode,
    join,
)
from .prekeys import KeyRing, Member, signer_of
from .suites import KEY_SIZE, RandomBytes, Suite, equal, expand, fingerprint

MOST_OBJECTS: Final = 1 << 24
"""Objects under one root."""
INLINE: Final = 4 * 1024
"""Bytes of ciphertext up to which it travels within its clear head."""

_OPEN: Final = b"sealed-v1/open"
_CONTEXT: Final = Place(0)


class SealedObject(NamedTuple):
    """What is sent of an object or a reply.

    Attributes:
        envelope: its clear head, with the ciphertext where that is small.
        buffers: the ciphertext otherwise.
    """

    envelope: bytes
    buffers: tuple[memoryview, ...]


class _Sealer:
    """Seals objects of one lane, each place once: what was sealed is kept to be sent again, and never sealed again."""

    __slots__ = ("_lane", "_last", "_sign", "count")

    def __init__(self, lane: Lane, sign: Callable[[bytes], bytes]) -> None:
        self._lane = lane
        self._sign = sign
        self._last = (0, -1)
        self.count = 0

    def size_of(self, envelope: bytes, sizes: Sequence[int]) -> int:
        """Return the bytes of ciphertext of an object."""
        return self._lane.sealed_size([head_size(envelope, sizes), *sizes])

    def seal(self, place: Place, envelope: bytes, buffers: Sequence[memoryview], out: memoryview) -> SealedObject:
        """Seal one object; a key is never used twice.

        Raises:
            SealError: an object of this place, or a later one, was sealed before.
            SecurityError: the key has sealed as many objects as it may.
        """
        if self.count >= MOST_OBJECTS:
            raise SecurityError(f"the keys of this stream have sealed {self.count} objects: open a new stream")
        order = (place.attempt, place.seq)
        if order <= self._last:
            raise SealError(f"object {place.seq}, attempt {place.attempt} was sealed before, or a later one was")
        self._last = order
        self.count += 1
        head = describe(envelope, [len(buffer) for buffer in buffers])
        signatures = seal(self._lane, place, [head, *buffers], out, self._sign)
        small = len(out) <= INLINE
        sealing = Sealing(place.attempt, len(head), signatures, bytes(out) if small else b"")
        return SealedObject(sealing.encode(), () if small else (out,))


def _open(
    lane: Lane, place: Place, envelope: bytes | memoryview, buffers: Sequence[memoryview], check: Check
) -> Opening:
    sealing = decode(Sealing, bytes(envelope))
    if sealing.attempt != place.attempt:
        raise SealError(f"attempt {sealing.attempt}, expected {place.attempt}")
    if len(buffers) != (0 if sealing.sealed else 1):
        raise SealError(f"{len(buffers)} buffers beside {len(sealing.sealed)} bytes of ciphertext in the head")
    sealed = buffers[0] if buffers else memoryview(sealing.sealed)
    return Opening(lane, place, sealing.head, sealed, sealing.signatures, check)


def _unsigned(signature: bytes, message: bytes) -> None:
    raise SealError("a signature where there is none")


def _no_signature(message: bytes) -> bytes:
    raise AssertionError("replies are not signed")


def _context_lane(root: bytes, stream: bytes, chunk: int) -> Lane:
    return Lane(root, b"ctx", stream, b"", chunk)


def _object_lane(root: bytes, header: Header, hh: bytes, suite: Suite) -> Lane:
    return Lane(root, b"obj", header.stream, hh, header.chunk, suite.digest)


def _reply_lane(pair: bytes, header: Header, hh: bytes, site: str) -> Lane:
    return Lane(pair, b"reply", header.stream, hh + site.encode(), header.chunk)


def _wrap_info(federation: str, site: str, key_id: bytes, hh: bytes) -> bytes:
    return join("sealed-v1/wrap", federation, site, key_id, hh)


class OpenerSession:
    """The opener's side of one sealed stream.

    Args:
        member: the opener's.
        suite: the suite in use.
        random_bytes: makes the keys.
        stream: the stream's id, 16 bytes, never used before.
        epoch: the opener's incarnation.
        channel, topic: the stream's address.
        targets: names of the sites.
        context: what the application sends along with OPEN.
        now: seconds since 1970.
        chunk: bytes of plaintext in a sealed chunk, at most.

    Attributes:
        header: what was signed.
        controls: the control words of each site that was invited.
    """

    def __init__(
        self,
        member: Member,
        suite: Suite,
        random_bytes: RandomBytes,
        *,
        stream: bytes,
        epoch: bytes,
        channel: str,
        topic: str,
        targets: Sequence[str],
        context: bytes,
        now: float,
        chunk: int = CHUNK,
    ) -> None:
        self._suite = suite
        self._random = random_bytes
        self._root = root = random_bytes(KEY_SIZE)
        lane = _context_lane(root, stream, chunk)
        parts = [describe(context, ())]
        sealed = memoryview(bytearray(lane.sealed_size([len(parts[0])])))
        seal(lane, _CONTEXT, parts, sealed, _no_signature)
        self._context = bytes(sealed)
        self.header = Header(
            VERSION, suite.name, member.federation, stream, member.name, epoch, channel, topic, sorted(targets),
            chunk, int(now), int(now) + DAY, fingerprint(self._context), expand(root, b"commit", stream),
        )  # fmt: skip
        body = self.header.encode()
        self._hh = fingerprint(body)
        self._signed = Signed(body, member.sign(_OPEN + self._hh), list(member.chain))
        self._sealer = _Sealer(_object_lane(root, self.header, self._hh, suite), member.sign)
        self._replies: dict[str, Lane] = {}
        self._controls: dict[str, Control] = {}

    @property
    def controls(self) -> Mapping[str, Control]:
        return self._controls

    def invite(self, site: str, prekey: PreKey) -> bytes:
        """Wrap the keys for a site; a site that has restarted is invited anew, and shares other keys with the opener.

        Args:
            site: one of the targets.
            prekey: its, checked.

        Returns:
            What OPEN is to carry.

        Raises:
            SealError: it is no target, or its pre-key cannot be used.
        """
        header = self.header
        if site not in header.targets or prekey.site != site:
            raise SealError(f"{site} with a pre-key of {prekey.site}: targets are changed by a new stream only")
        pair = self._random(KEY_SIZE)
        info = _wrap_info(header.federation, site, prekey.key_id, self._hh)
        wrapped = self._suite.wrap(self._root + pair, prekey.public, info)
        lane = self._replies[site] = _reply_lane(pair, header, self._hh, site)
        self._controls[site] = Control(pair, header.stream, lane.bound, OPENER)
        return Invitation(self._signed, prekey.key_id, wrapped, self._context).encode()

    def size_of(self, envelope: bytes, sizes: Sequence[int]) -> int:
        """Return the bytes of ciphertext of an object with buffers of these sizes."""
        return self._sealer.size_of(envelope, sizes)

    def check(self, now: float) -> None:
        """Check that the keys may still be used.

        Raises:
            SecurityError: they have had their time.
        """
        if now >= self.header.expires:
            raise SecurityError(f"the keys of this stream were good until {self.header.expires}: open a new stream")

    def seal(self, place: Place, envelope: bytes, buffers: Sequence[memoryview], out: memoryview) -> SealedObject:
        """Seal one object, once for all sites, into *out*, which has ``size_of`` bytes.

        Raises:
            SealError: it was sealed before.
            SecurityError: the keys have sealed as many objects as they may; a new stream has to be opened.
        """
        return self._sealer.seal(place, envelope, buffers, out)

    def open_reply(
        self, site: str, place: Place, envelope: bytes | memoryview, buffers: Sequence[memoryview]
    ) -> Opening:
        """Begin to open a site's reply.

        Raises:
            SealError: it is none.
        """
        return _open(self._replies[site], place, envelope, buffers, _unsigned)


class ReceiverSession:
    """A site's side of one sealed stream.

    Args:
        ring: the site's pre-keys.
        member: the site's.
        suite: the suite in use.
        data: what OPEN carried.
        stream, opener, channel, topic: what OPEN says in the clear.
        now: seconds since 1970.

    Attributes:
        header: what the opener has signed.
        context: what the application sent along.
        control: the control words.

    Raises:
        SecurityError: this is not a stream that its opener opened for this site, now and for the first time.
    """

    def __init__(
        self,
        ring: KeyRing,
        member: Member,
        suite: Suite,
        data: bytes,
        *,
        stream: bytes,
        opener: str,
        channel: str,
        topic: str,
        now: float,
    ) -> None:
        invitation = decode(Invitation, data)
        signed = invitation.header
        hh = fingerprint(signed.body)
        name, self._verifier = signer_of(signed, member, suite, now)
        self._verifier.check(signed.signature, _OPEN + hh)
        self.header = header = decode(Header, signed.body)
        _check_header(header, invitation, member, suite, now)
        facts: dict[str, tuple[object, object]] = {
            "certificate's site": (name, header.opener),
            "opener": (opener, header.opener),
            "stream": (stream, header.stream),
            "channel": (channel, header.channel),
            "topic": (topic, header.topic),
        }
        for what, (said, sealed) in facts.items():
            if said != sealed:
                raise SealError(f"the {what} is {said!r}, sealed was {sealed!r}")
        held = ring.use(invitation.key_id, stream, now)
        info = _wrap_info(header.federation, member.name, invitation.key_id, hh)
        secrets = suite.unwrap(invitation.wrapped, held.private, info)
        root, pair = secrets[:KEY_SIZE], secrets[KEY_SIZE:]
        if len(pair) != KEY_SIZE or not equal(expand(root, b"commit", stream), header.commit):
            raise SealError("the wrapped keys are not those that the opener has committed to")
        self.context = _open_context(root, header, invitation.context)
        held.seen.add(stream)
        self._objects = _object_lane(root, header, hh, suite)
        lane = _reply_lane(pair, header, hh, member.name)
        self._sealer = _Sealer(lane, _no_signature)
        self.control = Control(pair, stream, lane.bound, SITE)

    def open_object(self, place: Place, envelope: bytes | memoryview, buffers: Sequence[memoryview]) -> Opening:
        """Begin to open an object.

        Raises:
            SealError: it is none.
        """
        return _open(self._objects, place, envelope, buffers, self._verifier.check)

    def size_of(self, envelope: bytes, sizes: Sequence[int]) -> int:
        """Return the bytes of ciphertext of a reply with buffers of these sizes."""
        return self._sealer.size_of(envelope, sizes)

    def seal(self, place: Place, envelope: bytes, buffers: Sequence[memoryview], out: memoryview) -> SealedObject:
        """Seal the reply to one object, for the opener alone, into *out*, which has ``size_of`` bytes.

        Raises:
            SealError, SecurityError: as from ``OpenerSession.seal``.
        """
        return self._sealer.seal(place, envelope, buffers, out)


def _check_header(header: Header, invitation: Invitation, me: Member, suite: Suite, now: float) -> None:
    if header.version != VERSION or header.suite != suite.name or header.federation != me.federation:
        raise SealError(
            f"version {header.version}, suite {header.suite!r}, federation {header.federation!r}; expected {VERSION}, "
            f"{suite.name!r} and {me.federation!r}"
        )
    if len(header.stream) != STREAM_ID or not SMALLEST_CHUNK <= header.chunk <= CHUNK:
        raise SealError(f"a stream id of {len(header.stream)} bytes and chunks of {header.chunk}")
    if me.name not in header.targets:
        raise SealError(f"{me.name} is not among the stream's targets")
    if not header.created - SKEW <= now < header.expires or header.expires - header.created > DAY:
        raise SealError(f"the stream is good from {header.created} to {header.expires}, and now is {int(now)}")
    if fingerprint(invitation.context) != header.context:
        raise SealError("what came with OPEN is not what its opener has signed")


def _open_context(root: bytes, header: Header, sealed: bytes) -> bytes:
    chunks = (len(sealed) + header.chunk + TAG - 1) // (header.chunk + TAG)
    lane = _context_lane(root, header.stream, header.chunk)
    opening = Opening(lane, _CONTEXT, len(sealed) - TAG * chunks, memoryview(sealed), (), _unsigned)
    context = bytes(opening.head())
    if opening.sizes:
        raise SealError("what came with OPEN has parts")
    return context
