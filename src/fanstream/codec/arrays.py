"""numpy arrays and scalars as nodes of an envelope, and back. Imported only where numpy is wanted."""

from __future__ import annotations

import math
import re
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from . import tags
from .blocks import Block
from .faults import Fault
from .memory import SMALLEST, Memory

if TYPE_CHECKING:
    from .decode import Reader
    from .encode import Writer

Array = np.ndarray[Any, Any]
Order = Literal["C", "F"]

# Everything of fixed meaning: no objects, structures or voids, and no long double, whose width is the platform's. A
# dtype from the wire goes to numpy only if it is one of these, spelt as numpy spells it.
_DTYPE: Final = re.compile(
    r"\|b1|\|[iu]1|[<>][iu][248]|[<>]f[248]|[<>]c(8|16)|\|S[1-9]\d{0,8}|[<>]U[1-9]\d{0,8}"
    r"|[<>][mM]8(\[([1-9]\d{0,8})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?"
)
_MOST_DIMENSIONS: Final = 64  # NumPy 2's own limit
_LAST_CODE_POINT: Final = 0x10FFFF
_CHECKED_SOON: Final = 1 << 20  # bytes, which numpy looks through in less than 0.2 ms


@lru_cache(maxsize=256)
def _code(dtype: np.dtype[Any]) -> str:
    """Spell a dtype for the wire: ``<f4``, ``>i8``, ``|S3``, ``<M8[ns]``."""
    code = dtype.str
    if _DTYPE.fullmatch(code):
        return code
    if dtype.hasobject:
        hint = "arrays of Python objects do not travel; send a list, or an array of numbers or fixed strings"
    elif dtype.kind == "V":
        hint = "structured and void arrays do not travel; send a dict of one array for each field"
    elif dtype.kind in "fc":
        hint = "long double differs between platforms; send float64 or complex128"
    else:
        hint = "send an array of numbers or fixed strings"
    raise Fault(f"numpy dtype {str(dtype)[:40]!r} is not in the registry: {hint}", unknown=True)


@lru_cache(maxsize=256)
def _dtype(code: str) -> np.dtype[Any]:
    """Read a dtype that came from the wire."""
    if not _DTYPE.fullmatch(code):
        raise Fault(f"malformed envelope: {code[:40]!r} is not a dtype that travels")
    return np.dtype(code)


def byte_view(array: Array) -> memoryview:
    """View the memory of a contiguous array that is not empty, rows or columns first, as bytes."""
    if not array.flags.c_contiguous:
        array = array.T
    if array.dtype.kind in "mM":  # the buffer protocol has no letter for these
        array = array.view(np.int64)
    return array.data.cast("B")


def array_node(writer: Writer, value: Array, _depth: int) -> list[Any]:
    """Turn an array into a node; its memory travels as it is, unless it is small or not contiguous."""
    shape = value.shape
    writer.count(3 + len(shape))
    code = _code(value.dtype)
    flags = value.flags
    tag = tags.ARRAY
    private = False
    if not flags.c_contiguous:
        if flags.f_contiguous:
            tag = tags.ARRAY_F
        else:
            value, private = value.copy(order="C"), True
    if value.nbytes == 0:
        return [tag, code, b"", *shape]
    return [tag, code, writer.content(byte_view(value), private=private), *shape]


def scalar_node(writer: Writer, value: np.generic, depth: int) -> list[Any]:
    """Turn a numpy scalar into a node."""
    # numpy drops the zeros at the end of these, even in str(); they travel as what they are derived from.
    if isinstance(value, np.str_):
        writer.count(2)
        return [tags.NUMPY_STR, writer.node(str.__str__(value), depth)]
    if isinstance(value, np.bytes_):
        writer.count(2)
        return [tags.NUMPY_BYTES, writer.node(bytes(value), depth)]
    writer.count(3)
    return [tags.SCALAR, _code(value.dtype), value.tobytes()]


def read_array(reader: Reader, node: list[Any], _depth: int) -> Array | None:
    """Turn a node back into an array; None while the buffers are still to come."""
    if len(node) < 3 or type(node[1]) is not str:
        raise Fault("malformed envelope: an array without dtype or content")
    dtype = _dtype(node[1])
    shape = node[3:]
    size = shape_bytes(shape, dtype.itemsize)
    order: Order = "F" if node[0] == tags.ARRAY_F else "C"
    content = node[2]
    if content is None:
        return reader.claim(lambda _size: ArrayBlock(dtype, shape, order, reader.memory), size)  # type: ignore[no-any-return]
    if type(content) is not bytes or len(content) != size:
        raise Fault(f"malformed envelope: an array of {size} bytes with other content")
    # A bytearray of its own, so that the array is private and writable.
    return checked(np.ndarray(shape, dtype, bytearray(content) if size else None, order=order))


def read_scalar(_reader: Reader, node: list[Any], _depth: int) -> np.generic:
    """Turn a node back into a numpy scalar."""
    if len(node) != 3 or type(node[1]) is not str or type(node[2]) is not bytes:
        raise Fault("malformed envelope: a numpy scalar without dtype or content")
    dtype = _dtype(node[1])
    if dtype.kind in "SU" or len(node[2]) != dtype.itemsize:
        raise Fault(f"malformed envelope: a numpy scalar of {len(node[2])} bytes for dtype {node[1]}")
    scalar: np.generic = checked(np.frombuffer(node[2], dtype))[0]
    return scalar


def read_numpy_str(reader: Reader, node: list[Any], depth: int) -> np.str_ | None:
    """Turn a node back into a ``numpy.str_``; None while the buffers are still to come."""
    value = reader.only(node, depth)
    if reader.still_to_come(value, str):
        return None
    return np.str_(value)


def read_numpy_bytes(reader: Reader, node: list[Any], depth: int) -> np.bytes_ | None:
    """Turn a node back into a ``numpy.bytes_``; None while the buffers are still to come."""
    value = reader.only(node, depth)
    if reader.still_to_come(value, bytes):
        return None
    return np.bytes_(value)


def shape_bytes(shape: list[Any], itemsize: int) -> int:
    """Check a shape from the wire and return the bytes of such an array.

    Raises:
        Fault: not a list of at most 64 whole numbers from 0 up, or more bytes than can be addressed (even where another
            dimension is 0, for numpy refuses those too).
    """
    if len(shape) > _MOST_DIMENSIONS:
        raise Fault(f"malformed envelope: an array of {len(shape)} dimensions, limit {_MOST_DIMENSIONS}")
    size = room = itemsize
    for dimension in shape:
        if type(dimension) is not int or dimension < 0:
            raise Fault("malformed envelope: a dimension that is not a whole number from 0 up")
        size *= dimension
        room *= dimension or 1
    if room > sys.maxsize:
        raise Fault(f"malformed envelope: an array of {room} bytes cannot be addressed")
    return size


def checked(array: Array) -> Array:
    """Refuse bytes that are no values of their dtype and that numpy would trip over later.

    Raises:
        Fault: a bool that is neither 0 nor 1, or a character beyond Unicode.
    """
    kind = array.dtype.kind
    if kind not in "bU" or array.size == 0:
        return array
    flat = array.ravel(order="K")
    if kind == "b":
        if flat.view(np.uint8).max() > 1:
            raise Fault("a bool array holds bytes other than 0 and 1")
    elif flat.view(f"{array.dtype.byteorder}u4").max() > _LAST_CODE_POINT:
        raise Fault("a text array holds characters beyond U+10FFFF")
    return array


class ArrayBlock(Block):
    """An array that is received in place."""

    __slots__ = ("_array", "_dtype", "_memory", "_order", "_shape")

    def __init__(self, dtype: np.dtype[Any], shape: list[int], order: Order, memory: Memory) -> None:
        self._dtype = dtype
        self._shape = shape
        self._order = order
        self._memory = memory
        self._array: Array | None = None

    def allocate(self) -> memoryview:
        """Allocate the array, in its own order, and view its memory."""
        size = shape_bytes(self._shape, self._dtype.itemsize)
        if size < SMALLEST:
            self._array = array = np.empty(self._shape, self._dtype, self._order)
            return byte_view(array)
        block = self._memory.take(size)
        self.adopt(block)
        return block

    def adopt(self, memory: memoryview) -> None:
        """Make the array of the memory."""
        # Not np.ndarray(buffer=memory): its base would be what the view is of, and a block free before its time.
        self._array = np.frombuffer(memory, self._dtype).reshape(self._shape, order=self._order)

    @property
    def quick(self) -> float:  # type: ignore[override]  # of this dtype
        """Bytes up to which it takes no time to check the array; most dtypes have nothing to check."""
        return _CHECKED_SOON if self._dtype.kind in "bU" else math.inf

    def value(self) -> Array:
        """Return the array."""
        assert self._array is not None, "value() before allocate()"
        return checked(self._array)
