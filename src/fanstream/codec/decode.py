"""Decoding: one walk over an envelope's tree that checks it and makes the values.

An object with buffers is walked twice: before they arrive, to check everything and to learn what each buffer is
(nothing of their size is allocated before that walk has ended), and once they are there, to make the values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ..errors import chained
from ..shareable import ReservedHeaderKey, Shareable
from . import tags, times
from .blocks import Block, ByteArrayBlock, BytesBlock, TextBlock
from .faults import Fault, NotAtOnceError, key_step, name_step
from .hashes import check_spread
from .libraries import is_loaded
from .memory import Memory
from .types import TypeRegistry

_HEADERS: Final = ReservedHeaderKey.HEADERS
_new: Final = Shareable.__new__
_PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes))
_SMALLEST_INT: Final = -(1 << 63)
_LARGEST_INT: Final = (1 << 64) - 1


class Reader:
    """The state of one decoding.

    Args:
        types: the application's types.
        depth_limit: how deep containers may nest.
        memory: what large arrays are received into.
        sizes: bytes of each buffer, in order.
        imports: whether a library may be imported.

    Attributes:
        blocks: of the buffers, in order.
        live: whether the buffers are there.
        slow: whether it may take long to make the values of them.
    """

    __slots__ = ("_depth_limit", "_imports", "_sizes", "_taken", "_types", "blocks", "live", "memory", "slow")

    def __init__(
        self, types: TypeRegistry, depth_limit: int, memory: Memory, sizes: Sequence[int] = (), *, imports: bool = True
    ) -> None:
        self._types = types
        self._imports = imports
        self.memory = memory
        self._depth_limit = depth_limit
        self._sizes = sizes
        self._taken = 0
        self.blocks: list[Block] = []
        # Without buffers the first walk is the only one.
        self.live = not sizes
        self.slow = False

    def object(self, headers: Any, data: Any) -> Shareable | None:
        """Turn the nodes of a whole object back into a Shareable; None while the buffers are still to come.

        Raises:
            Fault: anything about them is wrong, or not every buffer is named by them.
        """
        self._taken = 0
        value = self._shareable(headers, data, 0, name_step)
        if self._taken != len(self._sizes):
            raise Fault(f"malformed envelope: it names {self._taken} buffers of {len(self._sizes)} announced")
        return value

    # -- what handlers ask for ---------------------------------------------------------------------------------------

    def node(self, node: Any, depth: int) -> Any:
        """Turn any node back into its value; *depth* containers are around it."""
        kind = type(node)
        if kind in _PLAIN:
            return node
        if kind is dict:
            return self._dict(node, depth, key_step)
        if kind is not list or not node or type(node[0]) is not int:
            raise Fault("malformed envelope: neither a plain value nor a map nor a tagged array")
        handler = _HANDLERS.get(node[0]) or _foreign(node[0], self._imports)
        try:
            return handler(self, node, depth)
        except (ValueError, TypeError, OverflowError) as exc:
            # Python's and numpy's own refusals of values that are well-formed here: a 30th of February, 40 dimensions.
            # Their messages repeat the value, which is not for the logs (threat T24).
            raise chained(Fault(f"malformed envelope: {type(exc).__name__} in a value with tag {node[0]}"), None)

    def enter(self, depth: int) -> int:
        """Go one container deeper.

        Raises:
            Fault: too deep.
        """
        if depth >= self._depth_limit:
            raise Fault(f"containers nest deeper than {self._depth_limit}")
        return depth + 1

    def claim(self, make: Callable[[int], Block], size: int | None) -> Any:
        """Take the next buffer.

        Args:
            make: makes the block for a buffer of as many bytes.
            size: bytes that the descriptor asks for; None where any number will do.

        Returns:
            The value made of the buffer; None while the buffers are still to come.

        Raises:
            Fault: there is no such buffer, or it has another size.
        """
        index = self._taken
        if index >= len(self._sizes):
            raise Fault(f"malformed envelope: it names more buffers than the {len(self._sizes)} announced")
        announced = self._sizes[index]
        if size is not None and announced != size:
            raise Fault(f"buffer {index} has {announced} bytes, its descriptor asks for {size}")
        self._taken = index + 1
        if self.live:
            return self.blocks[index].value()
        block = make(announced)
        self.blocks.append(block)
        if announced > block.quick:
            self.slow = True
        return None

    def only(self, node: list[Any], depth: int) -> Any:
        """Return the value of a tagged array that holds one node."""
        if len(node) != 2:
            raise Fault(f"malformed envelope: a value with tag {node[0]} holds {len(node) - 1} nodes, expected 1")
        return self.node(node[1], depth)

    def still_to_come(self, value: Any, kind: type) -> bool:
        """Tell whether a value is still to come, as its buffer is; otherwise it has to be of one exact type.

        Raises:
            Fault: it is of another type.
        """
        if value is None and not self.live:
            return True
        if type(value) is not kind:
            raise Fault(f"malformed envelope: a {type(value).__name__} where a {kind.__name__} belongs")
        return False

    # -- containers --------------------------------------------------------------------------------------------------

    def _dict(self, node: dict[Any, Any], depth: int, step: Callable[[Any], str]) -> dict[str, Any]:
        depth = self.enter(depth)
        value: dict[str, Any] = {}
        key: Any = None
        try:
            for key, item in node.items():
                if type(key) is not str:
                    raise Fault("malformed envelope: a map has a key that is not a str")
                value[key] = item if type(item) in _PLAIN else self.node(item, depth)
        except Fault as fault:
            fault.within(step(key))
            raise
        return value

    def _shareable(self, headers: Any, data: Any, depth: int, step: Callable[[Any], str]) -> Shareable | None:
        try:
            if type(headers) is not dict:
                raise Fault("malformed envelope: headers that are no map")
            header_values = self._dict(headers, depth, key_step)
        except Fault as fault:
            fault.within(_HEADERS if step is name_step else f"[{_HEADERS!r}]")
            raise
        if type(data) is dict:
            values = self._dict(data, depth, step)
        elif type(data) is list and data and data[0] == tags.PAIRS:
            values = self.pairs(data, depth, step)
        else:
            raise Fault("malformed envelope: the data of a Shareable are no dict")
        return make_shareable(header_values, values)

    def nested_shareable(self, node: list[Any], depth: int) -> Shareable | None:
        """Turn a node back into a Shareable inside another."""
        if len(node) != 3:
            raise Fault("malformed envelope: a Shareable without headers or data")
        return self._shareable(node[1], node[2], depth, key_step)

    def items(self, node: list[Any], depth: int) -> list[Any]:
        """Turn a node back into a list of what the array holds after its tag."""
        depth = self.enter(depth)
        values: list[Any] = []
        index = 0
        try:
            for index in range(1, len(node)):
                item = node[index]
                values.append(item if type(item) in _PLAIN else self.node(item, depth))
        except Fault as fault:
            fault.within(f"[{index - 1}]")
            raise
        return values

    def members(self, node: list[Any], depth: int) -> list[Any]:
        """Turn a node back into the members of a set, which are checked once they are all there."""
        depth = self.enter(depth)
        try:
            values = [self.node(item, depth) for item in node[1:]]
        except Fault as fault:
            fault.within("{}")
            raise
        if not self.live:
            return []
        check_spread(values)
        return values

    def pairs(self, node: list[Any], depth: int, step: Callable[[Any], str] = key_step) -> dict[Any, Any]:
        """Turn a node back into a dict with keys of any permitted type."""
        depth = self.enter(depth)
        if len(node) % 2 == 0:
            raise Fault("malformed envelope: a dict ends with a key")
        keys = [self._key(item, depth) for item in node[1::2]]
        check_spread(keys)
        value: dict[Any, Any] = {}
        key: Any = None
        try:
            for key, item in zip(keys, node[2::2], strict=True):
                value[key] = self.node(item, depth)
        except Fault as fault:
            fault.within(step(key))
            raise
        if len(value) != len(keys):
            raise Fault("malformed envelope: a dict with equal keys")
        return value

    def _key(self, node: Any, depth: int) -> Any:
        kind = type(node)
        if kind in _PLAIN and kind is not float:
            return node
        if kind is list and node and type(node[0]) is int:
            if node[0] == tags.TUPLE:
                depth = self.enter(depth)
                return tuple([self._key(item, depth) for item in node[1:]])
            if node[0] == tags.BIG_INT or (node[0] == tags.SURROGATES and type(node[-1]) is bytes):
                return self.node(node, depth)
        raise Fault("malformed envelope: a key that is no str, int, bytes, bool, None, or tuple of those")

    def application(self, node: list[Any], depth: int) -> Any:
        """Turn a node back into a value of a registered type; None while the buffers are still to come."""
        if len(node) != 3 or type(node[1]) is not str:
            raise Fault("malformed envelope: a value of an application's type without tag or content")
        tag = node[1]
        entry = self._types.for_tag(tag)
        if entry is None:
            raise Fault(
                f"type {tag[:80]!r} is not in the registry; register it with register_type here too", unknown=True
            )
        depth = self.enter(depth)
        try:
            inner = self.node(node[2], depth)
        except Fault as fault:
            fault.within(f"<{tag}>")
            raise
        if not self.live:
            return None
        try:
            value = entry.decode(inner)
        except Exception as exc:
            raise chained(Fault(f"the decoder registered for {tag!r} raised {type(exc).__name__}"), exc)
        if not isinstance(value, entry.cls):
            raise Fault(f"the decoder registered for {tag!r} returned a {type(value).__name__}")
        return value


def make_shareable(headers: dict[str, Any], data: dict[Any, Any]) -> Shareable:
    """Make a Shareable of decoded headers and data; it owns both from here on.

    Raises:
        Fault: the data would replace the headers.
    """
    if _HEADERS in data:
        raise Fault("malformed envelope: headers among the data")
    value: Shareable = _new(Shareable)  # its constructor looks for headers that cannot be there
    value[_HEADERS] = headers
    if data:
        value.update(data)
    return value


Handler = Callable[[Reader, list[Any], int], Any]


def _set(reader: Reader, node: list[Any], depth: int) -> set[Any]:
    members = reader.members(node, depth)
    value = set(members)
    if len(value) != len(members):
        raise Fault("malformed envelope: a set with equal members")
    return value


def _big_int(_reader: Reader, node: list[Any], _depth: int) -> int:
    if len(node) != 2 or type(node[1]) is not bytes:
        raise Fault("malformed envelope: a large int without its bytes")
    raw = node[1]
    value = int.from_bytes(raw, "little", signed=True)
    if _SMALLEST_INT <= value <= _LARGEST_INT or len(raw) != value.bit_length() // 8 + 1:
        raise Fault("malformed envelope: a large int that is not in its shortest form")
    return value


def _complex(_reader: Reader, node: list[Any], _depth: int) -> complex:
    if len(node) != 3 or type(node[1]) is not float or type(node[2]) is not float:
        raise Fault("malformed envelope: a complex number without its parts")
    return complex(node[1], node[2])


def _surrogates(reader: Reader, node: list[Any], depth: int) -> str | None:
    raw = reader.only(node, depth)
    if reader.still_to_come(raw, bytes):
        return None
    try:
        value: str = raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise chained(Fault("malformed envelope: a str that is not UTF-8 with surrogates"), None)
    if len(value) == len(value.encode("utf-8", "ignore").decode()):
        raise Fault("malformed envelope: a plain str that is spelt as one with surrogates")
    return value


def _bytes(reader: Reader, node: list[Any], _depth: int) -> bytes | None:
    _alone(node)
    return reader.claim(BytesBlock, None)  # type: ignore[no-any-return]  # made by that block


def _text(reader: Reader, node: list[Any], _depth: int) -> str | None:
    _alone(node)
    return reader.claim(TextBlock, None)  # type: ignore[no-any-return]  # made by that block


def _bytearray(reader: Reader, node: list[Any], _depth: int) -> bytearray | None:
    if len(node) != 2 or type(node[1]) not in (bytes, type(None)):
        raise Fault("malformed envelope: a bytearray without content")
    if node[1] is None:
        return reader.claim(ByteArrayBlock, None)  # type: ignore[no-any-return]  # made by that block
    return bytearray(node[1])


def _alone(node: list[Any]) -> None:
    if len(node) != 1:
        raise Fault(f"malformed envelope: a value with tag {node[0]} holds {len(node) - 1} nodes, expected none")


# Tags of numpy, torch and pyarrow are added when the first of them is met.
_HANDLERS: Final[dict[int, Handler]] = {
    tags.LIST: Reader.items,
    tags.TUPLE: lambda reader, node, depth: tuple(reader.items(node, depth)),
    tags.SET: _set,
    tags.FROZENSET: lambda reader, node, depth: frozenset(_set(reader, node, depth)),
    tags.PAIRS: Reader.pairs,
    tags.SHAREABLE: Reader.nested_shareable,
    tags.APPLICATION: Reader.application,
    tags.BIG_INT: _big_int,
    tags.COMPLEX: _complex,
    tags.SURROGATES: _surrogates,
    tags.BYTES: _bytes,
    tags.TEXT: _text,
    tags.BYTEARRAY: _bytearray,
    tags.DATETIME: lambda _reader, node, _depth: times.read_datetime(node),
    tags.DATE: lambda _reader, node, _depth: times.read_date(node),
    tags.TIME: lambda _reader, node, _depth: times.read_time(node),
    tags.TIMEDELTA: lambda _reader, node, _depth: times.read_timedelta(node),
}


def _foreign(tag: int, imports: bool) -> Handler:
    """Import what reads a tag of numpy, torch or pyarrow.

    Raises:
        Fault: the library is not installed, or nothing has such a tag.
        NotAtOnceError: it is not loaded, and *imports* is not set.
    """
    library = "torch" if tag == tags.TENSOR else "pyarrow" if tag == tags.TABLE else "numpy"
    if not imports and tags.ARRAY <= tag <= tags.TABLE and not is_loaded(library):
        raise NotAtOnceError(library)
    try:
        if tags.ARRAY <= tag <= tags.NUMPY_BYTES:
            from . import arrays

            _HANDLERS[tags.ARRAY] = _HANDLERS[tags.ARRAY_F] = arrays.read_array
            _HANDLERS[tags.SCALAR] = arrays.read_scalar
            _HANDLERS[tags.NUMPY_STR] = arrays.read_numpy_str
            _HANDLERS[tags.NUMPY_BYTES] = arrays.read_numpy_bytes
        elif tag == tags.TENSOR:
            from . import tensors

            _HANDLERS[tags.TENSOR] = tensors.read_tensor
        elif tag == tags.TABLE:
            from . import tables

            _HANDLERS[tags.TABLE] = tables.read_table
        else:
            raise Fault(f"tag {tag} is not known to this version", unknown=True)
    except (ImportError, OSError) as exc:  # OSError: a library that is there and cannot be loaded
        message = f"a value of {library} was received, and {library} cannot be imported here: {exc}"
        raise chained(Fault(message, unknown=True), exc)  # this site's lack, no offence of the sender's
    return _HANDLERS[tag]
