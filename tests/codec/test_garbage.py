"""Whatever bytes come in, only a CodecError goes out."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanstream.codec import Codec
from fanstream.errors import CodecError
from fanstream.options import Limits
from fanstream.shareable import Shareable, make_reply

from .carrying import CODEC, arrays, receive, same, values

APART = Codec(Limits(inline=0))

CORPUS: list[Any] = [
    {"round": 3, "loss": 0.5, "name": "layer1", "payload": b"x" * 20},
    make_reply("TIMEOUT", {"tries": 3, "why": None}),
    {"a": [1, (2, {3, "b"}), frozenset({(1, b"x")})], "b": {1: 2, (None, "x"): [True]}},
    {"i": 1 << 80, "c": 1j, "s": "\ud800", "y": bytearray(b"abc"), "é": -0.0},
    {"d": [dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.date(2026, 1, 1), dt.time(1, fold=1), dt.timedelta(1)]},
    {"n": np.arange(6, dtype=">i2").reshape(2, 3), "f": np.asfortranarray(np.ones((2, 2), "<f4")), "z": np.zeros(0)},
    {"x": [np.float32(1), np.str_("t"), np.bytes_(b"b"), np.array(["ab"]), np.array([True, False])]},
    {"m": np.array("2026", "M8[D]"), "in": [Shareable({"deep": [make_reply("OK")]})]},
    {"big": np.zeros(2000), "text": ["x" * 5000], "blob": [b"y" * 5000], "array": (bytearray(5000),)},
]


def attempt(codec: Codec, envelope: bytes, sizes: tuple[int, ...]) -> None:
    """Receive what may be anything; raise only what is not a CodecError."""
    with suppress(CodecError):
        codec.decode_value(envelope)
    with suppress(CodecError):
        decoding = codec.begin(envelope, sizes)
        for destination in decoding.destinations:
            destination[:] = bytes(len(destination))
        value = decoding.finish()
        assert type(value) is Shareable
        assert type(value.headers) is dict


def damaged(data: bytes) -> Iterator[bytes]:
    """Cut off everywhere, changed in each bit, each byte left out or doubled."""
    for position in range(len(data)):
        yield data[:position]
        yield data[:position] + data[position + 1 :]
        yield data[: position + 1] + data[position:]
        for bit in range(8):
            yield data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]
    for tail in (b"\0", b"\xc0", b"\x80", data):
        yield data + tail


@pytest.mark.parametrize("codec", [CODEC, APART], ids=["inline", "apart"])
@pytest.mark.parametrize("value", CORPUS, ids=range(len(CORPUS)))
def test_damaged_objects(value: Any, codec: Codec) -> None:
    encoded = codec.encode(value)
    if encoded.total < 1000:
        assert same(dict(receive(encoded, codec)), {"__headers__": {}} | value)
    for envelope in damaged(encoded.envelope):
        attempt(codec, envelope, encoded.sizes)


@pytest.mark.parametrize("value", CORPUS, ids=range(len(CORPUS)))
def test_every_truncation_and_every_tail_is_an_error(value: Any) -> None:
    encoded = APART.encode(value)
    for end in range(len(encoded.envelope)):
        if end or encoded.sizes:
            with pytest.raises(CodecError):
                APART.begin(encoded.envelope[:end], encoded.sizes)
    with pytest.raises(CodecError):
        APART.begin(encoded.envelope + b"\0", encoded.sizes)
    with pytest.raises(CodecError):
        APART.begin(encoded.envelope, (*encoded.sizes, 1))


@given(st.binary(max_size=200), st.lists(st.integers(1, 200), max_size=3))
def test_any_bytes(data: bytes, sizes: list[int]) -> None:
    for envelope in (data, b"\x93\0\x80" + data, b"\x93\1\x80\x81\xa1a" + data):
        attempt(CODEC, envelope, tuple(sizes))


WORDS = ["<f4", "|b1", "<U1", "<M8[s]", "float32", "bool", "2026-01-01", "2026-01-01T00:00:00", "01:00:00"]
PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-1, 30),
        st.floats(),
        st.text(max_size=4),
        st.binary(max_size=9),
        st.sampled_from(WORDS),
    ),
    lambda inner: (
        st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.builds(lambda tag, rest: [tag, *rest], st.integers(0, 24), st.lists(inner, max_size=4))
    ),
)


@given(PLAIN, st.lists(st.integers(1, 16), max_size=2))
def test_well_formed_nonsense(node: Any, sizes: list[int]) -> None:
    attempt(CODEC, msgspec.msgpack.encode((1, {}, {"a": node})), tuple(sizes))
    attempt(CODEC, msgspec.msgpack.encode(node), tuple(sizes))


@given(arrays() | values(), st.randoms(use_true_random=False))
def test_objects_with_random_damage(value: Any, random: Any) -> None:
    encoded = APART.encode({"a": [value]})
    data = bytearray(encoded.envelope)
    for _ in range(20):
        position = random.randrange(len(data))
        kept, data[position] = data[position], random.randrange(256)
        attempt(APART, bytes(data), encoded.sizes)
        data[position] = kept
