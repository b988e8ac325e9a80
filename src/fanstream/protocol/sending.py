"""What a link sends, and in which order: control frames first, then small frames, then bulk data in fair turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, Protocol

from ..codec.payloads import Encoded
from ..errors import RemoteProtocolError
from .frames import CHUNK as CHUNK_HEAD
from .frames import CHUNK_HEADER, HEADER_SIZE, PAYLOAD_HEADER, PAYLOAD_SIZE, SMALL_OBJECT, Flag, FrameType, pack

Buffer = bytes | memoryview

_CHUNK: Final = int(FrameType.CHUNK)
_AHEAD: Final = int(Flag.AHEAD)
_CHUNK_HEAD_SIZE: Final = CHUNK_HEAD.size
_MAX_BUFFERS: Final = 512  # IOV_MAX is 1024 on Linux: the most buffers one sendmsg takes; a turn adds two at a time
_MAX_SMALL: Final = 2048  # parts of small frames joined for one turn, so that a control frame never waits behind more
_PONG: Final = pack(FrameType.PONG)
_MOST_ANSWERS: Final = 256 * 1024  # bytes that a peer may ask for without reading any
_SMALLEST_CHUNK: Final = 16 * 1024  # below it, headers and system calls cost more than the data
_CHUNK_TIME: Final = 0.05  # seconds that a chunk may occupy the link, so long does a control frame wait for it
_SAMPLE_TIME: Final = 0.02  # seconds of output between two looks at the rate; shorter ones see the kernel's buffer fill


class Turn(Protocol):
    """Something that takes turns in sending bulk data."""

    def emit(self, out: list[Buffer], limit: int) -> int:
        """Append at most about *limit* bytes to *out*; return how many."""

    @property
    def sendable(self) -> bool:
        """Whether a further turn would send something."""


class Scheduler:
    """The output of one link.

    Args:
        on_output: called when there is something to send after there was nothing; the shell then asks ``next_output``
            until it is empty.
        frame: bytes of data in one CHUNK, the peer's limit.

    Attributes:
        frame: the peer's limit, as above.
        chunk: bytes of data in the next CHUNK: the limit, or less on a link that takes long to carry as much.
        pending: whether ``next_output`` is to be asked.
    """

    __slots__ = (
        "_answers", "_busy_bytes", "_busy_since", "_control", "_on_output", "_pong", "_ring", "_small",
        "_written", "chunk", "frame", "pending",
    )  # fmt: skip

    def __init__(self, on_output: Callable[[], object], frame: int) -> None:
        self._on_output = on_output
        self._busy_since: float | None = None  # None while there is nothing to send
        self._busy_bytes = 0
        self._pong = False
        self._answers = 0  # bytes that the peer has asked for and that wait
        self._control: list[bytes] = []
        self._small: list[bytes] = []
        self._ring: deque[Turn] = deque()
        self._written: list[Callable[[], object]] = []
        self.pending = False
        self.frame = self.chunk = frame

    def limit_frame(self, frame: int) -> None:
        """Send no larger chunks than *frame* bytes, which the peer has said to take."""
        self.frame = self.chunk = min(self.frame, frame)

    def _announce(self) -> None:
        if not self.pending:
            self.pending = True
            self._on_output()

    def control(self, frame: bytes) -> None:
        """Send a control frame before all else."""
        self._control.append(frame)
        if not self.pending:
            self._announce()

    def pong(self) -> None:
        """Give a sign of life; one answers all the PINGs that came before it left."""
        self._pong = True
        if not self.pending:
            self._announce()

    def answer(self, frame: bytes) -> None:
        """Send a control frame that the peer has asked for.

        Raises:
            RemoteProtocolError: it goes on asking, and does not read the answers.
        """
        self.owe_answer(len(frame))
        self.control(frame)

    def owe_answer(self, size: int) -> None:
        """Count *size* bytes that the peer has asked for, until what is queued is handed out.

        Raises:
            RemoteProtocolError: it goes on asking, and does not read the answers.
        """
        self._answers += size
        if self._answers > _MOST_ANSWERS:
            raise RemoteProtocolError(f"{self._answers} bytes of answers wait for the peer, limit {_MOST_ANSWERS}")

    def small(self, head: bytes, body: bytes) -> None:
        """Send a small frame, given in two parts, after the control frames."""
        small = self._small
        small.append(head)
        small.append(body)
        if not self.pending:
            self._announce()

    def join(self, turn: Turn) -> None:
        """Let *turn* take its turns until it has nothing sendable; the caller makes sure that it has not joined yet."""
        self._ring.append(turn)
        if not self.pending:
            self._announce()

    def leave(self, turn: Turn) -> None:
        """Take *turn* out, if it is there."""
        if turn in self._ring:
            self._ring.remove(turn)

    def when_written(self, callback: Callable[[], object]) -> None:
        """Call *callback* once what the current turn emits has been written."""
        self._written.append(callback)

    def next_output(self, limit: int, now: float) -> list[Buffer]:
        """Return what is to be written next, about *limit* bytes; asking again says that the last of it was written."""
        if self._busy_since is None:
            self._busy_since = now
        elif now - self._busy_since >= _SAMPLE_TIME:
            rate = self._busy_bytes / (now - self._busy_since)
            self.chunk = min(self.frame, max(_SMALLEST_CHUNK, int(rate * _CHUNK_TIME)))
            self._busy_since, self._busy_bytes = now, 0
        chunk = self.chunk
        if chunk < self.frame:
            limit = min(limit, 2 * chunk)
        if self._written:
            written, self._written = self._written, []
            for callback in written:
                callback()
        out: list[Buffer] = []
        if self._pong:
            self._pong = False
            out.append(_PONG)
        if self._control:
            out.append(self._control[0] if len(self._control) == 1 else b"".join(self._control))
            self._control.clear()
        small = self._small
        if small:
            if len(small) <= _MAX_SMALL:
                out.append(b"".join(small))
                small.clear()
            else:
                out.append(b"".join(small[:_MAX_SMALL]))
                del small[:_MAX_SMALL]
                return out  # a chunk must not overtake the head of its object, which may be among the others
        self._answers = 0  # all of them have been handed out
        ring = self._ring
        total = 0
        while ring and total < limit and len(out) < _MAX_BUFFERS:
            turn = ring[0]
            total += turn.emit(out, min(chunk, limit))
            if not turn.sendable:
                ring.popleft()
                turn.joined = False  # type: ignore[attr-defined]  # every Turn of this package has it
            elif len(ring) > 1:
                ring.rotate(-1)
        if out:
            self._busy_bytes += total
        else:
            self.pending = False
            self._busy_since, self._busy_bytes = None, 0
        return out


class _Transfer:
    """The out-of-band buffers of one object on their way to one site."""

    __slots__ = ("buffer", "buffers", "offset", "seq", "total")

    def __init__(self, seq: int, payload: Encoded) -> None:
        self.seq = seq
        self.buffers = payload.buffers
        self.total = payload.total
        self.buffer = 0
        self.offset = 0


class Outbound:
    """The sending half of one stream at one site: objects if it is the opener's, replies if it is the receiver's.

    Every payload byte counts against the wire window, which may be overdrawn by one frame: so no frame is too large to
    be sent. Payloads of more than ``SMALL_OBJECT`` bytes wait for the receiver's GRANT with their buffers.

    Args:
        scheduler: the link's output.
        kind: OBJECT or REPLY.
        alias: the stream's alias on the link.
        target: the site's index among OPEN's targets.
        window: bytes that may be in flight.
    """

    __slots__ = (
        "_alias",
        "_granted",
        "_heads",
        "_kind",
        "_scheduler",
        "_target",
        "_ungranted",
        "credit",
        "joined",
    )

    def __init__(self, scheduler: Scheduler, kind: FrameType, alias: int, target: int, *, window: int) -> None:
        self._scheduler = scheduler
        self._kind = int(kind)
        self._alias = alias
        self._target = target
        self._heads: deque[bytes] = deque()
        self._granted: deque[_Transfer] = deque()
        self._ungranted: dict[int, _Transfer] = {}
        self.credit = window
        self.joined = False

    def send(
        self, seq: int, payload: Encoded, *, flags: int = 0, timeout_ms: int = 0, acked: int = 0, ahead: bool = False
    ) -> None:
        """Queue one object or reply; *ahead* says that the receiver has room for it without being asked."""
        envelope = payload.envelope
        sizes = payload.sizes
        total = payload.total
        count = len(sizes)
        granted = total + len(envelope) <= SMALL_OBJECT
        if ahead and not granted and count:
            granted = True
            flags |= _AHEAD
        length = PAYLOAD_SIZE + 8 * count + len(envelope)
        head = PAYLOAD_HEADER.pack(
            length, self._kind, flags, self._target, self._alias, seq, 0, 0, timeout_ms, count, total, acked
        )
        if count:
            head += b"".join([size.to_bytes(8, "little") for size in sizes])
        if self.credit > 0 and not self._heads:
            self.credit -= length
            self._scheduler.small(head, envelope)
        else:
            self._heads.append(head + envelope)
            self._join()
        if count:
            transfer = _Transfer(seq, payload)
            if granted:
                self._granted.append(transfer)
                self._join()
            else:
                self._ungranted[seq] = transfer

    def go_on(self, seq: int, payload: Encoded, buffer: int, offset: int) -> None:
        """Queue the rest of an object or reply of which the other end has all before a byte of one of its buffers.

        Raises:
            RemoteProtocolError: there is no such byte.
        """
        sizes = payload.sizes
        if not (0 <= buffer < len(sizes) and 0 <= offset < sizes[buffer]):
            raise RemoteProtocolError(f"object {seq} is to go on at buffer {buffer}, offset {offset}: it has {sizes}")
        transfer = _Transfer(seq, payload)
        transfer.buffer, transfer.offset = buffer, offset
        self._granted.append(transfer)
        self._join()

    def grant(self, seq: int) -> bool:
        """Let one object's buffers go; False when none of that number waits."""
        transfer = self._ungranted.pop(seq, None)
        if transfer is None:
            return False
        self._granted.append(transfer)
        self._join()
        return True

    def add_credit(self, size: int) -> None:
        """Take back *size* bytes of the window."""
        self.credit += size
        self._join()

    def clear(self) -> None:
        """Drop all that was not handed out yet."""
        self._heads.clear()
        self._granted.clear()
        self._ungranted.clear()
        if self.joined:
            self._scheduler.leave(self)
            self.joined = False

    @property
    def waiting(self) -> int:
        """How many objects or replies wait for credit with all they have."""
        return len(self._heads)

    @property
    def progress(self) -> Hashable:
        """A mark that differs from what it was before whenever bytes have left or credit has come."""
        if not self._granted:
            return self.credit, len(self._heads)
        transfer = self._granted[0]
        return self.credit, transfer.seq, transfer.buffer, transfer.offset

    @property
    def sendable(self) -> bool:
        """Whether something could be sent now."""
        return self.credit > 0 and bool(self._heads or self._granted)

    def _join(self) -> None:
        if not self.joined and self.sendable:
            self.joined = True
            self._scheduler.join(self)

    def emit(self, out: list[Buffer], limit: int) -> int:
        """Append heads that waited for credit, then chunks of the oldest granted object."""
        done = 0
        heads = self._heads
        while heads and self.credit > 0 and len(out) < _MAX_BUFFERS:
            head = heads.popleft()
            self.credit -= len(head) - HEADER_SIZE  # the window counts bodies
            done += len(head)
            out.append(head)
        frame = self._scheduler.chunk
        granted = self._granted
        while granted and self.credit > 0 and done < limit and len(out) < _MAX_BUFFERS:
            transfer = granted[0]
            view = transfer.buffers[transfer.buffer]
            offset = transfer.offset
            size = min(len(view) - offset, frame, limit - done)
            out.append(
                CHUNK_HEADER.pack(
                    size + _CHUNK_HEAD_SIZE, _CHUNK, 0, self._target, self._alias, transfer.seq, 0, 0,
                    transfer.buffer, 0, offset,
                )
            )  # fmt: skip
            out.append(view if size == len(view) else view[offset : offset + size])
            self.credit -= size
            done += size
            offset += size
            if offset < len(view):
                transfer.offset = offset
                continue
            transfer.offset = 0
            transfer.buffer += 1
            if transfer.buffer == len(transfer.buffers):
                granted.popleft()
        return done
