"""The wire is frozen: what this package makes, and what an implementation of the specification alone reads."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from typing import Any

import msgspec
import pytest
from blake3 import blake3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fanstream.security.sealed.chunks import Place

from .federation import CHALLENGE, NOW, STREAM, Stream
from .recording import ENDED, ENDING, LONG, OBJECTS, REPLY, SUITES, VECTORS, record

FROZEN: dict[str, dict[str, Any]] = json.loads(VECTORS.read_text())
DIGESTS: dict[str, Any] = {"pq": blake3, "pq-sha256": hashlib.sha256, "fips": hashlib.sha256}


@pytest.mark.parametrize("suite", SUITES)
def test_the_wire_is_as_it_was(suite: str) -> None:
    frozen = FROZEN[suite]
    assert record(suite, bytes.fromhex(frozen["invitation"])) == frozen


def test_the_vectors_are_small() -> None:
    assert VECTORS.stat().st_size < 1024 * 1024


@pytest.mark.parametrize("suite", SUITES)
def test_the_frozen_session_opens(suite: str) -> None:
    frozen = FROZEN[suite]
    stream = Stream("site-1", "site-2", suite=suite)
    stream.answer("site-1")  # makes the pre-key
    receiver = stream.accept(bytes.fromhex(frozen["invitation"]))
    assert receiver.context == b"\x83the context"
    for seq, (recorded, (envelope, buffers)) in enumerate(zip(frozen["objects"], [*OBJECTS, LONG], strict=True)):
        sealed = [memoryview(bytes.fromhex(buffer)) for buffer in recorded["buffers"]]
        opening = receiver.open_object(Place(seq), bytes.fromhex(recorded["envelope"]), sealed)
        assert bytes(opening.head()) == envelope
        landed = [memoryview(bytearray(len(buffer))) for buffer in buffers]
        opening.into(landed)
        assert [bytes(view) for view in landed] == buffers


# --- an implementation of docs/explanation/sealed-streams.md that shares no code with the package ---


def expand(secret: bytes, label: bytes, context: bytes) -> bytes:
    return hmac.digest(secret, label + b"\0" + context + b"\x01", "sha256")


def gcm(key: bytes, nonce: bytes, aad: bytes, sealed: bytes) -> bytes:
    opened = Cipher(algorithms.AES256(key), modes.GCM(nonce, sealed[-16:])).decryptor()
    opened.authenticate_additional_data(aad)
    return opened.update(sealed[:-16]) + opened.finalize()


def read_parts(
    secret: bytes, label: bytes, bound: bytes, place: tuple[int, int, int], head: int, sealed: bytes
) -> list[bytes]:
    """Open the chunks of an object or reply; chunks of 1 KiB, one segment."""
    seq, attempt, status = place
    key = expand(secret, label, STREAM + struct.pack(">QHI", seq, attempt, 0))
    aad = bound + struct.pack(">QHIBI", seq, attempt, 0, status, head)
    number = at = 0

    def part(size: int) -> bytes:
        nonlocal number, at
        plain = b""
        while len(plain) < size:
            length = min(1024, size - len(plain)) + 16
            last = at + length == len(sealed)
            plain += gcm(key, struct.pack(">7xIB", number, last), aad, sealed[at : at + length])
            number, at = number + 1, at + length
        return plain

    described = part(head)
    (count,) = struct.unpack_from(">I", described)
    sizes = struct.unpack_from(f">{count}Q", described, 4)
    parts = [described[4 + 8 * count :], *[part(size) for size in sizes]]
    assert at == len(sealed)
    return parts


def read_payload(recorded: dict[str, Any]) -> tuple[list[Any], bytes]:
    attempt, head, signatures, inline = msgspec.msgpack.decode(bytes.fromhex(recorded["envelope"]))
    return [attempt, head, signatures], inline or bytes.fromhex(recorded["buffers"][0])


@pytest.mark.parametrize("suite", SUITES)
def test_an_implementation_of_the_specification_reads_the_frozen_session(suite: str) -> None:
    frozen = FROZEN[suite]
    # The pre-key, whose private half the site would have.
    body, signature, chain = msgspec.msgpack.decode(bytes.fromhex(frozen["prekey"]))
    leaf = x509.load_der_x509_certificate(chain[0]).public_key()
    assert isinstance(leaf, ec.EllipticCurvePublicKey)
    leaf.verify(signature, b"sealed-v1/prekey" + body, ec.ECDSA(hashes.SHA256()))
    prekey = msgspec.msgpack.decode(body)
    assert prekey[:3] == ["prekey-v1", "hospitals", "site-1"]
    assert prekey[3:5] == [hashlib.sha256(chain[0]).digest(), suite]
    assert prekey[9] == CHALLENGE
    stream = Stream("site-1", "site-2", suite=suite)
    stream.answer("site-1")
    private = stream.rings["site-1"].use(prekey[5], bytes(16), NOW).private

    # OPEN
    signed, key_id, wrapped, context = msgspec.msgpack.decode(bytes.fromhex(frozen["invitation"]))
    header_bytes, signature, chain = signed
    hh = hashlib.sha256(header_bytes).digest()
    opener = x509.load_der_x509_certificate(chain[0]).public_key()
    assert isinstance(opener, ec.EllipticCurvePublicKey)
    opener.verify(signature, b"sealed-v1/open" + hh, ec.ECDSA(hashes.SHA256()))
    header = msgspec.msgpack.decode(header_bytes)
    assert header[:5] == [1, suite, "hospitals", STREAM, "server"]
    assert header[6:13] == ["models", "weights", ["site-1", "site-2"], 1024, NOW, NOW + 86400, hashlib.sha256(context).digest()]  # fmt: skip  # noqa: E501
    kem = hpke.KEM.P256 if suite == "fips" else hpke.KEM.MLKEM768_X25519
    info = msgspec.msgpack.encode(["sealed-v1/wrap", "hospitals", "site-1", key_id, hh])
    secrets = hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM).decrypt(wrapped, private, info=info)
    root, pair = secrets[:32], secrets[32:]
    assert expand(root, b"commit", STREAM) == header[13]
    assert read_parts(root, b"ctx", b"", (0, 0, 0), len(context) - 16, context) == [b"\x83the context"]

    # Objects
    for seq, (recorded, (envelope, buffers)) in enumerate(zip(frozen["objects"], [*OBJECTS, LONG], strict=True)):
        (attempt, head, signatures), sealed = read_payload(recorded)
        assert attempt == 0
        span = 64 * (1024 + 16)
        covered = b""
        for index, signature in enumerate(signatures):
            covered = sealed[: (index + 1) * span]
            said = struct.pack(">QHBIQ", seq, 0, 0, head, len(covered))
            statement = b"sealed-v1/obj" + hh + said + DIGESTS[suite](covered).digest()
            opener.verify(signature, statement, ec.ECDSA(hashes.SHA256()))
        assert len(covered) == len(sealed)
        assert read_parts(root, b"obj", hh, (seq, 0, 0), head, sealed) == [envelope, *buffers]

    # A reply, and control words
    (attempt, head, signatures), sealed = read_payload(frozen["reply"])
    assert (attempt, signatures) == (0, [])
    assert read_parts(pair, b"reply", hh + b"site-1", (0, 0, 1), head, sealed) == [REPLY[0], *REPLY[1]]
    for side, kind, word, expected in ((b"opener", 22, "end", b"\x05\x00"), (b"site", ENDED, "ended", ENDING)):
        data = bytes.fromhex(frozen[word])
        assert data[:8] == struct.pack(">Q", 1)
        key = expand(pair, b"ctl", STREAM + side)
        assert gcm(key, bytes(4) + data[:8], hh + b"site-1" + bytes([kind]), data[8:]) == expected
