"""torch tensors as nodes of an envelope, and back. Imported only where torch is wanted."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, Final

import torch

from . import tags
from .arrays import shape_bytes
from .blocks import Block
from .faults import Fault
from .memory import SMALLEST, Memory

if TYPE_CHECKING:
    from .decode import Reader
    from .encode import Writer

_DTYPES: Final = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "bfloat16", "float32", "float64", "complex64", "complex128",
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
)  # fmt: skip
_BY_NAME: Final[dict[str, torch.dtype]] = {name: getattr(torch, name) for name in _DTYPES}
_CHECKED_SOON: Final = 1 << 20  # bytes, which torch looks through in less than 1 ms
_BY_DTYPE: Final = {dtype: name for name, dtype in _BY_NAME.items()}


def tensor_node(writer: Writer, value: torch.Tensor, _depth: int) -> list[Any]:
    """Turn a tensor or parameter into a node; it arrives as a tensor on the CPU that needs no gradient."""
    name = _BY_DTYPE.get(value.dtype)
    if name is None:
        raise Fault(f"torch dtype {value.dtype} is not in the registry: send a float, an int or a bool", unknown=True)
    if value.layout is not torch.strided or value.is_meta or value.is_nested:
        hint = "send a dense tensor that has data (to_dense())"
        raise Fault(f"a torch tensor of layout {value.layout} on {value.device} does not travel: {hint}", unknown=True)
    _little_endian()
    shape = value.shape
    writer.count(3 + len(shape))
    # A view where the tensor is a contiguous one on the CPU already, a copy where it is not.
    plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if plain.numel() == 0:
        return [tags.TENSOR, name, b"", *shape]
    # As bytes, since numpy has no bfloat16.
    view = memoryview(plain.reshape(-1).view(torch.uint8).numpy())
    return [tags.TENSOR, name, writer.content(view, private=plain.data_ptr() != value.data_ptr()), *shape]


def read_tensor(reader: Reader, node: list[Any], _depth: int) -> torch.Tensor | None:
    """Turn a node back into a tensor; None while the buffers are still to come."""
    if len(node) < 3 or type(node[1]) is not str:
        raise Fault("malformed envelope: a tensor without dtype or content")
    dtype = _BY_NAME.get(node[1])
    if dtype is None:
        raise Fault(f"torch dtype {node[1][:40]!r} is not known to torch {torch.__version__} here", unknown=True)
    _little_endian()
    shape = node[3:]
    size = shape_bytes(shape, dtype.itemsize)
    content = node[2]
    if content is None:
        return reader.claim(lambda _size: TensorBlock(dtype, shape, size, reader.memory), size)
    if type(content) is not bytes or len(content) != size:
        raise Fault(f"malformed envelope: a tensor of {size} bytes with other content")
    block = TensorBlock(dtype, shape, size, reader.memory)
    block.adopt(memoryview(bytearray(content)))  # of its own, so that the tensor is private
    return block.value()


def _little_endian() -> None:
    if sys.byteorder != "little":
        raise Fault("torch tensors travel in little-endian order, which this machine has not; send numpy arrays")


class TensorBlock(Block):
    """A tensor that is received in place: *size* bytes, 0 included."""

    __slots__ = ("_dtype", "_memory", "_raw", "_shape", "_size")

    def __init__(self, dtype: torch.dtype, shape: list[int], size: int, memory: Memory) -> None:
        self._dtype = dtype
        self._shape = shape
        self._size = size
        self._memory = memory
        self._raw: torch.Tensor | None = None

    def allocate(self) -> memoryview:
        """Allocate the tensor and view its memory."""
        if self._size < SMALLEST:
            self._raw = torch.empty(self._size, dtype=torch.uint8)
            return memoryview(self._raw.numpy())
        block = self._memory.take(self._size)
        self.adopt(block)
        return block

    def adopt(self, memory: memoryview) -> None:
        """Make the tensor of the memory."""
        # torch refuses an empty buffer.
        self._raw = torch.frombuffer(memory, dtype=torch.uint8) if self._size else torch.empty(0, dtype=torch.uint8)

    @property
    def quick(self) -> float:  # type: ignore[override]  # of this dtype
        """Bytes up to which it takes no time to check the tensor; most dtypes have nothing to check."""
        return _CHECKED_SOON if self._dtype is torch.bool else math.inf

    def value(self) -> torch.Tensor:
        """Return the tensor."""
        raw = self._raw
        assert raw is not None, "value() before allocate()"
        if self._dtype is torch.bool and self._size and int(raw.max()) > 1:
            raise Fault("a bool tensor holds bytes other than 0 and 1")
        return raw.view(self._dtype).reshape(self._shape)
