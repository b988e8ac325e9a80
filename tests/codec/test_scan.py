from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanstream.codec.faults import Fault
from fanstream.codec.scan import count_nodes
from fanstream.errors import CodecError

from .carrying import CODEC, raw

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
)


def count(value: Any) -> int:
    """Count by walking over the value itself."""
    if isinstance(value, list):
        return 1 + sum(map(count, value))
    if isinstance(value, dict):
        return 1 + sum(1 + count(item) for item in value.values())
    return 1


@given(PLAIN)
def test_it_counts_every_value(value: Any) -> None:
    nodes = count(value)
    encoded = msgspec.msgpack.encode(value)
    assert count_nodes(encoded, nodes) == nodes
    if nodes > 1:
        with pytest.raises(Fault, match=rf"values, limit {nodes - 1}"):
            count_nodes(encoded, nodes - 1)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536])
def test_every_width_of_a_length(length: int) -> None:
    for value in ("x" * length, b"x" * length, [None] * length, {str(key): 1 for key in range(length)}):
        assert count_nodes(msgspec.msgpack.encode([value, 1]), 200_000) == 2 + count(value)


@given(PLAIN, st.data())
def test_truncated_data_are_noticed(value: Any, data: st.DataObject) -> None:
    encoded = msgspec.msgpack.encode([value, None])
    with pytest.raises(Fault, match=r"truncated"):
        count_nodes(encoded[: data.draw(st.integers(0, len(encoded) - 1))], 10_000)


@pytest.mark.parametrize("key", [b"\1", b"\xc0", b"\x90", b"\xc4\1a", b"\xcb" + bytes(8), b"\x80"])
def test_keys_are_strings(key: bytes) -> None:
    with pytest.raises(Fault, match=r"a key that is not a str"):
        count_nodes(b"\x82\xa1a\x91\x80" + key + b"\1", 100)


@pytest.mark.parametrize("code", [0xC1, 0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8])
def test_extensions_are_refused(code: int) -> None:
    with pytest.raises(Fault, match=r"extension type"):
        count_nodes(bytes([0x91, code]) + bytes(20), 100)


def test_equal_keys_are_refused() -> None:
    pair = b"\xa1a\1\xa1a\2"
    for envelope in (b"\x93\0\x80\x82" + pair, b"\x93\1\x80\x82" + pair, b"\x93\1\x82" + pair + b"\x80"):
        with pytest.raises(CodecError, match=r"a map has equal keys"):
            CODEC.begin(envelope, ())
    deep = b"\x93\1\x80\x81\xa1x\x92\0\x82" + pair
    with pytest.raises(CodecError, match=r"a map has equal keys"):
        CODEC.begin(deep, ())
    with pytest.raises(CodecError, match=r"a map has equal keys"):
        CODEC.decode_value(b"\x82" + pair)


@pytest.mark.parametrize(
    "spelling", [b"\xcc\1", b"\xd0\1", b"\xca\0\0\0\0", b"\xd9\1a", b"\xc5\0\1a", b"\xdc\0\0", b"\xde\0\0"]
)
def test_each_value_has_one_spelling(spelling: bytes) -> None:
    for form in (b"\0", b"\1"):
        with pytest.raises(CodecError, match=r"shortest form|not flat"):
            CODEC.begin(b"\x93" + form + b"\x80\x81\xa1a" + spelling, ())


def test_a_large_flat_object_is_counted_too() -> None:
    data = {str(key): None for key in range(9_990)}
    envelope = raw(0, {}, data)
    assert CODEC.begin(envelope, ()).finish() == {"__headers__": {}} | data
    with pytest.raises(CodecError, match=r"values, limit 20000"):
        CODEC.begin(raw(0, {}, {str(key): None for key in range(9_999)}), ())
