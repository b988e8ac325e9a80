"""Arrow tables as nodes of an envelope, and back. Imported only where pyarrow is wanted."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from . import tags
from .blocks import Block
from .faults import Fault

if TYPE_CHECKING:
    from .decode import Reader
    from .encode import Writer

# Field numbers of Arrow's Message.fbs: Message.header, DictionaryBatch.data, RecordBatch.compression.
_HEADER: Final = 2
_DICTIONARY_DATA: Final = 1
_COMPRESSION: Final = 3


def table_node(writer: Writer, value: Any, _depth: int) -> list[Any]:
    """Turn a ``pyarrow.Table`` into a node: one buffer that holds an IPC stream."""
    writer.count(2)
    writer.check_room(value.nbytes)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, value.schema, options=pa.ipc.IpcWriteOptions(compression=None)) as stream:
        stream.write_table(value)
    return [tags.TABLE, writer.content(memoryview(sink.getvalue()).cast("B"), private=True)]


def read_table(reader: Reader, node: list[Any], _depth: int) -> Any:
    """Turn a node back into a table; None while the buffers are still to come."""
    if len(node) != 2:
        raise Fault("malformed envelope: a table without content")
    content = node[1]
    if content is None:
        return reader.claim(TableBlock, None)
    if type(content) is not bytes:
        raise Fault("malformed envelope: a table with other content")
    return _parse(pa.py_buffer(bytearray(content)))


class TableBlock(Block):
    """A table that is received in place: its columns are views of the *size* bytes received."""

    __slots__ = ("_buffer", "_size")
    quick = 64 * 1024

    def __init__(self, size: int) -> None:
        self._size = size
        self._buffer: Any = None

    def allocate(self) -> memoryview:
        """Allocate the memory of the table's columns and view it."""
        self._buffer = pa.allocate_buffer(self._size)
        return memoryview(self._buffer).cast("B")

    def adopt(self, memory: memoryview) -> None:
        """Take the memory for that of the table's columns."""
        self._buffer = pa.py_buffer(memory)

    def value(self) -> Any:
        """Parse the table, which keeps its columns where they were received."""
        return _parse(self._buffer)


def _parse(buffer: Any) -> Any:
    try:
        _refuse_compression(buffer)
        table = pa.ipc.open_stream(buffer).read_all()
        # Offsets and texts that point elsewhere would be followed later, in C++ and without a check.
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, struct.error, MemoryError) as exc:
        raise Fault(f"an Arrow table of {buffer.size} bytes cannot be read: {type(exc).__name__}") from exc
    return table


def _refuse_compression(buffer: Any) -> None:
    """Refuse compressed batches: a few bytes of one may claim to become any number (threat T13). We never send them."""
    messages = pa.ipc.MessageReader.open_stream(buffer)
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        if message.type not in ("record batch", "dictionary"):
            continue
        metadata = memoryview(message.metadata).cast("B")
        batch = _follow(metadata, _follow(metadata, 0), _HEADER)
        if message.type == "dictionary":
            batch = _follow(metadata, batch, _DICTIONARY_DATA)
        if _field(metadata, batch, _COMPRESSION):
            raise ValueError("compressed batch")


def _field(metadata: memoryview, table: int, number: int) -> int:
    """Return where a flatbuffers table keeps its field *number*; 0 where it has none."""
    vtable = table - int(struct.unpack_from("<i", metadata, table)[0])
    length: int = struct.unpack_from("<H", metadata, vtable)[0]
    entry = 4 + 2 * number
    offset: int = struct.unpack_from("<H", metadata, vtable + entry)[0] if entry + 2 <= length else 0
    return table + offset if offset else 0


def _follow(metadata: memoryview, table: int, number: int | None = None) -> int:
    """Return the table that field *number* refers to; with *number* None, that the bytes at *table* refer to."""
    at = table if number is None else _field(metadata, table, number)
    if number is not None and not at:
        raise ValueError("missing field")
    return at + int(struct.unpack_from("<I", metadata, at)[0])
