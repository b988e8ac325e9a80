"""The registry of the application's own types: explicit, at both sides, and closed to everything else."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeVar

from ..shareable import Shareable
from .faults import type_name

T = TypeVar("T")

_LONGEST_TAG: Final = 64  # bytes; a tag is written out with every value of its type

_BUILT_IN: Final = frozenset((dt.datetime, dt.date, dt.time, dt.timedelta, Shareable, StrEnum, object))
# By name, so that a class can be judged without importing the library it comes from.
_BUILT_IN_NAMES: Final = frozenset(
    ("numpy.ndarray", "numpy.memmap", "torch.Tensor", "torch.nn.parameter.Parameter", "pyarrow.lib.Table")
)


class ApplicationType(NamedTuple):
    """One registered type: how its values become values of other types, and back."""

    tag: str
    cls: type
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


class TypeRegistry:
    """The types that an application adds to those the codec knows.

    Nothing that comes from the wire can name a class: it names a tag, and only what was registered under that tag at
    this side is called.
    """

    __slots__ = ("_by_class", "_by_tag")

    def __init__(self) -> None:
        self._by_class: dict[type, ApplicationType] = {}
        self._by_tag: dict[str, ApplicationType] = {}

    def register_type(self, tag: str, cls: type[T], encode: Callable[[T], Any], decode: Callable[[Any], T]) -> None:
        """Let values of one class travel.

        Args:
            tag: the name of the type on the wire, the same at both sides; 1 to 64 printable ASCII characters.
            cls: the class; only values of exactly this class are meant, not of classes derived from it.
            encode: turns a value into one of types already known; arrays in it still travel out of band.
            decode: turns that back into a value of *cls*. It is given what a peer sent: it must check it. Large objects
                are decoded in worker threads, so it may be called in one.

        Raises:
            TypeError: *cls* is not a class, or *encode* or *decode* cannot be called.
            ValueError: the tag is ill-formed or taken, or the class is registered already or known without registering.
        """
        if not isinstance(tag, str) or not 1 <= len(tag) <= _LONGEST_TAG or not (tag.isascii() and tag.isprintable()):
            raise ValueError(f"tag is {tag!r}, expected 1 to {_LONGEST_TAG} printable ASCII characters")
        if not isinstance(cls, type):
            raise TypeError(f"cls is {cls!r}, expected a class")
        if not callable(encode) or not callable(decode):
            raise TypeError(f"encode and decode of {tag!r} are {encode!r} and {decode!r}, expected functions")
        if _is_built_in(cls):
            raise ValueError(
                f"cls is {type_name(cls)}, which the codec knows already or which has no values of its own"
            )
        if tag in self._by_tag:
            raise ValueError(f"tag {tag!r} is taken by {type_name(self._by_tag[tag].cls)}")
        if cls in self._by_class:
            raise ValueError(f"class {type_name(cls)} is registered already, as {self._by_class[cls].tag!r}")
        entry = ApplicationType(tag, cls, encode, decode)
        self._by_tag[tag] = entry
        self._by_class[cls] = entry

    def for_class(self, cls: type) -> ApplicationType | None:
        """Return what was registered for exactly this class, or None."""
        return self._by_class.get(cls)

    def for_tag(self, tag: str) -> ApplicationType | None:
        """Return what was registered under this tag, or None."""
        return self._by_tag.get(tag)


def _is_built_in(cls: type) -> bool:
    name = f"{cls.__module__}.{cls.__qualname__}"
    if cls in _BUILT_IN or cls.__module__ == "builtins" or name in _BUILT_IN_NAMES:
        return True
    return is_numpy_scalar(cls)


def is_numpy_scalar(cls: type) -> bool:
    """Tell whether a class is one of numpy's own scalars, without importing numpy."""
    if cls.__module__ != "numpy":
        return False
    return any(base.__module__ == "numpy" and base.__qualname__ == "generic" for base in cls.__mro__)


default_types: Final = TypeRegistry()
"""The registry of every codec that is not given another."""

register_type = default_types.register_type
