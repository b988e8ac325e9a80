from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanstream.errors import SealError, SecurityError
from fanstream.security.sealed.chunks import SEGMENT_CHUNKS, TAG, Place
from fanstream.security.sealed.messages import CHUNK, DAY, SKEW
from fanstream.security.sealed.prekeys import KeyRing, check_prekey
from fanstream.security.sealed.sessions import INLINE, MOST_OBJECTS, OpenerSession, _Sealer

from .federation import CHALLENGE, EPOCH, NOW, STREAM, Site, Stream, seal_with, seeded


def unsealed(opening: Any) -> tuple[bytes, list[bytes]]:
    envelope = bytes(opening.head())
    landed = [memoryview(bytearray(size)) for size in opening.sizes]
    opening.into(landed)
    return envelope, [bytes(view) for view in landed]


@pytest.fixture(scope="module")
def opened() -> tuple[Stream, Any]:
    stream = Stream("site-1", "site-2")
    return stream, stream.accept(stream.invite())


_seq = iter(range(10**6))


@given(
    envelope=st.binary(max_size=3000),
    sizes=st.lists(st.integers(1, 5000), max_size=6),
    status=st.integers(0, 255),
    seed=st.integers(0, 2**32),
)
def test_objects_and_replies_come_out_as_they_went_in(
    opened: tuple[Stream, Any], envelope: bytes, sizes: list[int], status: int, seed: int
) -> None:
    stream, receiver = opened
    rng = random.Random(seed)
    buffers = [memoryview(rng.randbytes(size)) for size in sizes]
    place = Place(next(_seq), 0, status)
    sealed = seal_with(stream.opener, place, envelope, buffers)
    expected = (envelope, [bytes(buffer) for buffer in buffers])
    assert unsealed(receiver.open_object(place, *sealed)) == expected
    reply = seal_with(receiver, place, envelope, buffers)
    assert unsealed(stream.opener.open_reply("site-1", place, *reply)) == expected


def test_an_object_is_sealed_once_for_all_sites_and_opens_at_each() -> None:
    names = [f"site-{number}" for number in range(8)]
    stream = Stream(*names)
    signed = stream.server.signed
    sealed = seal_with(stream.opener, Place(0), b"e", [memoryview(bytes(5000))])
    for name in names:
        receiver = stream.accept(stream.invite(name), name)
        assert unsealed(receiver.open_object(Place(0), *sealed)) == (b"e", [bytes(5000)])
    assert (stream.opener._sealer.count, stream.server.signed - signed) == (1, 1)


def test_small_ciphertext_travels_in_the_head() -> None:
    stream = Stream(chunk=CHUNK)
    small = seal_with(stream.opener, Place(0), bytes(INLINE - TAG - 4), [])
    large = seal_with(stream.opener, Place(1), bytes(INLINE - TAG - 3), [])
    assert (len(small.buffers), len(large.buffers)) == (0, 1)


def test_a_key_ends_after_a_segment() -> None:
    stream = Stream()
    receiver = stream.accept(stream.invite())
    data = memoryview(bytes(SEGMENT_CHUNKS * 1024))  # with the head's chunk, one more than a segment has
    sealed = seal_with(stream.opener, Place(0), b"e", [data])
    assert unsealed(receiver.open_object(Place(0), *sealed)) == (b"e", [bytes(data)])


# --- what a receiver takes ---


@pytest.mark.parametrize(
    ("said", "other"),
    [("stream", b"x" * 16), ("opener", "site-2"), ("channel", "data"), ("topic", "update")],
)
def test_what_open_says_in_the_clear_has_to_be_what_was_sealed(said: str, other: Any) -> None:
    stream = Stream()
    data = stream.invite()
    with pytest.raises(SealError, match=f"the {said} is"):
        stream.accept(data, **{said: other})
    stream.accept(data)  # what was refused has used up nothing


def test_a_stream_opens_once() -> None:
    stream = Stream()
    data = stream.invite()
    stream.accept(data)
    with pytest.raises(SealError, match="a replay"):
        stream.accept(data)
    with pytest.raises(SealError, match="a replay"):
        stream.accept(data, now=NOW + 3600)


def test_a_session_cannot_be_replayed_to_another_site_or_after_a_restart() -> None:
    stream = Stream("site-1", "site-2")
    data = stream.invite("site-1")
    stream.answer("site-2")
    with pytest.raises(SealError, match="a pre-key that this site does not have"):
        stream.accept(data, "site-2")
    restarted = Stream("site-1", "site-2")  # the same keys and certificates; other pre-keys
    restarted.rings["site-1"] = KeyRing(stream.suite, seeded("anew"))
    restarted.answer("site-1")
    with pytest.raises(SealError, match="a pre-key that this site does not have"):
        restarted.accept(data)


def test_a_stream_for_others_is_refused() -> None:
    stream = Stream("site-1", "site-2")
    answer = stream.answer("site-1")
    assert answer
    other = Stream("site-2", stream=bytes(16))
    data = other.invite("site-2")
    with pytest.raises(SealError, match="site-1 is not among"):
        stream.accept(data, stream=bytes(16))


@pytest.mark.parametrize(("now", "taken"), [(-SKEW, True), (-SKEW - 1, False), (DAY - 1, True), (DAY, False)])
def test_a_stream_is_opened_in_its_time(now: int, taken: bool) -> None:
    stream = Stream()
    stream.rings["site-1"] = KeyRing(stream.suite, seeded("site-1"))
    answer = stream.answer("site-1", NOW + now)  # there whenever the stream is opened
    prekey = check_prekey(answer, "site-1", CHALLENGE, stream.server, stream.suite, NOW + now)
    data = stream.opener.invite("site-1", prekey)
    if taken:
        stream.accept(data, now=NOW + now)
    else:
        with pytest.raises(SealError, match="the stream is good from"):
            stream.accept(data, now=NOW + now)


def test_an_opener_who_is_denied_or_unknown_is_refused() -> None:
    stream = Stream()
    data = stream.invite()
    stream.sites["site-1"].denied = frozenset({"server"})
    with pytest.raises(SecurityError, match="deny-list"):
        stream.accept(data)


def test_a_member_cannot_open_a_stream_in_anothers_name() -> None:
    stream = Stream("site-1", "site-2")
    liar = Site(stream.server.root, "server", stream.sites["site-2"].key)
    liar.chain = stream.sites["site-2"].chain  # says server, signs with site-2's certificate
    forged = OpenerSession(
        liar, stream.suite, seeded("liar"), stream=STREAM, epoch=EPOCH, channel="models", topic="weights",
        targets=["site-1"], context=b"c", now=NOW,
    )  # fmt: skip
    stream.opener = forged
    with pytest.raises(SealError, match="certificate's site is 'site-2'"):
        stream.accept(stream.invite())


def test_the_context_is_the_openers_and_hidden() -> None:
    stream = Stream(context=b"canary-in-the-context")
    data = stream.invite()
    assert b"canary" not in data
    assert stream.accept(data).context == b"canary-in-the-context"


def test_a_site_that_has_restarted_gets_other_pair_keys_and_the_same_root() -> None:
    stream = Stream()
    first = stream.accept(stream.invite())
    sealed = seal_with(stream.opener, Place(0), b"e", [])
    stream.rings["site-1"] = KeyRing(stream.suite, seeded("anew"))
    second = stream.accept(stream.invite())
    for session in (first, second):
        assert unsealed(session.open_object(Place(0), *sealed)) == (b"e", [])
    old, new = seal_with(first, Place(0), b"r", []), seal_with(second, Place(0), b"r", [])
    assert unsealed(stream.opener.open_reply("site-1", Place(0), *new)) == (b"r", [])
    with pytest.raises(SealError):
        stream.opener.open_reply("site-1", Place(0), *old).head()


# --- members and relays that lie ---


def test_a_member_with_the_content_key_cannot_forge_an_object() -> None:
    stream = Stream("site-1", "site-2")
    victim, liar = stream.accept(stream.invite("site-1")), stream.accept(stream.invite("site-2"), "site-2")
    # site-2 seals with the true keys, header and place; all it lacks is the opener's signature.
    forged = seal_with(_Sealer(liar._objects, stream.sites["site-2"].sign), Place(0), b"forged", [])
    with pytest.raises(SealError, match="signature is not by"):
        victim.open_object(Place(0), *forged).head()
    true = seal_with(_Sealer(liar._objects, stream.server.sign), Place(0), b"forged", [])
    assert unsealed(victim.open_object(Place(0), *true)) == (b"forged", [])  # so only the signature was missing


def test_sites_can_neither_read_nor_forge_each_others_replies() -> None:
    stream = Stream("site-1", "site-2")
    one, two = stream.accept(stream.invite("site-1")), stream.accept(stream.invite("site-2"), "site-2")
    reply = seal_with(one, Place(0), b"private", [])
    with pytest.raises(SealError):
        stream.opener.open_reply("site-2", Place(0), *reply).head()
    with pytest.raises(SealError):
        two.open_object(Place(0), *reply).head()


@pytest.mark.parametrize("other", [Place(1), Place(0, 1), Place(0, 0, 1)])
def test_an_object_is_bound_to_its_place(other: Place) -> None:
    stream = Stream()
    receiver = stream.accept(stream.invite())
    sealed = seal_with(stream.opener, Place(0), b"e", [memoryview(bytes(5000))])
    reply = seal_with(receiver, Place(0), b"e", [memoryview(bytes(5000))])
    with pytest.raises(SealError):
        receiver.open_object(other, *sealed).head()
    with pytest.raises(SealError):
        stream.opener.open_reply("site-1", other, *reply).head()


def test_an_object_of_another_stream_is_refused() -> None:
    one, two = Stream(), Stream(stream=bytes(16), seed="another")
    receiver = one.accept(one.invite())
    sealed = seal_with(two.opener, Place(0), b"e", [])
    with pytest.raises(SealError):
        receiver.open_object(Place(0), *sealed).head()
    assert unsealed(receiver.open_object(Place(0), *seal_with(one.opener, Place(0), b"e", []))) == (b"e", [])


# --- limits ---


def test_no_place_is_sealed_twice() -> None:
    stream = Stream()
    receiver = stream.accept(stream.invite())
    seal_with(stream.opener, Place(3), b"e", [])
    for place in (Place(3), Place(2), Place(3, 0, 1)):
        with pytest.raises(SealError, match="sealed before"):
            seal_with(stream.opener, place, b"other", [])
    seal_with(stream.opener, Place(3, 1), b"again", [])
    seal_with(receiver, Place(0), b"r", [])
    with pytest.raises(SealError, match="sealed before"):
        seal_with(receiver, Place(0), b"s", [])


def test_a_root_has_its_time_and_its_count() -> None:
    stream = Stream()
    stream.opener.check(NOW + DAY - 1)
    with pytest.raises(SecurityError, match="open a new stream"):
        stream.opener.check(NOW + DAY)
    stream.opener._sealer.count = MOST_OBJECTS
    with pytest.raises(SecurityError, match=f"{MOST_OBJECTS} objects"):
        seal_with(stream.opener, Place(1), b"e", [])


def test_targets_are_those_of_the_header() -> None:
    stream, other = Stream("site-1"), Stream("site-2")
    answer = other.answer("site-2")
    prekey = check_prekey(answer, "site-2", CHALLENGE, stream.server, stream.suite, NOW)
    for site in ("site-1", "site-2"):
        with pytest.raises(SealError, match="changed by a new stream only"):
            stream.opener.invite(site, prekey)
