"""Where something went wrong: a private exception that gathers its key path while it travels up."""

from __future__ import annotations

from typing import Any, Final, NoReturn

import msgspec

from ..errors import CodecError, UnknownTypeError

# Long enough to know a parameter's name by, short enough that a key used as payload stays out of the logs (threat T24).
_LONGEST_KEY = 80


class Fault(Exception):  # noqa: N818  # not an error yet: error() makes one of it
    """An error in the making; it never leaves this package.

    The walk over an object does not carry the path of where it is, since that would cost every good value something.
    Each container adds its own step as the fault passes through it.

    Args:
        message: what is wrong, with the numbers, without the path.
        unknown: the error is a type that is not in the registry.
    """

    def __init__(self, message: str, *, unknown: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.unknown = unknown
        self.steps: list[str] = []

    def within(self, step: str) -> None:
        """Put the next outer *step* in front of the path."""
        self.steps.append(step)

    def error(self, root: str = "") -> CodecError:
        """Make the public exception; its path begins with *root*."""
        path = root + "".join(reversed(self.steps))
        text = f"{path}: {self.message}" if path else self.message
        return UnknownTypeError(text, path=path) if self.unknown else CodecError(text)


class NotAtOnceError(Exception):
    """Decoding would take long, as where a library has to be imported for it: a worker thread is to do it."""


# Everything that msgspec and Python's own types raise at bad input. An application's encoders and decoders are not
# among the callers: what they raise has become a Fault already.
REFUSALS: Final = (
    Fault,
    ValueError,  # msgspec.DecodeError and UnicodeError among others
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,  # RecursionError, and a dict that another thread changes
    MemoryError,
    BufferError,
)


def refuse(exc: BaseException, verb: str, root: str = "") -> NoReturn:
    """Raise what was caught as a CodecError."""
    if isinstance(exc, Fault):
        raise exc.error(root) from exc.__cause__
    what = f"{root}: " if root else ""
    if isinstance(exc, RecursionError):
        raise CodecError(f"{what}cannot be {verb}: containers nest too deep") from None
    if verb == "decoded" and not isinstance(exc, msgspec.DecodeError):
        # What Python says of a bad date repeats it, and what is decoded is not for this site's logs (threat T24).
        raise CodecError(f"{what}cannot be decoded: {type(exc).__name__}") from None
    raise CodecError(f"{what}cannot be {verb}: {type(exc).__name__}: {exc}") from exc


def key_step(key: Any) -> str:
    """Name an entry of a container: ``['layer1']``, ``[0]``."""
    text = repr(key) if type(key) in (str, int, bool, bytes, tuple, type(None)) else type(key).__name__
    if len(text) > _LONGEST_KEY:
        text = text[: _LONGEST_KEY - 3] + "..."
    return f"[{text}]"


def name_step(key: Any) -> str:
    """Name a top-level entry of a Shareable: ``weights``."""
    if type(key) is not str:
        return key_step(key)
    printable = key if key.isprintable() else repr(key)
    return printable if len(printable) <= _LONGEST_KEY else printable[: _LONGEST_KEY - 3] + "..."


def type_name(kind: type) -> str:
    """Name a type in full: ``collections.OrderedDict``, ``dict``."""
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
