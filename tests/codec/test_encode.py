from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fanstream.codec import Codec
from fanstream.errors import CodecError
from fanstream.options import Limits

from .carrying import CODEC, carry, carry_one, receive, same

APART = Codec(Limits(inline=0))


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, 127, 128, -33, (1 << 64) - 1, -(1 << 63)),
        *(1 << 64, -(1 << 63) - 1, (1 << 71) - 1, 1 << 71, -(1 << 71), -(1 << 71) - 1, 3**2000, -(3**2000)),
    ],
)
def test_ints_of_any_size(value: int) -> None:
    assert same(carry_one([value]), [value])
    assert same(carry({"v": value})["v"], value)
    assert same(carry_one({value: value}), {value: value})


def test_floats_to_the_bit() -> None:
    for value in (math.nan, -0.0, math.inf, -math.inf, 5e-324, 1.7976931348623157e308):
        assert same(carry_one([value, complex(value, value)]), [value, complex(value, value)])
        assert same(carry_one(value), value)
    strange = np.frombuffer(b"\1\0\0\0\0\0\xf4\xff", "<f8")
    assert CODEC.decode_value(CODEC.encode_value([float(strange[0])]))[0].hex() == "nan"
    assert carry_one(strange).tobytes() == strange.tobytes()


def test_every_container() -> None:
    value = {
        "list": [1, [2, (3,)]],
        "tuple": (1, (2, [3]), ()),
        "set": {1, "a", (2, frozenset({3}))},
        "frozenset": frozenset({b"x", None}),
        "dict": {"a": {"b": {}}},
        "pairs": {1: "a", b"b": [2], ("c", (3, None)): {}, None: 0, False: 1, 1 << 100: 2, "\ud800": 3, "plain": 4},
        "bytearray": bytearray(b"abc"),
        "empty": [[], (), set(), frozenset(), {}, "", b"", bytearray()],
    }
    for codec in (CODEC, APART):
        assert same(dict(carry(value, codec)) | {"__headers__": 0}, {"__headers__": 0} | value)


@pytest.mark.parametrize("size", [100, 10_000])
def test_memoryviews_arrive_as_bytes(size: int) -> None:
    blob = bytes(range(256)) * (size // 100)
    array = np.frombuffer(blob, np.uint16).reshape(2, -1)
    for view, content in (
        (memoryview(blob), blob),
        (memoryview(bytearray(blob)), blob),
        (memoryview(blob)[::-1], blob[::-1]),
        (array.data, blob),
        (array.T.data, array.T.tobytes()),
        (memoryview(b""), b""),
        (np.zeros((0, 3)).data, b""),
    ):
        assert same(carry_one(view), content)
        assert same(CODEC.decode_value(CODEC.encode_value(view)), content)


def test_large_texts_travel_apart() -> None:
    for text in ("x" * 5000, "é" * 5000, "\U0001f600" * 5000, "a\ud800b" * 5000):
        encoded = CODEC.encode({"a": [text]})
        assert len(encoded.buffers) == 1
        assert same(carry_one([text]), [text])
        assert same(carry({"text": text})["text"], text)
        assert same(carry_one({text: 1}), {text: 1})  # keys stay


def test_buffers_in_places_that_cannot_change() -> None:
    value = ({b"x" * 5000, "y" * 5000}, frozenset({(bytes(5000), 1)}), {"a": (bytearray(5000),)})
    assert same(carry_one(value), value)


@pytest.mark.interpreted
def test_nan_in_a_set() -> None:
    # Not carry_one, which compares two decodings: a NaN hashes as the object that it is, so their orders differ.
    received = receive(CODEC.encode({"value": {math.nan, float("nan"), 1.0}}))["value"]
    assert len(received) == 3
    assert sum(map(math.isnan, received)) == 2


def test_small_buffers_stay_in_the_envelope_while_there_is_room() -> None:
    def buffers(count: int, size: int) -> int:
        return len(CODEC.encode({"a": [bytes(size)] * count}).buffers)

    assert buffers(8, 4096) == 0
    assert buffers(9, 4096) == 1  # 32 KiB are used up for all but small ones
    assert buffers(100, 512) == 0
    assert buffers(129, 512) == 1  # 64 KiB are used up for those
    assert buffers(2500, 64) == 0  # and tiny ones stay always


def test_a_set_that_changes_is_a_codec_error() -> None:
    class Liar(dict[str, Any]):
        pass

    changing: dict[Any, Any] = {"a": 1}

    from fanstream.codec import TypeRegistry

    types = TypeRegistry()
    types.register_type("liar", Liar, lambda _value: changing.update({len(changing): 1}), lambda _value: Liar())
    changing["b"] = Liar()
    with pytest.raises(CodecError, match=r"cannot be encoded: RuntimeError: dictionary changed size"):
        Codec(types=types).encode({"x": changing})
