from __future__ import annotations

from typing import Any

import pytest

from fanstream.errors import SealError, SecurityError
from fanstream.security.sealed.messages import DAY, SKEW, PreKey, Signed, decode
from fanstream.security.sealed.prekeys import (
    LIVES,
    MOST_STREAMS,
    RENEWED_AFTER,
    KeyRing,
    Member,
    check_prekey,
    sign,
)
from fanstream.security.sealed.suites import suite_named

from .federation import CHALLENGE, NOW, Root, Site, make_sites, p256, seeded

SUITE = suite_named("pq-sha256")


class Answerer:
    """A site with its ring."""

    def __init__(self, site: Member, suite: str) -> None:
        self.site = site
        self.ring = KeyRing(suite_named(suite), seeded(site.name))
        self.use = self.ring.use

    def answer(self, challenge: bytes, now: float) -> bytes:
        return self.ring.answer(self.site, challenge, now)


def ring_of(site: Member, suite: str = "pq-sha256") -> Answerer:
    return Answerer(site, suite)


def said(answer: bytes) -> PreKey:
    return decode(PreKey, decode(Signed, answer).body)


def test_a_prekey_is_checked_and_returned() -> None:
    server, site = make_sites("server", "site-1")
    prekey = check_prekey(ring_of(site).answer(CHALLENGE, NOW), "site-1", CHALLENGE, server, SUITE, NOW)
    assert (prekey.site, prekey.federation, prekey.not_before, prekey.not_after) == (
        "site-1",
        "hospitals",
        NOW,
        NOW + LIVES,
    )


def test_one_prekey_serves_an_hour_and_each_asker_gets_its_challenge_back() -> None:
    _, site = make_sites("server", "site-1")
    ring = ring_of(site)
    first = said(ring.answer(CHALLENGE, NOW))
    again = said(ring.answer(bytes(32), NOW + RENEWED_AFTER - 1))
    assert again.key_id == first.key_id
    assert (first.challenge, again.challenge) == (CHALLENGE, bytes(32))
    assert said(ring.answer(CHALLENGE, NOW + RENEWED_AFTER)).key_id != first.key_id


def test_a_renewed_certificate_comes_with_a_new_prekey() -> None:
    server, site = make_sites("server", "site-1")
    ring = ring_of(site)
    first = said(ring.answer(CHALLENGE, NOW))
    ring.site = Site(site.root, "site-1", p256("another key"))
    answer = ring.answer(CHALLENGE, NOW)
    assert check_prekey(answer, "site-1", CHALLENGE, server, SUITE, NOW).key_id != first.key_id
    ring.use(first.key_id, bytes(16), NOW)  # streams under way may still open with the old one


def test_a_private_half_is_dropped_when_it_has_had_its_time() -> None:
    _, site = make_sites("server", "site-1")
    ring = ring_of(site)
    key_id = said(ring.answer(CHALLENGE, NOW)).key_id
    end = NOW + LIVES + SKEW
    assert ring.use(key_id, bytes(16), end - 1).private is not None
    with pytest.raises(SealError, match="does not have, or no more"):
        ring.use(key_id, bytes(16), end)
    assert len(ring.ring) == 0


def test_another_life_of_the_site_has_none_of_the_keys() -> None:
    _, site = make_sites("server", "site-1")
    key_id = said(ring_of(site).answer(CHALLENGE, NOW)).key_id
    with pytest.raises(SealError, match="does not have"):
        KeyRing(SUITE, seeded("another life")).use(key_id, bytes(16), NOW)


def test_what_is_remembered_of_a_prekey_is_bounded() -> None:
    _, site = make_sites("server", "site-1")
    ring = ring_of(site)
    key_id = said(ring.answer(CHALLENGE, NOW)).key_id
    held = ring.use(key_id, bytes(16), NOW)
    held.seen.update(number.to_bytes(16, "big") for number in range(MOST_STREAMS // 2 + 1))
    assert said(ring.answer(CHALLENGE, NOW)).key_id != key_id  # a new one well before the old is full
    held.seen.update(number.to_bytes(16, "big") for number in range(MOST_STREAMS))
    with pytest.raises(SealError, match=f"{MOST_STREAMS} streams"):
        ring.use(key_id, b"\xff" * 16, NOW)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_challenge_has_32_bytes(size: int) -> None:
    _, site = make_sites("server", "site-1")
    with pytest.raises(SealError, match=f"challenge of {size} bytes"):
        ring_of(site).answer(bytes(size), NOW)


@pytest.mark.parametrize("field", PreKey.__struct_fields__)
def test_whatever_a_site_signs_otherwise_is_refused(field: str) -> None:
    server, site = make_sites("server", "site-1")
    good = said(ring_of(site).answer(CHALLENGE, NOW))
    other: dict[str, Any] = {
        "kind": "prekey-v2",
        "federation": "banks",
        "site": "site-2",
        "certificate": bytes(32),
        "suite": "fips",
        "challenge": bytes(32),
        "not_before": NOW + SKEW + 1,
        "not_after": NOW + DAY + 1,
    }
    if field in ("key_id", "public"):
        return  # the site's own choice
    facts = {name: getattr(good, name) for name in PreKey.__struct_fields__} | {field: other[field]}
    answer = sign(site, b"sealed-v1/prekey", PreKey(**facts).encode()).encode()
    with pytest.raises(SealError, match=r"the pre-key"):
        check_prekey(answer, "site-1", CHALLENGE, server, SUITE, NOW)


def test_a_prekey_past_its_time_is_refused() -> None:
    server, site = make_sites("server", "site-1")
    answer = ring_of(site).answer(CHALLENGE, NOW)
    check_prekey(answer, "site-1", CHALLENGE, server, SUITE, NOW + LIVES - 1)
    with pytest.raises(SealError, match="good from"):
        check_prekey(answer, "site-1", CHALLENGE, server, SUITE, NOW + LIVES)
    with pytest.raises(SealError, match="good from"):
        check_prekey(answer, "site-1", CHALLENGE, server, SUITE, NOW - SKEW - 1)


def test_one_site_cannot_answer_for_another() -> None:
    server, _, liar = make_sites("server", "site-1", "site-2")
    claimed = Site(liar.root, "site-1", liar.key)
    claimed.chain = liar.chain  # signs as site-1 with its own certificate
    for answer in (ring_of(liar).answer(CHALLENGE, NOW), ring_of(claimed).answer(CHALLENGE, NOW)):
        with pytest.raises(SealError, match="site"):
            check_prekey(answer, "site-1", CHALLENGE, server, SUITE, NOW)


def test_a_stranger_and_a_denied_site_are_refused() -> None:
    server, site = make_sites("server", "site-1")
    (stranger,) = make_sites("site-1", root=Root("banks"))
    with pytest.raises(SecurityError, match="not one of hospitals"):
        check_prekey(ring_of(stranger).answer(CHALLENGE, NOW), "site-1", CHALLENGE, server, SUITE, NOW)
    strict = Site(server.root, "server", denied=frozenset({"site-1"}))
    with pytest.raises(SecurityError, match="deny-list"):
        check_prekey(ring_of(site).answer(CHALLENGE, NOW), "site-1", CHALLENGE, strict, SUITE, NOW)


def test_a_site_with_another_suite_is_refused_not_followed() -> None:
    server, site = make_sites("server", "site-1")
    with pytest.raises(SealError, match="suite is 'fips', expected 'pq-sha256'"):
        check_prekey(ring_of(site, "fips").answer(CHALLENGE, NOW), "site-1", CHALLENGE, server, SUITE, NOW)


def test_every_byte_of_an_answer_counts() -> None:
    server, site = make_sites("server", "site-1")
    answer = ring_of(site).answer(CHALLENGE, NOW)
    for at in range(len(answer)):
        changed = bytearray(answer)
        changed[at] ^= 1 << at % 8
        with pytest.raises(SecurityError):
            check_prekey(bytes(changed), "site-1", CHALLENGE, server, SUITE, NOW)
