"""Encoding: one walk over an object that makes its tree and gathers its buffers."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Callable, Iterable
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, Final

from ..errors import chained
from ..shareable import ReservedHeaderKey, ReturnCode, Shareable
from . import tags, times
from .faults import Fault, key_step, name_step, type_name
from .hashes import check_spread
from .types import TypeRegistry, is_numpy_scalar

if TYPE_CHECKING:
    from ..options import Limits

Step = Callable[[Any], str]  # names an entry of a container, for error messages
Node = Any  # None, bool, int, float, str, bytes, a dict of nodes, or a list that begins with a tag

_HEADERS: Final = ReservedHeaderKey.HEADERS
_SMALLEST_INT: Final = -(1 << 63)
_LARGEST_INT: Final = (1 << 64) - 1
# Travel as themselves whatever their value.
_PLAIN: Final = frozenset((type(None), bool, float))

# What a buffer costs out of band (a destination, a turn in the queue, a chunk's header) is worth it from some KiB on,
# which is limits.inline. But a state dict of 1,000 small arrays must fit into an envelope of 256 KiB, so once this much
# has travelled inline, only smaller and smaller buffers do. Bytes of buffers, and the budget up to which they stay:
TINY: Final = 64  # inline whatever else is: the descriptor of a buffer is as long
_SMALL: Final = 512
FREE_BUDGET: Final = 32 * 1024
_SMALL_BUDGET: Final = 64 * 1024


class Writer:
    """The state of one encoding.

    Attributes:
        buffers: the out-of-band buffers found so far, in order.
        total: their bytes.
        envelope_limit: bytes that the envelope may have.
        nodes: msgpack values of the envelope so far.

    Args:
        limits: what an object may hold.
        types: the application's types.
        inline_only: no buffers: everything goes into the envelope.
        copy: take private copies of buffers.
        nodes: msgpack values around the ones that are counted here.
        room: bytes that the envelope may have.
    """

    __slots__ = (
        "_copy", "_depth_limit", "_inline_most", "_inline_only", "_inlined", "_limits", "_room", "_small_room",
        "_types", "buffers", "envelope_limit", "nodes", "total",
    )  # fmt: skip

    def __init__(
        self, limits: Limits, types: TypeRegistry, *, inline_only: bool, copy: bool, nodes: int, room: int
    ) -> None:
        self._limits = limits
        self._types = types
        self._inline_only = inline_only
        self._copy = copy
        self._depth_limit = limits.depth
        self._inline_most = limits.inline
        self._inlined = 0
        self._room = room if inline_only else min(FREE_BUDGET, room // 4)
        self._small_room = min(_SMALL_BUDGET, room // 2)
        self.envelope_limit = room
        self.buffers: list[memoryview] = []
        self.total = 0
        self.nodes = nodes

    # -- what handlers ask for ---------------------------------------------------------------------------------------

    def node(self, value: Any, depth: int) -> Node:
        """Turn any value into a node; *depth* containers are around it."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        handler = _HANDLERS.get(kind)
        return handler(self, value, depth) if handler is not None else self._other(value, kind, depth)

    def enter(self, depth: int, nodes: int) -> int:
        """Go one container deeper, which holds *nodes* msgpack values of its own.

        Raises:
            Fault: too deep, or too many values.
        """
        if depth >= self._depth_limit:
            raise Fault(f"containers nest deeper than {self._depth_limit}, or one contains itself")
        self.count(nodes)
        return depth + 1

    def count(self, nodes: int) -> None:
        """Count *nodes* more msgpack values.

        Raises:
            Fault: too many.
        """
        self.nodes += nodes
        if self.nodes > self._limits.nodes:
            hint = "send numbers as an array, or fewer entries in one object"
            raise Fault(f"the object holds at least {self.nodes} values, limit {self._limits.nodes}: {hint}")

    def fits(self, size: int) -> bool:
        """Decide whether a buffer of *size* bytes travels inside the envelope.

        Raises:
            Fault: it would have to, and there is no room.
        """
        if self._inline_only:
            self._inlined += size
            if self._inlined > self._room:
                raise Fault(f"at least {self._inlined} bytes, limit {self._room} for a value without buffers")
            return True
        if size <= TINY:
            return size <= self._inline_most
        if size > self._inline_most:
            return False
        inlined = self._inlined + size
        if inlined > self._room and (size > _SMALL or inlined > self._small_room):
            return False
        self._inlined = inlined
        return True

    def check_room(self, size: int) -> None:
        """Check that *size* more bytes can travel at all.

        Raises:
            Fault: the object would be larger than the limit.
        """
        if self.total + size > self._limits.object:
            raise Fault(f"the object is at least {self.total + size} bytes, limit {self._limits.object}")

    def send_apart(self, view: memoryview, *, private: bool = False) -> None:
        """Let a buffer travel out of band.

        Args:
            view: contiguous, one-dimensional, format ``"B"``, not empty.
            private: nobody else can change this memory.
        """
        size = len(view)
        self.check_room(size)
        if len(self.buffers) >= self._limits.buffers:
            raise Fault(f"the object has more than {self._limits.buffers} buffers")
        self.total += size
        self.buffers.append(memoryview(bytes(view)) if self._copy and not private else view)

    def content(self, view: memoryview, *, private: bool = False) -> bytes | None:
        """Turn a buffer into a content: its bytes, or None when it travels out of band."""
        if self.fits(len(view)):
            return view.tobytes()
        self.send_apart(view, private=private)
        return None

    def shareable(self, headers: Any, data: dict[Any, Any], depth: int, step: Step = name_step) -> tuple[Node, Node]:
        """Turn the headers and the data of a Shareable into two nodes."""
        self.count(2)
        try:
            if type(headers) is not dict:
                raise Fault(f"headers are a {type_name(type(headers))}, expected a dict", unknown=True)
            header_node = _dict(self, headers, depth)
            if type(header_node) is not dict:
                raise Fault("the names of headers have to be str, without lone surrogates")
        except Fault as fault:
            fault.within(step(_HEADERS))
            raise
        return header_node, _dict(self, data, depth, step)

    # -- types that are not in the table -----------------------------------------------------------------------------

    def _other(self, value: Any, kind: type, depth: int) -> Node:
        entry = self._types.for_class(kind)
        if entry is not None:
            depth = self.enter(depth, 3)
            try:
                inner = entry.encode(value)
            except Exception as exc:
                raise chained(Fault(f"the encoder registered for {entry.tag!r} raised {type(exc).__name__}"), exc)
            try:
                return [tags.APPLICATION, entry.tag, self.node(inner, depth)]
            except Fault as fault:
                fault.within(f"<{entry.tag}>")
                raise
        if issubclass(kind, StrEnum):
            return _str(self, str.__str__(value), depth)
        handler = _foreign(kind)
        if handler is None:
            raise Fault(f"type {type_name(kind)} is not in the registry; {_hint(kind)}", unknown=True)
        _HANDLERS[kind] = handler
        return handler(self, value, depth)


Handler = Callable[[Writer, Any, int], Node]


def _int(writer: Writer, value: int, _depth: int) -> Node:
    if _SMALLEST_INT <= value <= _LARGEST_INT:
        return value
    size = value.bit_length() // 8 + 1
    if size > writer.envelope_limit:
        raise Fault(f"an int of {size} bytes, limit {writer.envelope_limit}")
    writer.count(2)
    return [tags.BIG_INT, value.to_bytes(size, "little", signed=True)]


def _str(writer: Writer, value: str, _depth: int) -> Node:
    if value.isascii():
        if len(value) <= TINY or writer.fits(len(value)):
            return value
        raw = value.encode()
    else:
        try:
            raw = value.encode()
        except UnicodeEncodeError:
            writer.count(2)
            return [tags.SURROGATES, _bytes(writer, value.encode("utf-8", "surrogatepass"), _depth)]
        if len(raw) <= TINY or writer.fits(len(raw)):
            return value
    writer.count(1)
    writer.send_apart(memoryview(raw), private=True)
    return [tags.TEXT]


def _bytes(writer: Writer, value: bytes, _depth: int) -> Node:
    if writer.fits(len(value)):
        return value
    writer.count(1)
    writer.send_apart(memoryview(value), private=True)
    return [tags.BYTES]


def _bytearray(writer: Writer, value: bytearray, _depth: int) -> Node:
    writer.count(2)
    return [tags.BYTEARRAY, writer.content(memoryview(value))]


def _memoryview(writer: Writer, value: memoryview, depth: int) -> Node:
    try:
        if value.nbytes == 0:
            return b""
        if not value.c_contiguous:
            return _bytes(writer, value.tobytes(), depth)
        view = value.cast("B")
    except ValueError as exc:  # "operation forbidden on released memoryview object"
        raise chained(Fault(f"the memoryview cannot be read: {exc}"), None)
    content = writer.content(view)
    if content is not None:
        return content
    writer.count(1)
    return [tags.BYTES]


def _dict(writer: Writer, value: dict[Any, Any], depth: int, step: Step = key_step) -> Node:
    depth = writer.enter(depth, 2 * len(value))
    nodes: list[Node] = []
    plain = True
    key: Any = None
    try:
        for key, item in value.items():
            if type(key) is not str or not (key.isascii() or _is_text(key)):
                plain = False
            nodes.append(item if type(item) in _PLAIN else writer.node(item, depth))
    except Fault as fault:
        fault.within(step(key))
        raise
    return dict(zip(value, nodes, strict=True)) if plain else _pairs(writer, value, nodes, depth)


def _pairs(writer: Writer, value: dict[Any, Any], nodes: list[Node], depth: int) -> Node:
    """Make the node of a dict with keys that are not all plain strings, from the *nodes* of its values."""
    names = [str.__str__(key) if isinstance(key, StrEnum) else key for key in value]
    if all(type(name) is str and _is_text(name) for name in names):
        return dict(zip(names, nodes, strict=True))
    check_spread(names)
    writer.count(1)
    pairs: list[Node] = [tags.PAIRS]
    for key, node in zip(names, nodes, strict=True):
        try:
            pairs += (_key(writer, key, depth), node)
        except Fault as fault:
            fault.within(key_step(key))
            raise
    return pairs


def _key(writer: Writer, key: Any, depth: int) -> Node:
    """Turn a key into a node without buffers."""
    kind = type(key)
    if key is None or kind is bool or kind is int:
        return writer.node(key, depth)
    if kind is bytes:
        return key
    if kind is str:
        if _is_text(key):
            return key
        writer.count(2)
        return [tags.SURROGATES, key.encode("utf-8", "surrogatepass")]
    if kind is tuple:
        depth = writer.enter(depth, 1 + len(key))
        return [tags.TUPLE, *(_key(writer, part, depth) for part in key)]
    hint = "keys are str, int, bytes, bool, None, or tuples of those"
    raise Fault(f"a key of type {type_name(kind)} does not travel: {hint}", unknown=True)


def _sequence(tag: int) -> Handler:
    def encode(writer: Writer, value: Iterable[Any], depth: int) -> Node:
        items = list(value)  # nobody else adds to this one while it is walked
        depth = writer.enter(depth, 1 + len(items))
        nodes: list[Node] = [tag]
        try:
            for item in items:
                nodes.append(item if type(item) in _PLAIN else writer.node(item, depth))  # noqa: PERF401  # see below
        except Fault as fault:
            fault.within(f"[{len(nodes) - 1}]")  # as many as went well stand after the tag
            raise
        return nodes

    return encode


def _collection(tag: int) -> Handler:
    def encode(writer: Writer, value: set[Any] | frozenset[Any], depth: int) -> Node:
        depth = writer.enter(depth, 1 + len(value))
        check_spread(value)
        nodes: list[Node] = [tag]
        try:
            nodes += [writer.node(item, depth) for item in value]
        except Fault as fault:
            fault.within("{}")
            raise
        return nodes

    return encode


def _shareable(writer: Writer, value: Shareable, depth: int) -> Node:
    writer.count(1)
    data = value.copy()
    headers = data.pop(_HEADERS, None)
    return [tags.SHAREABLE, *writer.shareable({} if headers is None else headers, data, depth, key_step)]


def _return_code(_writer: Writer, value: ReturnCode, _depth: int) -> Node:
    return value.value


def _leaf(make: Callable[[Any], list[Node]]) -> Handler:
    def encode(writer: Writer, value: Any, _depth: int) -> Node:
        node = make(value)
        writer.count(len(node))
        return node

    return encode


# Exact types. Types of numpy, torch and pyarrow are added when their first value is met.
_HANDLERS: Final[dict[type, Handler]] = {
    int: _int,
    str: _str,
    bytes: _bytes,
    dict: _dict,
    list: _sequence(tags.LIST),
    tuple: _sequence(tags.TUPLE),
    set: _collection(tags.SET),
    frozenset: _collection(tags.FROZENSET),
    bytearray: _bytearray,
    memoryview: _memoryview,
    complex: _leaf(lambda value: [tags.COMPLEX, value.real, value.imag]),
    dt.datetime: _leaf(times.datetime_node),
    dt.date: _leaf(times.date_node),
    dt.time: _leaf(times.time_node),
    dt.timedelta: _leaf(times.timedelta_node),
    Shareable: _shareable,
    ReturnCode: _return_code,
}


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _foreign(kind: type) -> Handler | None:
    """Return the handler of a type of numpy, torch or pyarrow; None for any other type.

    A value of such a type exists, so its library is loaded already: nothing is imported on behalf of others.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None and (kind in (numpy.ndarray, numpy.memmap) or is_numpy_scalar(kind)):
        from . import arrays

        return arrays.scalar_node if is_numpy_scalar(kind) else arrays.array_node
    torch = sys.modules.get("torch")
    if torch is not None and kind in (torch.Tensor, torch.nn.Parameter):
        from . import tensors

        return tensors.tensor_node
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is not None and kind is pyarrow.Table:
        from . import tables

        return tables.table_node
    return None


def _hint(kind: type) -> str:
    """Say what to do about a type that does not travel."""
    if issubclass(kind, Enum):
        return "send its .value, or register it with register_type"
    for base in kind.__mro__[1:]:
        if base in _HANDLERS:
            return (
                f"it is derived from {type_name(base)}: send a plain {base.__name__}, or register it with register_type"
            )
    return "register it with register_type at both sides, or send what it consists of"
