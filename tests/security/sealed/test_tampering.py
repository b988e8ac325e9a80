"""A recorded session, changed in every way that a relay could: nothing of it is let in.

``python -m tests.security.sealed.test_tampering`` flips every single bit, which takes some minutes; the tests flip one
bit of each byte of what is short, and of every few bytes of what is long.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from fanstream.errors import SealError, SecurityError
from fanstream.security.sealed.chunks import TAG, Place
from fanstream.security.sealed.messages import Sealing, decode
from fanstream.security.sealed.sessions import SealedObject

from .federation import Stream, seal_with, seeded

CHUNK = 1024
BULK = seeded("bulk")(60 * 1024)
SUITE = "pq-sha256"


class Session:
    """One stream with a small object, one of 60 KiB in two spans, and a reply of several chunks."""

    def __init__(self, suite: str = SUITE) -> None:
        self.stream = Stream("site-1", "site-2", suite=suite)
        self.invitation = self.stream.invite()
        self.receiver = self.stream.accept(self.invitation)
        self.small = seal_with(self.stream.opener, Place(0), b"small", [])
        self.bulk = seal_with(self.stream.opener, Place(1), b"bulk", [memoryview(BULK), memoryview(BULK[:6000])])
        self.reply = seal_with(self.receiver, Place(0), b"reply", [memoryview(BULK[:5000])])

    def open(self, which: str, sealed: SealedObject) -> None:
        """Open one of them whole, as its receiver does."""
        place = Place(1 if which == "bulk" else 0)
        if which == "reply":
            opening = self.stream.opener.open_reply("site-1", place, *sealed)
        else:
            opening = self.receiver.open_object(place, *sealed)
        opening.head()
        opening.into([memoryview(bytearray(size)) for size in opening.sizes])


@pytest.fixture(scope="module")
def session() -> Session:
    return Session()


def flips(data: bytes | memoryview, step: int = 1, bits: Sequence[int] | None = None) -> Iterator[bytes]:
    """The data with one bit changed, for one bit of every *step*-th byte, or the *bits* given."""
    for at in range(0, len(data), step):
        for bit in bits if bits is not None else (at // step % 8,):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            yield bytes(changed)


def refused(call: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(SealError):
        call(*arguments)


WHICH = ("small", "bulk", "reply")


def parts_of(session: Session, which: str) -> SealedObject:
    sealed: SealedObject = getattr(session, which)
    return sealed


@pytest.mark.parametrize("which", WHICH)
def test_what_was_sealed_opens(session: Session, which: str) -> None:
    session.open(which, parts_of(session, which))


def test_a_flipped_bit_of_an_invitation_is_refused() -> None:
    session = Session()
    (held,) = session.stream.rings["site-1"]._held.values()
    held.seen.clear()  # or each would be refused as a replay
    for changed in flips(session.invitation, 3):
        with pytest.raises(SecurityError):
            session.stream.accept(changed)
    session.stream.accept(session.invitation)


@pytest.mark.parametrize("which", WHICH)
def test_a_flipped_bit_of_a_head_is_refused(session: Session, which: str) -> None:
    envelope, buffers = parts_of(session, which)
    for changed in flips(envelope, 1, range(8)):
        refused(session.open, which, SealedObject(changed, buffers))


@pytest.mark.parametrize("which", ["bulk", "reply"])
def test_a_flipped_bit_of_the_ciphertext_is_refused(session: Session, which: str) -> None:
    envelope, (sealed,) = parts_of(session, which)
    for changed in flips(sealed, 61):
        refused(session.open, which, SealedObject(envelope, (memoryview(changed),)))


@pytest.mark.parametrize("which", WHICH)
def test_a_head_that_is_cut_anywhere_is_refused(session: Session, which: str) -> None:
    envelope, buffers = parts_of(session, which)
    for length in range(len(envelope)):
        refused(session.open, which, SealedObject(envelope[:length], buffers))
    refused(session.open, which, SealedObject(envelope + b"\0", buffers))


@pytest.mark.parametrize("which", ["bulk", "reply"])
def test_ciphertext_that_is_cut_anywhere_is_refused(session: Session, which: str) -> None:
    envelope, (sealed,) = parts_of(session, which)
    near = {cut + shift for cut in range(0, len(sealed) + 1, CHUNK + TAG) for shift in (-TAG, -1, 0, 1)}
    for length in sorted(near | set(range(0, len(sealed), 97))):
        if 0 <= length < len(sealed):
            refused(session.open, which, SealedObject(envelope, (sealed[:length],)))
    refused(session.open, which, SealedObject(envelope, (memoryview(bytes(sealed) + b"\0"),)))
    refused(session.open, which, SealedObject(envelope, ()))
    refused(session.open, which, SealedObject(envelope, (sealed, sealed)))


def chunks_of(sealed: memoryview) -> list[bytes]:
    """The chunks after the head's, as far as they are full."""
    return [bytes(sealed[at : at + CHUNK + TAG]) for at in range(0, len(sealed), CHUNK + TAG)]


@pytest.mark.parametrize("which", ["bulk", "reply"])
def test_chunks_that_are_swapped_doubled_or_dropped_are_refused(session: Session, which: str) -> None:
    envelope, (sealed,) = parts_of(session, which)
    head = len(sealed) % (CHUNK + TAG)
    first, chunks = bytes(sealed[:head]), chunks_of(sealed[head:])
    for at in range(len(chunks) - 1):
        swapped = [*chunks[:at], chunks[at + 1], chunks[at], *chunks[at + 2 :]]
        doubled = [*chunks[:at], chunks[at], chunks[at], *chunks[at + 2 :]]
        inserted = [*chunks[:at], chunks[at], *chunks[at:]]
        dropped = [*chunks[:at], *chunks[at + 1 :]]
        for changed in (swapped, doubled, inserted, dropped):
            data = memoryview(first + b"".join(changed))
            refused(session.open, which, SealedObject(envelope, (data,)))


def test_two_streams_cannot_be_spliced(session: Session) -> None:
    other = Session()
    other.stream = Stream("site-1", "site-2", stream=b"\xff" * 16, seed="another")
    foreign = seal_with(other.stream.opener, Place(1), b"bulk", [memoryview(BULK), memoryview(BULK[:6000])])
    (mine,), (theirs,) = session.bulk.buffers, foreign.buffers
    assert len(mine) == len(theirs)
    for cut in range(0, len(mine) + 1, CHUNK + TAG):
        for envelope in (session.bulk.envelope, foreign.envelope):
            data = memoryview(bytes(mine[:cut]) + bytes(theirs[cut:]))
            if bytes(data) != bytes(mine):
                refused(session.open, "bulk", SealedObject(envelope, (data,)))


@pytest.mark.parametrize("which", WHICH)
def test_one_object_does_not_pass_for_another(session: Session, which: str) -> None:
    for name in WHICH:
        if name != which:
            refused(session.open, which, parts_of(session, name))


def test_replies_need_no_signature_and_take_none(session: Session) -> None:
    sealing = decode(Sealing, session.reply.envelope)
    signed = Sealing(sealing.attempt, sealing.head, [b"signature"], sealing.sealed).encode()
    refused(session.open, "reply", SealedObject(signed, session.reply.buffers))


def test_nothing_is_decrypted_before_a_signature_covers_it() -> None:
    """What one span holds is opened, since it was signed; the next one was changed, and stays shut as a whole."""
    stream = Stream()
    receiver = stream.accept(stream.invite())
    whole = BULK + BULK[: 3 * CHUNK]  # with the head's chunk, the 64 of a span
    envelope, (sealed,) = seal_with(stream.opener, Place(0), b"e", [memoryview(whole), memoryview(BULK[:5000])])
    changed = bytearray(sealed)
    changed[-1] ^= 1
    opening = receiver.open_object(Place(0), envelope, (memoryview(changed),))
    opening.head()
    landed = [memoryview(bytearray(size)) for size in opening.sizes]
    refused(opening.into, landed)
    assert [bytes(view) for view in landed] == [whole, bytes(5000)]


def flip_everything() -> int:
    """Flip every single bit of the session; return how many."""
    session = Session()
    count = 0
    for which in WHICH:
        envelope, buffers = parts_of(session, which)
        cases = [SealedObject(changed, buffers) for changed in flips(envelope, 1, range(8))]
        for case in cases:
            refused(session.open, which, case)
        count += len(cases)
        for sealed in buffers:
            for changed in flips(sealed, 1, range(8)):
                case = SealedObject(envelope, (memoryview(changed),))
                refused(session.open, which, case)
                count += 1
    (held,) = session.stream.rings["site-1"]._held.values()
    for changed in flips(session.invitation, 1, range(8)):
        held.seen.clear()
        with pytest.raises(SecurityError):
            session.stream.accept(changed)
        count += 1
    return count


if __name__ == "__main__":
    sys.stdout.write(f"{flip_everything()} flipped bits, and all of them refused\n")
