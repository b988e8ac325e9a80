"""Frames: the units on the wire. ``docs/reference/wire.md`` documents every byte of what is here.

A frame is a 24-byte header and a body. Its clear part says what a forwarder needs: the type, the link-local alias of
the stream, the target, and the sequence number.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

MAGIC: Final = b"FANS"
VERSIONS: Final = (1, 1)
"""The lowest and the highest version of the protocol that this package speaks."""


class FrameType(IntEnum):
    """What a frame is; 0-15 concern the link, 16 and up one stream on it."""

    HELLO = 1
    PING = 2
    PONG = 3
    PRESENCE = 4
    GOAWAY = 5

    OPEN = 16
    OBJECT = 17
    CHUNK = 18
    REPLY = 19
    GRANT = 20
    CREDIT = 21
    END = 22
    ABORT = 23
    ENDING = 24
    ENDED = 25
    REFUSED = 26
    LOST = 27
    SUSPENDED = 28
    RESUME = 29
    ALLOW = 30
    DONE = 31


class Flag(IntEnum):
    """Bits of a frame's flags; their meaning depends on the type, save for CRITICAL."""

    FINAL = 0x01
    """OBJECT: the stream's last. REPLY: this site's last. REFUSED: no DONE is waited for."""
    WITHDRAW = 0x02
    """END: objects not yet consumed are to be discarded."""
    AHEAD = 0x04
    """OBJECT, REPLY: its data follows without a GRANT, since the receiver has room for it."""
    FREE = 0x08
    """OBJECT: the opener holds none of this site's replies, so the next may come ahead."""
    CRITICAL = 0x80
    """A receiver that does not know the frame's type must end the link instead of skipping the frame."""


ALL_TARGETS: Final = 0xFFFF
"""Target index that addresses all of an OPEN's targets at once."""

HEADER: Final = struct.Struct("<IBBHIQHH")
"""Length of the body, type, flags, target index, alias, seq, attempt, length of the trailer within the body."""
HEADER_SIZE: Final = HEADER.size

CHUNK: Final = struct.Struct("<IIQ")
"""Head of a CHUNK's body: buffer index, zero, byte offset in that buffer."""
CHUNK_HEADER: Final = struct.Struct("<IBBHIQHHIIQ")
"""A whole CHUNK header in one: 40 bytes, then the data."""
CHUNK_HEADER_SIZE: Final = CHUNK_HEADER.size

PAYLOAD: Final = struct.Struct("<IIQQ")
"""Head of an OBJECT's or REPLY's body: timeout in ms (0: none), buffers, their total bytes, replies acknowledged."""
PAYLOAD_SIZE: Final = PAYLOAD.size
PAYLOAD_HEADER: Final = struct.Struct("<IBBHIQHHIIQQ")
"""Header and payload head in one: 48 bytes, then buffer sizes (u64 each) and the envelope."""

SMALL_OBJECT: Final = 64 * 1024
"""Bytes up to which an object, envelope and buffers together, needs no GRANT: the same for every peer."""

U64: Final = struct.Struct("<Q")
U32: Final = struct.Struct("<I")

NO_STREAM: Final = 0
MAX_ALIAS: Final = 0xFFFF_FFFF


def pack(
    kind: int, alias: int = NO_STREAM, seq: int = 0, *, body: bytes = b"", flags: int = 0, target: int = 0
) -> bytes:
    """Pack a small frame, header and body, into one bytes object."""
    return HEADER.pack(len(body), kind, flags, target, alias, seq, 0, 0) + body
