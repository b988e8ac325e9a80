"""A stream that this engine only forwards: a hub's route between two of its links."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ..errors import RemoteProtocolError
from ..shareable import ReturnCode
from . import bodies
from .frames import CHUNK, CHUNK_HEADER, HEADER, Flag, FrameType, pack
from .sending import Buffer

if TYPE_CHECKING:
    from .core import LinkCore

FIRST_WINDOW: Final = 64 * 1024
"""Bytes that every forwarded stream may have in flight to a hub before the hub has granted it more."""

_DATA: Final = frozenset((FrameType.OBJECT, FrameType.REPLY))
_LAST_WORDS: Final = frozenset((FrameType.DONE, FrameType.REFUSED, FrameType.LOST, FrameType.SUSPENDED))
_FORWARDED: Final = frozenset(
    (
        FrameType.GRANT,
        FrameType.ALLOW,
        FrameType.END,
        FrameType.ABORT,
        FrameType.ENDING,
        FrameType.ENDED,
        FrameType.RESUME,
    )
)
_MAX_BUFFERS: Final = 256
_KEPT_BLOCKS: Final = 64  # while streams are forwarded
_KEPT_IDLE: Final = 2  # while none is: what one stream fills, at the default of `Limits.relay_window`


class RelayPool:
    """What a hub holds for the streams it forwards: a budget of bytes, and blocks of memory already touched.

    Args:
        limit: bytes in all.
        block: size of a block: the largest CHUNK.
    """

    def __init__(self, limit: int, block: int) -> None:
        self._limit = limit
        self._block = block
        self._free: list[bytearray] = []
        self.used = 0

    def take(self, most: int) -> int:
        """Take up to *most* bytes of the budget; return how many there were."""
        taken = max(0, min(most, self._limit - self.used))
        self.used += taken
        return taken

    def give(self, size: int) -> None:
        """Give bytes of the budget back; once all are, nothing is forwarded, and blocks beyond a few are let go."""
        self.used -= size
        if not self.used:
            del self._free[_KEPT_IDLE:]

    def block(self, size: int) -> bytearray:
        """Return a block of at least *size* bytes."""
        if self._free and size <= self._block:
            return self._free.pop()
        return bytearray(max(size, self._block) if size * 4 > self._block else size)

    def recycle(self, block: bytearray | None) -> None:
        """Take a block back."""
        if block is not None and len(block) == self._block and len(self._free) < _KEPT_BLOCKS:
            self._free.append(block)


class _Held:
    """One data frame on its way through."""

    __slots__ = ("block", "body", "header", "size")

    def __init__(self, header: bytes, body: Buffer, size: int, block: bytearray | None) -> None:
        self.header = header
        self.body = body
        self.size = size
        self.block = block


class RelayLeg:
    """One of a route's two ends: takes the frames of its own link, and sends on what the other end took.

    The routing part and the heads are all that is read; objects are not decoded. Each hop has its own wire window: what
    was received is granted to its sender anew only when it has left on the other link, so a route holds no more than
    its windows.
    """

    __slots__ = (
        "_aborted", "_answered", "_core", "_ended", "_landed", "_landing", "_left", "_owed", "_pool", "_queue",
        "_returned", "_sent", "_target", "_window", "alias", "credit", "joined", "opening", "other",
    )  # fmt: skip

    def __init__(
        self,
        core: LinkCore,
        alias: int,
        opening: bodies.Opening | bodies.Resumption,
        target: int,
        pool: RelayPool,
        *,
        credit: int,
    ) -> None:
        self._core = core
        self._target = target
        self._pool = pool
        self._queue: deque[_Held] = deque()
        self._landing: tuple[bytearray, int, int] | None = None
        self._window = FIRST_WINDOW  # granted to the sender on this link
        self._owed = 0  # received from it, and not granted anew yet
        self._returned = 0  # left on the other link, and about to be granted anew
        self._sent = 0  # handed out on this link so far
        self._landed = 0  # of it, what the site on this link has given credit for
        self._left = 0  # of it, what was written or has landed: its sender may send as much again
        self._answered = isinstance(opening, bodies.Resumption)  # the site on this link has, to all that is known here
        self._ended = False  # the site on this link has said so
        self._aborted = False  # the opener, on the other link, has; nobody waits for the replies any more
        self.alias = alias
        self.opening = opening
        self.credit = credit
        self.joined = False
        self.other: RelayLeg = self

    def __repr__(self) -> str:
        return "a forwarded stream"

    def widen(self, window: int) -> None:
        """Grant the sender on this link a window of *window* bytes, as far as the budget has them."""
        more = self._pool.take(window - FIRST_WINDOW)
        if more:
            self._window += more
            self._grant(more)

    # What its own link receives.

    handlers: ClassVar[dict[int, Callable[[Any, int, int, bytes], None]]] = {}
    """As a leg's: what becomes of each type of frame."""

    def frame(self, kind: int, flags: int, seq: int, body: bytes) -> None:
        """Forward one frame, or use it here if it concerns this hop alone.

        Raises:
            RemoteProtocolError: the frame overruns the window.
        """
        other = self.other
        if kind == FrameType.CREDIT:
            self.credit += seq
            self._landed += seq
            self._has_left(min(self._landed, self._sent))  # of a long chunk, this comes before the rest is written
            other._give_credit()  # so that bytes are seen to move at the stream's other end too
            self._join()
        elif kind in _DATA:
            size = len(body)
            self._owe(size)
            if kind == FrameType.REPLY:
                self._answered = True
            header = HEADER.pack(size, kind, flags, other._target, other.alias, seq, 0, 0)
            other._enqueue(_Held(header, body, size, None))
        elif kind == FrameType.RESUME and self.site == self.opening.opener:
            # Passed on, it would cost the site its link.
            raise RemoteProtocolError(f"RESUME of a stream that {self.site} has under way")
        elif kind in _FORWARDED or (kind == FrameType.REFUSED and not flags & Flag.FINAL):
            other._control(kind, flags, seq, body)
            if kind == FrameType.ABORT:
                if not (other._answered or other._aborted):
                    self._core.count_reset(self.opening.opener)
                other._drop()
                other._aborted = True
                other._close_if_through()
            elif kind in (FrameType.ENDED, FrameType.REFUSED):  # ahead of replies that wait for GRANT or CREDIT
                self._drop()
                self._ended = True
                self._close_if_through()
        else:  # last words
            other._control(kind, flags, seq, body)
            other._close()
            self._close()

    def chunk(self, seq: int, buffer: int, offset: int, size: int) -> memoryview | None:
        """Say where a chunk lands before it is sent on."""
        if self.other._ended:
            return None  # an object for a site that has ended the stream
        self._owe(size)
        block = self._pool.block(size)
        self._landing = (block, buffer, offset)
        return memoryview(block)[:size]

    def chunk_done(self, seq: int, size: int) -> None:
        """Send on the chunk that has landed, in pieces if the other link takes no larger ones, or takes them slowly."""
        if self._landing is None:
            return
        block, buffer, offset = self._landing
        self._landing = None
        other = self.other
        view = memoryview(block)
        start = 0
        while start < size:
            piece = min(size - start, other._core.scheduler.chunk)
            header = CHUNK_HEADER.pack(
                piece + CHUNK.size, FrameType.CHUNK, 0, other._target, other.alias, seq, 0, 0, buffer, 0, offset + start
            )
            last = start + piece == size
            other._enqueue(_Held(header, view[start : start + piece], piece, block if last else None))
            start += piece

    def _owe(self, size: int) -> None:
        if self._owed > self._window:  # one frame may overdraw it, a second may not
            raise RemoteProtocolError(f"{self._owed} bytes in flight on a forwarded stream, window {self._window}")
        self._owed += size

    @property
    def site(self) -> str:
        """The site that this link leads to: one's own sites dial a hub directly."""
        return self._core.peer

    def lost(self, reason: str, *, for_good: bool = True) -> None:
        """This end's link is gone: tell the other end, and forget the route."""
        other = self.other
        if other.alias in other._core.legs:
            cause = bodies.Cause(ReturnCode.COMMUNICATION_ERROR, self._core.me.site, reason)
            other._control(FrameType.LOST if for_good else FrameType.SUSPENDED, 0, 0, bodies.encode(cause))
        other._close()
        self._close()

    # What its own link sends.

    def _control(self, kind: int, flags: int, seq: int, body: bytes) -> None:
        self._core.scheduler.control(pack(kind, self.alias, seq, body=body, flags=flags, target=self._target))

    def _enqueue(self, held: _Held) -> None:
        self._queue.append(held)
        self._join()

    def _join(self) -> None:
        if not self.joined and self.sendable:
            self.joined = True
            self._core.scheduler.join(self)

    @property
    def sendable(self) -> bool:
        """Whether something could be sent now."""
        return self.credit > 0 and bool(self._queue)

    def emit(self, out: list[Buffer], limit: int) -> int:
        """Append frames to be sent on; once they are written, their sender may send as much again."""
        queue = self._queue
        done = 0
        gone: list[_Held] = []
        while queue and self.credit > 0 and done < limit and len(gone) < _MAX_BUFFERS:
            held = queue.popleft()
            out.append(held.header)
            out.append(held.body)
            self.credit -= held.size
            done += held.size
            gone.append(held)

        self._sent += done
        through = self._sent

        def written() -> None:
            for held in gone:
                self._pool.recycle(held.block)
            self._has_left(through)

        self._core.scheduler.when_written(written)
        return done

    def _has_left(self, total: int) -> None:
        size = total - self._left
        if size > 0:
            self._left = total
            self.other._gone(size)

    def _gone(self, size: int) -> None:
        """Hear that *size* bytes received here have left on the other link."""
        self._returned += size
        if self._returned * 4 >= self._window or not self.other._queue:
            self._give_credit()

    def _give_credit(self) -> None:
        returned, self._returned = self._returned, 0
        if returned:
            self._owed -= returned
            if self.alias in self._core.legs:
                self._grant(returned)

    def _grant(self, size: int) -> None:
        self._control(FrameType.CREDIT, 0, size, b"")

    def _drop(self) -> None:
        """Drop the data frames that wait here."""
        dropped = sum(held.size for held in self._queue)
        for held in self._queue:
            self._pool.recycle(held.block)
        self._queue.clear()
        if dropped:
            self.other._gone(dropped)

    def _close_if_through(self) -> None:
        """Forget the route of an aborted stream once the site on this link has ended; of others, DONE says when."""
        if self._ended and self._aborted:
            self.other._close()
            self._close()

    def _close(self) -> None:
        if self._core.legs.get(self.alias) is not self:
            return
        self._core.forget(self.alias)
        if self.joined:
            self.joined = False
            self._core.scheduler.leave(self)
        self._queue.clear()
        self._pool.give(self._window - FIRST_WINDOW)


def _takes(kind: int) -> Callable[[RelayLeg, int, int, bytes], None]:
    return lambda leg, flags, seq, body: leg.frame(kind, flags, seq, body)


RelayLeg.handlers.update({kind: _takes(kind) for kind in {FrameType.CREDIT} | _DATA | _FORWARDED | _LAST_WORDS})


def join(left: RelayLeg, right: RelayLeg) -> None:
    """Make two ends a route."""
    left.other, right.other = right, left
