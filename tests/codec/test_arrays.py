from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from fanstream.codec import Codec
from fanstream.errors import CodecError, UnknownTypeError
from fanstream.options import Limits

from .carrying import CODEC, arrays, carry_one, dtypes, raw, same

APART = Codec(Limits(inline=0))


@given(arrays())
def test_arrays_of_every_dtype_and_order(array: np.ndarray[Any, Any]) -> None:
    for codec in (CODEC, APART):
        received = carry_one(array, codec)
        assert same(received, array)
        assert received.flags.writeable
        assert received.flags.aligned
        assert not np.shares_memory(received, array)


@given(dtypes())
def test_the_smallest_arrays_of_every_dtype(dtype: np.dtype[Any]) -> None:
    for shape in ((), (0,), (1,), (3, 0, 2)):
        array = np.zeros(shape, dtype)
        received = carry_one(array, APART)
        assert same(received, array)
        assert received.dtype.str == dtype.str


@pytest.mark.parametrize("size", [3, 200])
def test_order_is_kept(size: int) -> None:
    rows = np.arange(size * size, dtype=">f4").reshape(size, size)
    for array in (rows, np.asfortranarray(rows), rows.T):
        received = carry_one(array)
        assert received.flags.c_contiguous == array.flags.c_contiguous
        assert received.flags.f_contiguous == array.flags.f_contiguous
        assert received.dtype.byteorder == ">"
        assert np.array_equal(received, array)


@pytest.mark.parametrize("size", [8, 4000])
def test_what_is_not_contiguous_arrives_in_rows(size: int) -> None:
    base = np.arange(2 * size, dtype=np.int64)
    for array in (base[::2], base[::-1], np.broadcast_to(base, (3, 2 * size)), base.reshape(2, 2, -1)[:, :1]):
        received = carry_one(array)
        assert received.flags.c_contiguous
        assert np.array_equal(received, array)


def test_scalars_keep_their_type() -> None:
    for scalar in (
        np.bool_(True),
        np.int8(-1),
        np.uint64(1 << 63),
        np.float16(0.5),
        np.float64("nan"),
        np.complex64(1 - 1j),
        np.datetime64("2026-10-01T00:00", ("m", 25)),
        np.datetime64("NaT", "s"),
        np.timedelta64(3, "ns"),
        np.str_("text\0"),
        np.str_("\ud800"),
        np.str_("x" * 5000),
        np.bytes_(b"bytes\0"),
        np.bytes_(b"x" * 5000),
        np.str_(),
    ):
        for codec in (CODEC, APART):
            assert same(carry_one([scalar], codec), [scalar])


def test_a_memory_map_arrives_as_an_array(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "weights", np.float32, "w+", shape=(3000,))
    mapped[:] = 3
    received = carry_one(mapped)
    assert type(received) is np.ndarray
    assert np.array_equal(received, mapped)
    del mapped


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_derived_arrays_are_refused() -> None:
    with pytest.raises(UnknownTypeError, match=r"^a: type numpy\.matrix is not in the registry"):
        CODEC.encode({"a": np.matrix([[1]])})
    with pytest.raises(UnknownTypeError, match=r"^a: type numpy\.rec(ords)?\.recarray is not in the registry"):
        CODEC.encode({"a": np.zeros(2, [("x", "i4")]).view(np.recarray)})


def test_texts_of_any_width_are_refused() -> None:
    with pytest.raises(UnknownTypeError, match=r"^a: numpy dtype .*StringDType.* is not in the registry"):
        CODEC.encode({"a": np.array(["x"], np.dtypes.StringDType())})


@pytest.mark.parametrize(
    "dtype",
    [
        *(
            "O",
            "|O",
            "V8",
            "|V8",
            "f4,i4",
            "<f16",
            "<c32",
            "<f4,",
            "f4",
            "=f4",
            "<i16",
            ">b1",
            "<i1",
            "|i4",
            "|S0",
            "<U0",
        ),
        *("<M8[ns", "<M8[0s]", "<M8[xs]", "|T16", "|S9999999999", "<U999999999", "{'names': ['a']}", "<f4\n", "object"),
    ],
)
def test_dtypes_from_the_wire_are_checked(dtype: str) -> None:
    with pytest.raises(CodecError, match=r"^a: malformed envelope: .*(is not a dtype that travels|TypeError)"):
        CODEC.begin(raw(1, {}, {"a": [17, dtype, b"", 0]}), ())
    with pytest.raises(CodecError, match=r"^a: malformed envelope: .*(is not a dtype that travels|TypeError)"):
        CODEC.begin(raw(1, {}, {"a": [19, dtype, b""]}), ())


@pytest.mark.parametrize("tag", [17, 18])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([-1], "whole number from 0 up"),
        ([True], "whole number from 0 up"),
        ([1.0], "whole number from 0 up"),
        ([None], "whole number from 0 up"),
        ([1 << 62, 1 << 62], "cannot be addressed"),
        ([0, 1 << 62], "cannot be addressed"),
        ([1 << 63, 0], "cannot be addressed"),
        ([1] * 65, "65 dimensions, limit 64"),
        ([2], "an array of 8 bytes with other content"),
        ([0], "an array of 0 bytes with other content"),
    ],
)
def test_shapes_from_the_wire_are_checked(tag: int, shape: list[Any], message: str) -> None:
    with pytest.raises(CodecError, match=rf"^a: malformed envelope: .*{message}"):
        CODEC.begin(raw(1, {}, {"a": [tag, "<f4", b"abcd", *shape]}), ())


def test_an_array_of_64_dimensions() -> None:
    array = np.full((1,) * 64, 7)
    assert same(carry_one(array), array)


@pytest.mark.parametrize(
    "node", [[17], [17, "<f4"], [17, 4, b""], [19], [19, "<f4"], [19, "<f4", b"abc"], [19, "|S1", b"a"]]
)
def test_incomplete_descriptors_are_refused(node: list[Any]) -> None:
    with pytest.raises(CodecError, match=r"^a\[0\]: malformed envelope"):
        CODEC.begin(raw(1, {}, {"a": [0, node]}), ())


@pytest.mark.parametrize("node", [[20], [20, 1], [20, b"x"], [21, "x"], [21, None], [20, "a", "b"]])
def test_numpy_texts_from_the_wire_are_checked(node: list[Any]) -> None:
    with pytest.raises(CodecError, match=r"^a: malformed envelope"):
        CODEC.begin(raw(1, {}, {"a": node}), ())


@pytest.mark.parametrize("inline", [0, 4096])
@pytest.mark.parametrize(
    ("dtype", "content", "message"),
    [
        ("|b1", b"\0\1\2\1", "bytes other than 0 and 1"),
        ("<U1", b"\0\0\x11\0", "characters beyond U"),
        (">U1", b"\0\x11\0\0", "characters beyond U"),
    ],
)
def test_bytes_that_are_no_values_of_the_dtype_are_refused(
    inline: int, dtype: str, content: bytes, message: str
) -> None:
    width = np.dtype(dtype).itemsize
    if inline:
        with pytest.raises(CodecError, match=rf"^a: .*{message}"):
            CODEC.begin(raw(1, {}, {"a": [17, dtype, content, len(content) // width]}), ())
        return
    decoding = CODEC.begin(raw(1, {}, {"a": [17, dtype, None, len(content) // width]}), (len(content),))
    decoding.destinations[0][:] = content
    with pytest.raises(CodecError, match=rf"^a: .*{message}"):
        decoding.finish()


def test_a_bool_scalar_is_0_or_1() -> None:
    with pytest.raises(CodecError, match=r"bytes other than 0 and 1"):
        CODEC.begin(raw(1, {}, {"a": [19, "|b1", b"\2"]}), ())
