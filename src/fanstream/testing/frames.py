"""Frames as a test sees them: cut out of the byte stream whole, and made by hand."""

from __future__ import annotations

from typing import NamedTuple

from ..protocol.frames import HEADER, HEADER_SIZE, FrameType


class Frame(NamedTuple):
    """One frame of the wire; ``docs/reference/wire.md`` tells of the fields."""

    kind: int
    alias: int = 0
    seq: int = 0
    body: bytes = b""
    flags: int = 0
    target: int = 0
    attempt: int = 0

    def pack(self) -> bytes:
        """Return its bytes."""
        header = HEADER.pack(len(self.body), self.kind, self.flags, self.target, self.alias, self.seq, self.attempt, 0)
        return header + self.body

    def __repr__(self) -> str:
        name = FrameType(self.kind).name if self.kind in set(FrameType) else str(self.kind)
        return f"<{name} alias={self.alias} seq={self.seq} flags={self.flags:#x} body={len(self.body)} bytes>"


class FrameCutter:
    """Cuts a byte stream into frames, whatever pieces it comes in."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """Take the next bytes; return the frames that they complete."""
        held = self._held
        held += data
        frames: list[Frame] = []
        start = 0
        while len(held) - start >= HEADER_SIZE:
            length, kind, flags, target, alias, seq, attempt, _trailer = HEADER.unpack_from(held, start)
            end = start + HEADER_SIZE + length
            if end > len(held):
                break
            frames.append(Frame(kind, alias, seq, bytes(held[start + HEADER_SIZE : end]), flags, target, attempt))
            start = end
        del held[:start]
        return frames
