"""Destinations: the memory that an object's buffers are received into, which then becomes the received values."""

from __future__ import annotations

import ctypes
import math
import sys
from abc import ABC, abstractmethod
from typing import Any, Final

from .faults import Fault

_PIECE: Final = 1 << 20  # bytes; copying so much takes less than a millisecond


class Block(ABC):
    """One buffer of an object being received.

    Making a block allocates nothing: :meth:`allocate` is called once everything that was announced has been checked;
    or :meth:`adopt`, where the buffer was received before anything was known of it.

    Attributes:
        quick: bytes up to which :meth:`value` takes no time that counts.
    """

    __slots__ = ()
    quick: float = math.inf

    @abstractmethod
    def allocate(self) -> memoryview:
        """Allocate the memory and return it: writable, one-dimensional, format ``"B"``. It keeps the memory alive."""

    @abstractmethod
    def adopt(self, memory: memoryview) -> None:
        """Take memory that is filled already, whose size the block was made for; it belongs to the block."""

    @abstractmethod
    def value(self) -> Any:
        """Make the received value of the filled memory, without copying where the type allows it.

        Raises:
            Fault: what was received is not a value of the type.
        """


class BytesBlock(Block):
    """A ``bytes`` object of *size* bytes, at least 1."""

    __slots__ = ("_memory", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._memory: bytes | bytearray = b""

    def allocate(self) -> memoryview:
        """Allocate the object and view its memory, which nobody else can see yet."""
        if not _IN_PLACE:
            self._memory = bytearray(self._size)
            return memoryview(self._memory)
        self._memory = memory = _new_bytes(None, self._size)
        raw = (ctypes.c_char * self._size).from_address(_address(memory))
        # The view keeps *raw* alive, and so raw has to keep the memory alive: a transport may outlive this block.
        raw._memory = memory  # type: ignore[attr-defined]  # ctypes lets its arrays have attributes
        return memoryview(raw).cast("B")

    def adopt(self, memory: memoryview) -> None:
        """Copy the memory, since that of a ``bytes`` is its own; in pieces, so that other threads run in between."""
        view = self.allocate()
        for start in range(0, len(memory), _PIECE):
            view[start : start + _PIECE] = memory[start : start + _PIECE]

    def value(self) -> Any:
        """Return the object itself; a copy on interpreters other than CPython."""
        memory = self._memory
        return memory if isinstance(memory, bytes) else bytes(memory)


class TextBlock(BytesBlock):
    """A ``str`` whose UTF-8 is *size* bytes."""

    __slots__ = ()
    quick = 64 * 1024

    def value(self) -> Any:
        """Return the text; Python keeps texts in a form of its own, so this is a copy."""
        try:
            return self._memory.decode()
        except UnicodeDecodeError as exc:
            raise Fault(f"a text of {self._size} bytes is not UTF-8: {exc.reason} at byte {exc.start}") from None


class ByteArrayBlock(Block):
    """A ``bytearray`` of *size* bytes."""

    __slots__ = ("_memory", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._memory = bytearray()

    def allocate(self) -> memoryview:
        """Allocate the object and view its memory."""
        # Python has no bytearray that is not filled with zeros first; a sender in a hurry sends bytes or an array.
        self._memory = bytearray(self._size)
        return memoryview(self._memory)

    def adopt(self, memory: memoryview) -> None:
        """Copy the memory, unless it is that of a bytearray."""
        self._memory = memory.obj if isinstance(memory.obj, bytearray) else bytearray(memory)

    def value(self) -> bytearray:
        """Return the object itself."""
        return self._memory


# CPython's C API, PyBytes_AsString: "The data must not be modified in any way, unless the object was just created using
# PyBytes_FromStringAndSize(NULL, size)." Nobody else holds the object until all of it has been received. Prototypes of
# our own, since setting restype on ctypes.pythonapi's functions would change them for every other library.
_IN_PLACE: Final = sys.implementation.name == "cpython"
if _IN_PLACE:
    _new_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
        ("PyBytes_FromStringAndSize", ctypes.pythonapi)
    )
    _address = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(("PyBytes_AsString", ctypes.pythonapi))
