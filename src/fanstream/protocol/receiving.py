"""FrameReader: bytes in, frames out; large buffers land straight in their destination."""

from __future__ import annotations

from typing import Final, Protocol

from ..errors import RemoteProtocolError
from .frames import CHUNK, CHUNK_HEADER_SIZE, HEADER, HEADER_SIZE, NO_STREAM, FrameType

STAGE_SIZE: Final = 64 * 1024
BEHIND: Final = 2 * 1024
"""Bytes read along with the end of a long body: the head of the next object and of its first chunk, and little more
than those, since what is read here of a chunk is copied once more."""
# Holds hundreds of small frames for each system call; a bulk transfer touches only its first 40 bytes.

_SMALLEST_LIMIT: Final = 1024  # no limit of a frame's body is less (options.Limits)
_CHUNK_TYPE: Final = int(FrameType.CHUNK)
_PAYLOADS: Final = (int(FrameType.OBJECT), int(FrameType.REPLY))


class FrameSink(Protocol):
    """Where a reader's frames go."""

    def limit(self, kind: int) -> int:
        """Return the largest body, in bytes, of a frame of this type (CHUNK: its data alone)."""

    def frame(self, kind: int, flags: int, target: int, alias: int, seq: int, attempt: int, body: bytes) -> None:
        """Take one whole frame."""

    def chunk(self, alias: int, seq: int, buffer: int, offset: int, size: int, target: int) -> memoryview | None:
        """Say where a CHUNK's *size* bytes are to land; None to discard them."""

    def chunk_done(self, alias: int, seq: int, size: int) -> None:
        """Hear that the last CHUNK that was asked about has landed."""


class FrameReader:
    """Cuts a byte stream into frames.

    The shell reads into ``get_buffers()`` and says how much came with ``advance``; however the bytes are cut, the same
    frames come out. After an error the reader is of no more use.

    Attributes:
        frames: how many have been whole.
    """

    __slots__ = ("_body", "_discard", "_have", "_into", "_pending", "_sink", "_stage", "_view", "frames")

    def __init__(self, sink: FrameSink) -> None:
        self._sink = sink
        self._stage = bytearray(STAGE_SIZE)
        self._view = memoryview(self._stage)
        self._have = 0
        self._into: memoryview | None = None  # where the rest of a long body goes
        self._body: memoryview | None = None  # a long control body, whole; None while _into is a CHUNK's destination
        self._pending: tuple[int, ...] = ()  # what to say once _into is full
        self._discard = False
        self.frames = 0

    @property
    def wanted(self) -> int:
        """Bytes that the frame begun still wants, as far as they land outside the stage."""
        return 0 if self._into is None else len(self._into)

    @property
    def idle(self) -> bool:
        """Whether no frame is begun and unfinished."""
        return self._into is None and self._have == 0

    @property
    def landing(self) -> tuple[int, int]:
        """The stream whose payload or CHUNK is begun and not whole, and how many bytes of that have come.

        It is no stream where nothing is begun that will count.
        """
        into, body = self._into, self._body
        if into is None:
            if self._have > HEADER_SIZE:
                _length, kind, _flags, _target, alias, *_ = HEADER.unpack_from(self._view)
                if kind in _PAYLOADS:
                    return alias, self._have - HEADER_SIZE
        elif body is not None:
            kind, _flags, _target, alias, _seq, _attempt = self._pending
            if kind in _PAYLOADS:
                return alias, len(body) - len(into)
        elif not self._discard:
            alias, _seq, size = self._pending
            return alias, size - len(into)
        return NO_STREAM, 0

    def get_buffers(self) -> list[memoryview]:
        """Return where the next bytes are to be read, in order: a destination and room behind it, or the stage."""
        into = self._into
        if into is not None:
            return [into, self._view[:BEHIND]]
        return [self._view[self._have :]]

    def advance(self, count: int) -> None:
        """Take note that *count* bytes were read into the buffers.

        Raises:
            RemoteProtocolError: they break the rules.
        """
        into = self._into
        if into is not None:
            left = len(into) - count
            if left > 0:
                self._into = into[count:]
                return
            self._have = -left
            self._finish_long()
            if not self._have:
                return
        else:
            self._have += count
        self._parse()

    def _finish_long(self) -> None:
        self.frames += 1
        pending, body = self._pending, self._body
        self._into = self._body = None
        self._pending = ()
        if body is not None:
            kind, flags, target, alias, seq, attempt = pending
            self._sink.frame(kind, flags, target, alias, seq, attempt, body.tobytes())
        elif not self._discard:
            self._sink.chunk_done(*pending)

    def _parse(self) -> None:
        sink, view, have = self._sink, self._view, self._have
        position = 0
        unpack = HEADER.unpack_from
        while have - position >= HEADER_SIZE:
            length: int
            trailer: int
            length, kind, flags, target, alias, seq, attempt, trailer = unpack(view, position)
            if trailer:
                raise RemoteProtocolError(f"frame of type {kind} with a trailer of {trailer} bytes, expected none")
            if kind == _CHUNK_TYPE:
                if have - position < CHUNK_HEADER_SIZE:
                    size = length - CHUNK.size
                    if size < 1 or size > sink.limit(kind):
                        raise RemoteProtocolError(f"CHUNK of {size} bytes, expected 1 to {sink.limit(kind)}")
                    break
                position = self._chunk(position, have, length, alias, seq, target)
                continue
            if length > _SMALLEST_LIMIT and length > sink.limit(kind):
                raise RemoteProtocolError(f"frame of type {kind} with {length} bytes, limit {sink.limit(kind)}")
            start = position + HEADER_SIZE
            end = start + length
            if end > have:
                if length + HEADER_SIZE > STAGE_SIZE:
                    body = memoryview(bytearray(length))
                    landed = have - start
                    body[:landed] = view[start:have]
                    self._body, self._into = body, body[landed:]
                    self._pending = (kind, flags, target, alias, seq, attempt)
                    position = have
                break
            self.frames += 1
            sink.frame(kind, flags, target, alias, seq, attempt, view[start:end].tobytes())
            position = end
        rest = have - position
        if rest and position:
            view[:rest] = bytes(view[position:have])  # the two may overlap
        self._have = rest

    def _chunk(self, position: int, have: int, length: int, alias: int, seq: int, target: int) -> int:
        """Begin one CHUNK at *position* of the stage; return where parsing goes on."""
        sink, view = self._sink, self._view
        size = length - CHUNK.size
        if size < 1 or size > sink.limit(_CHUNK_TYPE):
            raise RemoteProtocolError(f"CHUNK of {size} bytes, expected 1 to {sink.limit(_CHUNK_TYPE)}")
        buffer, zero, offset = CHUNK.unpack_from(view, position + HEADER_SIZE)
        if zero:
            raise RemoteProtocolError(f"CHUNK with {zero} in its reserved field, expected 0")
        destination = sink.chunk(alias, seq, buffer, offset, size, target)
        self._discard = destination is None
        if destination is None:
            destination = memoryview(bytearray(size))
        start = position + CHUNK_HEADER_SIZE
        landed = have - start
        if landed >= size:
            destination[:] = view[start : start + size]
            self.frames += 1
            if not self._discard:
                sink.chunk_done(alias, seq, size)
            return start + size
        destination[:landed] = view[start:have]
        self._into = destination[landed:]
        self._pending = (alias, seq, size)
        return have
