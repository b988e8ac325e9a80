"""Codec: a Shareable to an envelope and buffers, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..errors import CodecError, chained
from ..shareable import ReservedHeaderKey, ReturnCode, Shareable
from . import tags
from .ciphertext import Carrier
from .decode import Reader, make_shareable
from .encode import FREE_BUDGET, Writer
from .faults import REFUSALS, Fault, refuse
from .memory import SMALLEST, Memory
from .payloads import Decoding, Encoded, Undecoded
from .scan import count_nodes
from .types import TypeRegistry, default_types

if TYPE_CHECKING:
    from ..options import Limits

_HEADERS: Final = ReservedHeaderKey.HEADERS
_RC: Final = ReservedHeaderKey.RC
_OK: Final = ReturnCode.OK

_FLAT_SCALARS: Final = frozenset((type(None), bool, int, float, ReturnCode))
_FLAT_TYPES: Final = frozenset((type(None), bool, int, float, str, bytes))
# A flat envelope up to here is sent; beyond it the tree form decides what still travels inline.
_FLAT_LIMIT: Final = FREE_BUDGET // 2
# An envelope up to here is decoded without being counted first: it costs at most some 2 MB and 2 ms, whatever it holds.
_UNCOUNTED: Final = 16 * 1024

_encode: Final[Callable[[Any], bytes]] = msgspec.msgpack.Encoder().encode
_decode: Final[Callable[[bytes], Any]] = msgspec.msgpack.Decoder().decode
_decode_flat: Final = msgspec.msgpack.Decoder(tuple[int, dict[str, Any], dict[str, Any]]).decode


_EMPTY: Final = Encoded(b"")
_PLAIN_OK: Final[bytes] = _encode((tags.FLAT, {_RC: _OK}, {}))


class Codec:
    """Turns objects into envelopes and buffers, and back; one serves all streams of an engine.

    Args:
        limits: what an object may hold, in both directions: ``envelope``, ``depth``, ``nodes``, ``buffers``, ``object``
            and ``inline``; and ``idle_memory``. None means the defaults.
        types: the application's types.

    Attributes:
        memory: what large arrays are received into.
        carrier: takes the place of this one where objects are sealed, and decodes none of them.
    """

    __slots__ = ("_flat_limit", "_inline_most", "_limits", "_types", "_uncounted", "carrier", "memory")

    def __init__(
        self,
        limits: Limits | None = None,
        types: TypeRegistry = default_types,
    ) -> None:
        if limits is None:
            from ..options import Limits

            limits = Limits()
        self._limits = limits
        self._types = types
        self.memory = Memory(limits.idle_memory)
        self.carrier = Carrier(self.memory)
        self._inline_most = limits.inline
        # No envelope holds more values than bytes.
        self._uncounted = min(_UNCOUNTED, limits.nodes, limits.envelope)
        self._flat_limit = min(_FLAT_LIMIT, self._uncounted)

    def encode(self, value: Mapping[str, Any], *, copy: bool = False) -> Encoded:
        """Encode an object.

        Args:
            value: a Shareable, or a mapping that is taken for one.
            copy: take private copies of its buffers, so that it may be changed at once.

        Raises:
            UnknownTypeError: it holds a value of a type that does not travel; ``path`` says where.
            CodecError: it is larger, deeper or more than the limits allow; the message says where.
        """
        if type(value) is Shareable:
            data = value.copy()
        elif isinstance(value, Mapping):
            data = dict(value)
        else:
            raise CodecError(f"an object is a {type(value).__name__}, expected a Shareable or another mapping")
        headers = data.pop(_HEADERS, None)
        if headers is None:
            headers = {}
        if not headers and not data and type(headers) is dict:
            return _EMPTY
        if type(headers) is dict and self._is_flat(data) and (not headers or self._is_flat(headers)):
            try:
                envelope = _encode((tags.FLAT, headers, data))
            except (OverflowError, UnicodeEncodeError):
                pass  # an int beyond 64 bits, or a lone surrogate, which the tree form can carry
            else:
                if len(envelope) <= self._flat_limit:
                    return Encoded(envelope)
        return self._encode_tree(headers, data, copy)

    def encode_value(self, value: Any, *, limit: int | None = None, name: str = "value") -> bytes:
        """Encode one value of any type that travels, with everything in the result.

        Args:
            value: the value.
            limit: the most bytes that the result may have; None means ``limits.envelope``.
            name: what the value is to the caller; error messages begin with it.

        Raises:
            UnknownTypeError: it holds a value of a type that does not travel; ``path`` says where.
            CodecError: it is larger, deeper or more than the limits allow; the message says where.
        """
        room = self._limits.envelope if limit is None else limit
        writer = Writer(self._limits, self._types, inline_only=True, copy=False, nodes=1, room=room)
        try:
            result = _encode(writer.node(value, 0))
            if len(result) > room:
                raise Fault(f"{len(result)} bytes when encoded, limit {room}")
        except REFUSALS as exc:
            refuse(exc, "encoded", name)
        return result

    def decode_value(self, data: bytes, *, limit: int | None = None, name: str = "value", imports: bool = True) -> Any:
        """Decode what :meth:`encode_value` made.

        Args:
            data: the bytes; nothing of them is kept.
            limit: the most bytes it may have; None means ``limits.envelope``.
            name: what the value is to the caller; error messages begin with it.
            imports: as in :meth:`begin`.

        Raises:
            UnknownTypeError: it holds a value of a type that is not in the registry here.
            CodecError: it violates the format or a limit.
            NotAtOnceError: as from :meth:`begin`.
        """
        try:
            tree = self._tree(data, self._limits.envelope if limit is None else limit)
            return Reader(self._types, self._limits.depth, self.memory, imports=imports).node(tree, 0)
        except REFUSALS as exc:
            refuse(exc, "decoded", name)

    def decode(self, envelope: bytes, *, imports: bool = True) -> Shareable:
        """Decode an object that has no buffers.

        Args:
            envelope: as in :class:`Encoded`; nothing of it is kept.
            imports: as in :meth:`begin`.

        Raises:
            UnknownTypeError, CodecError, NotAtOnceError: as in :meth:`begin`.
        """
        if envelope == _PLAIN_OK:  # most replies
            return make_shareable({_RC: _OK}, {})
        size = len(envelope)
        if size <= self._uncounted and size > 1 and envelope[1] == tags.FLAT:
            try:
                parts = _decode_flat(envelope)
                _, headers, data = parts
                _check_flat(headers)
                _check_flat(data)
                if _encode(parts) != envelope:
                    raise Fault(_NOT_SHORTEST)
                return make_shareable(headers, data)
            except REFUSALS as exc:
                refuse(exc, "decoded")
        return self.begin(envelope, (), imports=imports).finish()

    def begin(self, envelope: bytes, sizes: Sequence[int], *, imports: bool = True) -> Decoding:
        """Check what was announced, and allocate the memory that it is to be received into.

        Args:
            envelope: as in :class:`Encoded`; nothing of it is kept.
            sizes: the bytes of each buffer that will follow.
            imports: whether numpy, torch or pyarrow may be imported for it, which takes long.

        Raises:
            UnknownTypeError: the object holds a value of a type that is not in the registry here.
            CodecError: the envelope violates the format or a limit, or does not fit the sizes. Nothing was allocated.
            NotAtOnceError: *imports* is not set, and the object needs one of them that is not loaded.
        """
        try:
            reader, headers, data, value = self._read(envelope, sizes, imports)
            if not sizes:
                assert value is not None, "no value from a walk with all buffers"
                return Decoding((), False, value)
            try:
                destinations = tuple([block.allocate() for block in reader.blocks])
            except MemoryError as exc:
                raise chained(Fault(f"no memory for an object of {sum(sizes)} bytes"), exc)
        except REFUSALS as exc:
            refuse(exc, "decoded")
        return Decoding(destinations, reader.slow, None, (reader, headers, data))

    def land(self, envelope: bytes, sizes: Sequence[int] = ()) -> Undecoded:
        """Receive an object as it is: its envelope is long, or needs a library that is not loaded.

        Args:
            envelope: as in :class:`Encoded`; not looked at before the object is finished.
            sizes: the bytes of each buffer that will follow; checked by the caller.

        Raises:
            CodecError: there is no memory for it.
        """
        take = self.memory.take
        try:
            destinations = [take(size) if size >= SMALLEST else memoryview(bytearray(size)) for size in sizes]
        except MemoryError as exc:
            raise chained(CodecError(f"no memory for an object of {sum(sizes)} bytes"), exc)
        return Undecoded(tuple(destinations), envelope, self)

    def decode_landed(self, envelope: bytes, buffers: Sequence[memoryview]) -> Shareable:
        """Decode an object whose buffers are there; in any thread, and importing what it needs.

        Raises:
            UnknownTypeError, CodecError: as in :meth:`begin`, and as from ``Decoding.finish``.
        """
        try:
            reader, headers, data, value = self._read(envelope, tuple(map(len, buffers)), imports=True)
            if value is not None:
                return value
            for block, buffer in zip(reader.blocks, buffers, strict=True):
                block.adopt(buffer)
        except REFUSALS as exc:
            refuse(exc, "decoded")
        return Decoding((), True, None, (reader, headers, data)).finish()

    def _is_flat(self, values: dict[Any, Any]) -> bool:
        inline = self._inline_most
        for key, item in values.items():
            kind = type(item)
            if kind is str or kind is bytes:
                if len(item) > inline:
                    return False
            elif kind not in _FLAT_SCALARS:
                return False
            if type(key) is not str:
                return False
        return True

    def _encode_tree(self, headers: Any, data: dict[Any, Any], copy: bool) -> Encoded:
        limits = self._limits
        writer = Writer(limits, self._types, inline_only=False, copy=copy, nodes=2, room=limits.envelope)
        try:
            envelope = _encode((tags.TREE, *writer.shareable(headers, data, 0)))
            if len(envelope) > limits.envelope:
                hint = "it holds all keys, descriptors and small values: send fewer of them in one object"
                raise Fault(f"the envelope is {len(envelope)} bytes, limit {limits.envelope}; {hint}")
            writer.check_room(len(envelope))
        except REFUSALS as exc:
            refuse(exc, "encoded")
        buffers = tuple(writer.buffers)
        return Encoded(envelope, buffers, tuple(map(len, buffers)), writer.total)

    def _read(self, envelope: bytes, sizes: Sequence[int], imports: bool) -> tuple[Reader, Any, Any, Shareable | None]:
        """Check everything, in a first walk; without buffers that makes the value."""
        limits = self._limits
        sizes = _check_sizes(sizes, len(envelope), limits)
        reader = Reader(self._types, limits.depth, self.memory, sizes, imports=imports)
        if not len(envelope) and not sizes:
            return reader, {}, {}, make_shareable({}, {})
        tree = self._tree(envelope, limits.envelope)
        if type(tree) is not list or len(tree) != 3 or type(tree[0]) is not int:
            raise Fault("malformed envelope: it is not a form, headers and data")
        form, headers, data = tree
        if form == tags.FLAT:
            if type(headers) is not dict or type(data) is not dict:
                raise Fault("malformed envelope: the flat form is not two maps")
            _check_flat(headers)
            _check_flat(data)
        elif form != tags.TREE:
            raise Fault(f"malformed envelope: form {form} is not known to this version")
        value = reader.object(headers, data)
        return reader, headers, data, None if sizes else value

    def _tree(self, data: bytes, limit: int) -> Any:
        """Decode msgpack, refusing what is too much before anything is built of it."""
        if len(data) > limit:
            raise Fault(f"the envelope is {len(data)} bytes, limit {limit}")
        if len(data) > self._uncounted:
            count_nodes(data, self._limits.nodes)
        tree = _decode(data)
        # A map with equal keys has lost one of them and is shorter now. That everything else has one spelling too keeps
        # two receivers from reading one envelope in two ways.
        if _encode(tree) != data:
            raise Fault(_NOT_SHORTEST)
        return tree


_NOT_SHORTEST: Final = "malformed envelope: a map has equal keys, or something is not in its shortest form"


def _check_flat(values: dict[str, Any]) -> None:
    for item in values.values():
        if type(item) not in _FLAT_TYPES:
            raise Fault("malformed envelope: the flat form holds a value that is not flat")


def _check_sizes(sizes: Sequence[object], envelope: int, limits: Limits) -> tuple[int, ...]:
    if len(sizes) > limits.buffers:
        raise Fault(f"{len(sizes)} buffers announced, limit {limits.buffers}")
    total = envelope
    checked: list[int] = []
    for index, size in enumerate(sizes):
        if type(size) is not int or size < 1:
            raise Fault(f"buffer {index} is announced with {size!r} bytes, expected at least 1")
        total += size
        checked.append(size)
    if total > limits.object:
        raise Fault(f"the object is {total} bytes, limit {limits.object}")
    return tuple(checked)
