"""The bodies of control frames: small msgpack arrays, decoded by their type.

A later version may append fields to any of them: what comes after the known fields is ignored.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from ..errors import RemoteProtocolError
from .frames import U32, VERSIONS

_encode = msgspec.msgpack.Encoder().encode
_T = TypeVar("_T")


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """The first frame of each side.

    ``window`` is what one stream may have in flight towards this engine, ``relay_window`` the same for a stream that it
    only forwards, ``frame`` the largest CHUNK payload that it takes; all in bytes.
    """

    site: str
    incarnation: bytes
    hub: bool
    frame: int
    window: int
    relay_window: int
    backlog: int
    capabilities: list[str]
    magic: bytes
    low: int = VERSIONS[0]
    high: int = VERSIONS[1]

    def __repr__(self) -> str:
        return f"<Hello of {self.site}>"  # who knows an incarnation can pass for that engine


class Goodbye(msgspec.Struct, array_like=True, frozen=True):
    """GOAWAY: why this link ends. ``code`` is ``bye``, ``name-in-use``, ``protocol`` or ``refused``."""

    code: str
    reason: str = ""


class Presence(msgspec.Struct, array_like=True, frozen=True):
    """PRESENCE: which sites can be reached through this hub; ``full`` replaces what was said before.

    ``lives`` are the incarnations of those that joined, in the same order.
    """

    full: bool
    joined: list[str]
    left: list[str]
    lives: list[bytes] = []


class Opening(msgspec.Struct, array_like=True, frozen=True):
    """OPEN's routing part: what a forwarder may read.

    ``life`` is the opener's incarnation, ``resume`` how many milliseconds a broken way may take to come back, and
    ``sealed`` says that a forwarder can read no more than this. ``epoch`` counts the lives of a durable stream's
    opener, from 1; a stream of epoch 0 ends with its opener.
    """

    stream: bytes
    opener: str
    targets: list[str]
    channel: str
    topic: str
    backlog: int
    optional: bool = False
    life: bytes = b""
    resume: int = 0
    sealed: bool = False
    epoch: int = 0


class Resumption(msgspec.Struct, array_like=True, frozen=True):
    """RESUME from the opener: which stream goes on, and where its replies do; the frame's seq is the reply's number."""

    stream: bytes
    opener: str
    targets: list[str]
    life: bytes
    buffer: int = 0
    offset: int = 0
    epoch: int = 0


class Position(msgspec.Struct, array_like=True, frozen=True):
    """RESUME from the receiver: where the objects go on; the frame's seq is the object's number."""

    buffer: int = 0
    offset: int = 0


class Cause(msgspec.Struct, array_like=True, frozen=True):
    """ABORT, REFUSED, LOST and SUSPENDED: the return code, who caused it, and why.

    ``life`` is the incarnation of a site that refuses a RESUME; ``word`` is all the rest in a sealed stream, sealed.
    """

    rc: str
    who: str = ""
    reason: str = ""
    life: bytes = b""
    word: bytes = b""


class Ending(msgspec.Struct, array_like=True, frozen=True):
    """ENDED: how the stream ended at this site; ``result`` is an encoded value, empty for None.

    In a sealed stream ``result`` is the sealed word that holds all of it.
    """

    rc: str
    reason: str = ""
    result: bytes = b""

    def __repr__(self) -> str:
        return f"<Ending rc={self.rc} result={len(self.result)} bytes>"  # threat T24


_decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(kind)
    for kind in (Hello, Goodbye, Presence, Opening, Resumption, Position, Cause, Ending)
}


def encode(body: msgspec.Struct) -> bytes:
    """Encode a control body."""
    return _encode(body)


def decode(kind: type[_T], data: bytes) -> _T:
    """Decode a control body.

    Raises:
        RemoteProtocolError: the bytes are not a body of that kind.
    """
    try:
        return _decoders[kind].decode(data)  # type: ignore[no-any-return]  # the table pairs each type with its decoder
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RemoteProtocolError(f"{kind.__name__} body of {len(data)} bytes cannot be decoded: {exc}") from exc


def join_opening(opening: Opening, body: bytes) -> bytes:
    """Put OPEN's two parts together: the routing part's length, the routing part, the body."""
    routing = _encode(opening)
    return U32.pack(len(routing)) + routing + body


def split_opening(data: bytes, *, max_routing: int, max_body: int) -> tuple[Opening, bytes]:
    """Take OPEN's two parts apart.

    Raises:
        RemoteProtocolError: a part is longer than its limit, or the routing part cannot be decoded.
    """
    if len(data) < U32.size:
        raise RemoteProtocolError(f"OPEN of {len(data)} bytes, expected at least {U32.size}")
    (size,) = U32.unpack_from(data)
    if size > max_routing or size > len(data) - U32.size:
        raise RemoteProtocolError(
            f"OPEN's routing part of {size} bytes, limit {min(max_routing, len(data) - U32.size)}"
        )
    body = data[U32.size + size :]
    if len(body) > max_body:
        raise RemoteProtocolError(f"OPEN's body of {len(body)} bytes, limit {max_body}")
    return decode(Opening, data[U32.size : U32.size + size]), body
