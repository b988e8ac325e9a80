"""What an object is on its way: encoded once for all who are sent it, and whatever is being received."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import CodecError
from ..shareable import Shareable
from .decode import Reader
from .faults import REFUSALS, refuse

if TYPE_CHECKING:
    from .codec import Codec


class Encoded:
    """An object ready to be sent to any number of sites.

    Attributes:
        envelope: msgpack, as ``tags.py`` describes it; at most ``limits.envelope`` bytes.
        buffers: the large data, in order: contiguous, one-dimensional, format ``"B"``, not empty. They share memory
            with the arrays and bytes of the object that was encoded, unless it was encoded with ``copy=True``.
        sizes: the bytes of each buffer.
        total: the bytes of all buffers.
    """

    __slots__ = ("buffers", "envelope", "sizes", "total")

    def __init__(
        self, envelope: bytes, buffers: tuple[memoryview, ...] = (), sizes: tuple[int, ...] = (), total: int = 0
    ) -> None:
        self.envelope = envelope
        self.buffers = buffers
        self.sizes = sizes
        self.total = total

    def __repr__(self) -> str:
        # T24 of the threat list: no content in reprs, for reprs end up in logs.
        return f"<Encoded envelope={len(self.envelope)} buffers={len(self.buffers)} total={self.total}>"


class Decoding:
    """One object that is being received.

    Attributes:
        destinations: where the object's buffers belong, in order: writable, one-dimensional, format ``"B"``, one for
            each size that was announced. Let go of them before the object is handed on: they are views of its memory.
        slow: ``finish`` may take long, so a worker thread is to call it.
    """

    __slots__ = ("_tree", "_value", "destinations", "slow")

    def __init__(
        self,
        destinations: tuple[memoryview, ...],
        slow: bool,
        value: Shareable | None,
        tree: tuple[Reader, Any, Any] | None = None,
    ) -> None:
        self.destinations = destinations
        self.slow = slow
        self._value = value
        self._tree = tree

    def finish(self) -> Shareable:
        """Make the object, once every destination has been filled; nothing large is copied.

        Returns:
            A Shareable that nobody else holds; its arrays are writable.

        Raises:
            CodecError: what was received is not what the envelope says: a text that is not UTF-8, a table that is none.
            RuntimeError: called before.
        """
        value = self._value
        if value is None:
            value = self._build()
        self._value = None
        return value

    def _build(self) -> Shareable:
        if self._tree is None:
            raise RuntimeError("finish() was called before")
        reader, headers, data = self._tree
        self._tree = None
        self.destinations = ()
        reader.live = True
        try:
            value = reader.object(headers, data)
        except REFUSALS as exc:
            refuse(exc, "decoded")
        assert value is not None, "no value from a walk with all buffers"
        return value

    def __repr__(self) -> str:
        return f"<Decoding destinations={len(self.destinations)}>"


class Undecoded:
    """One object that is being received, and is decoded once it is whole, by a worker thread; see ``Codec.land``.

    Attributes:
        destinations: as those of a ``Decoding``.
        slow: as that of a ``Decoding``.
    """

    __slots__ = ("_codec", "_envelope", "destinations", "slow")

    def __init__(self, destinations: tuple[memoryview, ...], envelope: bytes, codec: Codec) -> None:
        self.destinations = destinations
        self.slow = True
        self._envelope = envelope
        self._codec = codec

    def finish(self) -> Shareable:
        """Make the object; buffers that become arrays are not copied.

        Raises:
            UnknownTypeError, CodecError: as from ``Codec.begin`` and ``Decoding.finish``.
        """
        buffers, self.destinations = self.destinations, ()
        return self._codec.decode_landed(self._envelope, buffers)

    def __repr__(self) -> str:
        return f"<Undecoded envelope={len(self._envelope)} destinations={len(self.destinations)}>"


def finished(decoding: Decoding | Undecoded) -> Shareable | CodecError:
    """Finish an object, in a worker thread where it is slow; return it, or what its types met."""
    try:
        return decoding.finish()
    except CodecError as exc:
        return exc
