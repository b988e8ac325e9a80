"""Carries objects through the codec as the wire would, and compares what arrived with what was sent."""

from __future__ import annotations

import datetime as dt
import math
import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from fanstream.codec import Codec, Encoded
from fanstream.shareable import Shareable

CODEC = Codec()


def receive(encoded: Encoded, codec: Codec = CODEC) -> Shareable:
    """Receive an encoded object."""
    decoding = codec.begin(encoded.envelope, encoded.sizes)
    assert [len(view) for view in decoding.destinations] == list(encoded.sizes)
    for destination, source in zip(decoding.destinations, encoded.buffers, strict=True):
        assert not destination.readonly
        assert (destination.ndim, destination.format) == (1, "B")
        destination[:] = source
    return decoding.finish()


def carry(value: Mapping[str, Any], codec: Codec = CODEC) -> Shareable:
    """Encode an object and receive it."""
    encoded = codec.encode(value)
    for view in encoded.buffers:
        assert (view.ndim, view.format, view.contiguous) == (1, "B", True)
        assert len(view) > 0
    assert encoded.sizes == tuple(len(view) for view in encoded.buffers)
    assert encoded.total == sum(encoded.sizes)
    received = receive(encoded, codec)
    landed = codec.land(encoded.envelope, encoded.sizes)
    for destination, source in zip(landed.destinations, encoded.buffers, strict=True):
        destination[:] = source
    assert codec.encode(landed.finish()).envelope == codec.encode(received).envelope
    return received


def carry_one(value: Any, codec: Codec = CODEC) -> Any:
    """Carry one value, in an object."""
    return carry({"value": value}, codec)["value"]


def same(left: Any, right: Any) -> bool:
    """Compare exactly: types, order of entries, signs of zeros, NaN equal to NaN, dtype and order of arrays."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Shareable):  # whose headers come first on arrival
        return same(left.headers, right.headers) and same(_without_headers(left), _without_headers(right))
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            same(a, b) and same(left[a], right[b]) for a, b in zip(left, right, strict=True)
        )
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, np.ndarray):
        return bool(
            left.dtype == right.dtype
            and left.shape == right.shape
            and (left.flags.f_contiguous or not right.flags.f_contiguous or right.flags.c_contiguous)
            and left.tobytes() == right.tobytes()
        )
    if isinstance(left, np.generic) and not isinstance(left, (np.str_, np.bytes_)):
        return bool(left.dtype == right.dtype and left.tobytes() == right.tobytes())
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right) or (math.isnan(left) and math.isnan(right))
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    if isinstance(left, (dt.datetime, dt.time)):
        return (left, left.fold, left.utcoffset()) == (right, right.fold, right.utcoffset())
    return bool(left == right)


def _without_headers(value: Shareable) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key != "__headers__"}


def raw(*parts: Any) -> bytes:
    """Write an envelope by hand."""
    return msgspec.msgpack.encode(parts)


_DTYPES = st.one_of(
    nps.boolean_dtypes(),
    nps.integer_dtypes(endianness="?"),
    nps.unsigned_integer_dtypes(endianness="?"),
    nps.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    nps.complex_number_dtypes(endianness="?", sizes=(64, 128)),
    nps.datetime64_dtypes(endianness="?"),
    nps.timedelta64_dtypes(endianness="?"),
    nps.byte_string_dtypes(max_len=5),
    nps.unicode_string_dtypes(endianness="?", max_len=5),
)


@st.composite
def dtypes(draw: st.DrawFn) -> np.dtype[Any]:
    """Every dtype that travels, in both byte orders."""
    return draw(_DTYPES)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Arrays of every dtype, of no to four dimensions, in rows, in columns, or not contiguous."""
    array = draw(nps.arrays(draw(dtypes()), nps.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)))
    layout = draw(st.sampled_from(["rows", "columns", "strided", "reversed", "read-only"]))
    if layout == "columns":
        array = np.asfortranarray(array)
    elif layout == "strided" and array.ndim:
        array = array[::2]
    elif layout == "reversed" and array.ndim:
        array = array[..., ::-1]
    elif layout == "read-only":
        array.setflags(write=False)
    return array


@st.composite
def offsets(draw: st.DrawFn) -> dt.timezone | None:
    """No time zone, UTC, or any fixed offset, to the microsecond."""
    day = dt.timedelta(days=1) - dt.timedelta.resolution
    return draw(st.none() | st.just(dt.UTC) | st.timedeltas(-day, day).map(dt.timezone))


_MEMBERS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),  # two of them are not equal, which is as it should be, but does not compare
    st.complex_numbers(allow_nan=False),
    st.text(),
    st.binary(max_size=200),
    st.dates(),
    st.timedeltas(),
)


@st.composite
def hashables(draw: st.DrawFn, depth: int = 2) -> Any:
    """Values that may be a member of a set."""
    if not depth or draw(st.booleans()):
        return draw(_MEMBERS)
    inner = hashables(depth - 1)
    return draw(st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3))


@st.composite
def lone_surrogates(draw: st.DrawFn) -> str:
    """Texts with characters that UTF-8 has no place for."""
    return draw(st.text(st.characters(min_codepoint=0xD000, max_codepoint=0xE000, exclude_categories=()), max_size=5))


@st.composite
def names(draw: st.DrawFn) -> str:
    """Names of a Shareable's entries."""
    return draw(st.text().filter(lambda name: name != "__headers__"))


@st.composite
def keys(draw: st.DrawFn, depth: int = 2) -> Any:
    """Values that may be a key of a dict."""
    if depth and draw(st.booleans()):
        return draw(st.lists(keys(depth - 1), max_size=3).map(tuple))
    return draw(_KEYS)


_KEYS = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.binary(max_size=20), lone_surrogates())
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 200), 1 << 200),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    lone_surrogates(),
    st.binary(max_size=300),
    st.binary(max_size=300).map(bytearray),
    st.dates(),
    st.timedeltas(),
    st.datetimes(timezones=offsets()),
    st.times(timezones=offsets()),
    st.datetimes().map(lambda moment: moment.replace(fold=1)),
    arrays(),
    dtypes().flatmap(nps.from_dtype),
    st.sets(hashables(), max_size=4),
    st.frozensets(hashables(), max_size=4),
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(), inner, max_size=4),
        st.dictionaries(keys(), inner, max_size=4),
        st.dictionaries(names(), inner, max_size=3).map(Shareable),
    ),
    max_leaves=12,
)


@st.composite
def values(draw: st.DrawFn) -> Any:
    """Everything that travels, nested."""
    return draw(_VALUES)
