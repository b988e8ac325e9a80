from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.bindings._rust import openssl
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from fanstream.errors import SealError, SecurityError
from fanstream.security.sealed.suites import Verifier, suite_named

from .federation import Root, Site, seeded

SUITES = ("pq", "pq-sha256", "fips")
PUBLISHED: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "hpke.json").read_text()
)
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def given(*pieces: bytes) -> Any:
    left = list(pieces)

    def read(size: int) -> bytes:
        piece = left.pop(0)
        assert len(piece) == size
        return piece

    return read


def key_of(vector: dict[str, Any]) -> tuple[Any, bytes]:
    """The key pair of a published vector, made by this package's own ``make_key``."""
    secret = bytes.fromhex(vector["skRm"])
    if vector["kem_id"] == 0x0010:
        return suite_named("fips").make_key(given((int.from_bytes(secret, "big") - 1).to_bytes(48, "big")))
    seed = hashlib.shake_256(secret).digest(96)  # draft-ietf-hpke-pq: the seed is expanded to both keys'
    return suite_named("pq-sha256").make_key(given(seed[:64], seed[64:]))


AEADS = {1: hpke.AEAD.AES_128_GCM, 2: hpke.AEAD.AES_256_GCM, 3: hpke.AEAD.CHACHA20_POLY1305}


@pytest.mark.parametrize("vector", [v for source in PUBLISHED.values() for v in source])
def test_published_hpke_vectors_open_with_the_keys_that_this_package_makes(vector: dict[str, Any]) -> None:
    private, public = key_of(vector)
    assert public == bytes.fromhex(vector["pkRm"])
    kem = suite_named("fips" if vector["kem_id"] == 0x0010 else "pq-sha256").kem
    suite = hpke.Suite(kem, hpke.KDF.HKDF_SHA256, AEADS[vector["aead_id"]])
    data = bytes.fromhex(vector["enc"] + vector["ct"])
    # The vectors have associated data; the public method takes none.
    opened = openssl.hpke._decrypt_with_aad(
        suite, data, private, bytes.fromhex(vector["info"]), bytes.fromhex(vector["aad"])
    )
    assert opened == bytes.fromhex(vector["pt"])


@pytest.mark.parametrize("name", SUITES)
def test_what_is_wrapped_opens_for_its_key_and_info_alone(name: str) -> None:
    suite = suite_named(name)
    private, public = suite.make_key(seeded("a"))
    other, _ = suite.make_key(seeded("b"))
    wrapped = suite.wrap(b"s" * 64, public, b"info")
    assert suite.unwrap(wrapped, private, b"info") == b"s" * 64
    for changed, key, info in (
        (wrapped, other, b"info"),
        (wrapped, private, b"inf0"),
        (wrapped[:-1], private, b"info"),
        (wrapped + b"\0", private, b"info"),
        (b"", private, b"info"),
    ):
        with pytest.raises(SealError):
            suite.unwrap(changed, key, info)


@pytest.mark.parametrize("name", SUITES)
def test_keys_follow_from_the_random_bytes_alone(name: str) -> None:
    suite = suite_named(name)
    assert suite.make_key(seeded("x"))[1] == suite.make_key(seeded("x"))[1] != suite.make_key(seeded("y"))[1]


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("change", ["empty", "short", "long", "zeros", "ones"])
def test_public_keys_that_are_none_are_refused(name: str, change: str) -> None:
    suite = suite_named(name)
    _, public = suite.make_key(seeded("a"))
    bad = {
        "empty": b"",
        "short": public[:-1],
        "long": public + b"\0",
        "zeros": bytes(len(public)),  # for X25519, a point of small order
        "ones": b"\xff" * len(public),
    }[change]
    if change == "ones" and name != "fips":
        bad = b"\xff" * 1184 + public[1184:]  # coefficients of ML-KEM beyond its modulus; any 32 bytes are X25519's
    with pytest.raises(SealError):
        suite.wrap(b"s" * 64, bad, b"info")


def test_a_suite_that_is_none_is_named() -> None:
    with pytest.raises(SecurityError, match=r"suite 'aes', expected pq, pq-sha256 or fips"):
        suite_named("aes")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.derive_private_key(12345, ec.SECP256R1()),
        lambda: ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)),
        lambda: rsa.generate_private_key(65537, 3072),
    ],
    ids=["p256", "ed25519", "rsa-3072"],
)
def test_each_kind_of_signature_is_checked(make: Any) -> None:
    site = Site(Root(), "site-1", make())
    verifier = Verifier(site.chain[0], suite_named("pq-sha256"))
    signature = site.sign(b"message")
    verifier.check(signature, b"message")
    for bad in (b"", signature[:-1], signature + b"\0", bytes(len(signature)), b"\x30\x06\x02\x01\x00\x02\x01\x00"):
        with pytest.raises(SealError):
            verifier.check(bad, b"message")
    with pytest.raises(SealError):
        verifier.check(signature, b"message.")


def der(*numbers: int) -> bytes:
    parts = b""
    for number in numbers:
        raw = number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)
        parts += b"\x02" + bytes([len(raw)]) + raw
    return b"\x30" + bytes([len(parts)]) + parts


def test_strange_ecdsa_signatures_are_refused() -> None:
    # The cases that Wycheproof lists for ECDSA: r or s of 0, of the order, beyond it, negative; other spellings.
    site = Site(Root(), "site-1")
    verifier = Verifier(site.chain[0], suite_named("fips"))
    good = site.sign(b"m")
    length = good[1]
    numbers = (0, 1, -1, P256_ORDER, P256_ORDER + 1, P256_ORDER - 1, 2**256)
    strange = [der(r, s) for r in numbers for s in numbers]
    strange += [b"\x30\x81" + bytes([length]) + good[2:], good[:1] + bytes([length - 1]) + good[2:], good + b"\x05\0"]
    strange += [b"\x30\x80" + good[2:] + b"\0\0", b"\x30\0", good[2:]]
    for signature in strange:
        with pytest.raises(SealError):
            verifier.check(signature, b"m")


@pytest.mark.parametrize(
    ("suite", "key", "said"),
    [
        ("fips", lambda: ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)), "Ed25519PublicKey"),
        ("pq-sha256", lambda: ec.derive_private_key(5, ec.SECP384R1()), "384 bits"),
        ("pq-sha256", lambda: rsa.generate_private_key(65537, 2048), "2048 bits"),
    ],
)
def test_keys_that_a_suite_does_not_accept_are_refused(suite: str, key: Any, said: str) -> None:
    certificate = Root().certify("site-1", key())
    with pytest.raises(SecurityError, match=said):
        Verifier(certificate, suite_named(suite))
