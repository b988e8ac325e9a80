"""Links within the process that fail as a test tells them to: stall, lag, throttle, cut, refuse, and rewrite frames."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, Self

import anyio

from ..errors import BrokenError, ConnectError
from ..transports.base import Pump, Wire
from ..transports.memory import pairing
from ..wakeup import current_face
from .frames import Frame, FrameCutter

CAPACITY: Final = 256 * 1024
"""Bytes under way in one direction before its sender has to wait, as a socket's buffers would hold."""

_PIECE: Final = 16 * 1024  # what arrives together; small, so that a rate is felt within a large write
_TURN: Final = 1024 * 1024  # bytes moved before the loop has its turn
_SOON: Final = 1e-9  # seconds by which a timer may round


class Direction:
    """One way of a link. What is set holds from the next byte on that is sent.

    Attributes:
        delay: how long each byte is under way, in seconds.
        rate: bytes per second; infinite unless set.
        rewrite: called with each whole frame; the frames that it returns go on in its place. Return none to drop it,
            two to duplicate it; keep one and return it after a later one to reorder.
        sent: bytes taken from the sender.
        arrived: bytes given to the receiver.
    """

    def __init__(self, cut: Callable[[], object]) -> None:
        self.delay = 0.0
        self.rate = math.inf
        self.rewrite: Callable[[Frame], Iterable[Frame]] | None = None
        self.sent = 0
        self.arrived = 0
        self._cut = cut
        self._way: deque[tuple[float, memoryview]] = deque()  # when each piece is due, and the piece
        self._size = 0
        self._free_at = -math.inf  # when the rate lets the next byte start
        self._stalled = False
        self._left = math.inf  # bytes that may arrive before the cut
        self._ended = False  # the sender has closed
        self._end_due = math.inf  # when its receiver hears of that, after all that is under way
        self._cutter = FrameCutter()
        self._wake_sender: Callable[[], object] = _nobody
        self._wake_receiver: Callable[[], object] = _nobody

    @property
    def under_way(self) -> int:
        """Bytes sent that have not arrived."""
        return self._size

    def stall(self) -> None:
        """Let nothing arrive any more, not even that the sender closes; it goes on until ``CAPACITY`` is full."""
        self._stalled = True

    def resume(self) -> None:
        """Let go on what was stalled."""
        self._stalled = False
        self._wake_receiver()
        self._wake_sender()

    def cut_after(self, count: int) -> None:
        """Cut the link, both ways, once *count* more bytes have arrived.

        Raises:
            ValueError: *count* is negative.
        """
        if count < 0:
            raise ValueError(f"count is {count}, expected at least 0")
        self._left = count
        self._wake_receiver()

    # What the two wires do.

    @property
    def _room(self) -> int:
        return 0 if self._ended else max(0, CAPACITY - self._size)

    def _put(self, data: bytes | memoryview, now: float) -> None:
        self.sent += len(data)
        if self.rewrite is None:
            self._start(bytes(data), now)
            return
        for frame in self._cutter.feed(data):
            for changed in self.rewrite(frame):
                self._start(changed.pack(), now)

    def _start(self, data: bytes, now: float) -> None:
        view = memoryview(data)
        while view:
            piece, view = view[:_PIECE], view[_PIECE:]
            self._free_at = max(now, self._free_at) + len(piece) / self.rate
            due = self._free_at + self.delay
            if self._way:
                due = max(due, self._way[-1][0])  # the order of bytes stays, whatever becomes of the delay
            self._way.append((due, piece))
            self._size += len(piece)
        self._wake_receiver()

    @property
    def _due(self) -> float:
        """When the next piece or the end arrives; infinite when nothing is under way, or nothing may arrive."""
        if self._stalled:
            return math.inf
        return self._way[0][0] if self._way else self._end_due

    def _take(self, now: float) -> memoryview | None:
        """Return what has arrived and was not taken; None when there is nothing."""
        if self._left <= 0 and not self._stalled:
            self._cut()
            return None
        if not self._way or self._due > now + _SOON:
            return None
        return self._way[0][1][: min(_PIECE, int(min(self._left, _PIECE)))]

    def _taken(self, count: int) -> None:
        due, piece = self._way.popleft()
        if count < len(piece):
            self._way.appendleft((due, piece[count:]))
        self._size -= count
        self._left -= count
        self.arrived += count
        self._wake_sender()

    def _through(self, now: float) -> bool:
        """Whether the sender has closed, and that and all before it has arrived."""
        return self._ended and not self._way and self._due <= now + _SOON

    def _end(self, now: float) -> None:
        if not self._ended:
            self._ended = True
            self._end_due = max(now + self.delay, self._way[-1][0] if self._way else now)
            self._wake_receiver()

    def _clear(self) -> None:
        self._way.clear()
        self._size = 0
        self._ended = True


def _nobody() -> None:
    """Nobody is there to be woken yet."""


class LinkControl:
    """One connection, and what is done to it.

    Attributes:
        dialler: the name of the site that dialled.
        address: the address that it dialled, as a URL.
        up: from the dialler to the listener.
        down: from the listener to the dialler.
        alive: whether neither end has closed, and nobody has cut it.
    """

    def __init__(self, dialler: str, address: str) -> None:
        self.dialler = dialler
        self.address = address
        self.alive = True
        self.up = Direction(self.cut)
        self.down = Direction(self.cut)
        self._wires = (FaultyWire(self, address, self.up, self.down), FaultyWire(self, dialler, self.down, self.up))

    def stall(self) -> None:
        """Let nothing arrive any more, either way."""
        self.up.stall()
        self.down.stall()

    def resume(self) -> None:
        """Let go on what was stalled."""
        self.up.resume()
        self.down.resume()

    def cut(self) -> None:
        """Break the connection: both ends hear of it now, and what is under way is lost."""
        self.alive = False
        self.up._clear()
        self.down._clear()
        for wire in self._wires:
            wire._break()

    def __repr__(self) -> str:
        return f"<link of {self.dialler} to {self.address}, {'alive' if self.alive else 'gone'}>"


class FaultyWire(Wire):
    """One end of a link that is made to fail; without faults it is a wire as any other."""

    def __init__(self, link: LinkControl, name: str, outward: Direction, inward: Direction) -> None:
        face = current_face()
        self._time = face.time
        self._wakeup = face.wakeup()
        self._link = link
        self._name = name
        self._out = outward
        self._in = inward
        self._closing = False  # what the pump still has to say is to be written first
        self._closed = False
        self._reason: Exception | None = None
        outward._wake_sender = inward._wake_receiver = self._wakeup.set

    @property
    def name(self) -> str:
        return self._name

    async def run(self, pump: Pump) -> Exception | None:
        try:
            while not self._closed:
                if self._write(pump) + self._read(pump):
                    await anyio.lowlevel.checkpoint()
                elif not self._closed:
                    await self._news()
        finally:
            self._finish()
        return self._reason

    async def _news(self) -> None:
        """Wait until woken, or until something arrives."""
        due = math.inf if self._closing else self._in._due
        if due == math.inf:
            await self._wakeup.wait()
            return
        with anyio.CancelScope(deadline=due):
            await self._wakeup.wait()

    def _write(self, pump: Pump) -> int:
        """Take from the pump what there is room for; return how many bytes."""
        total = 0
        while not self._closed and total < _TURN and (room := self._out._room):
            out = pump.next_output(room)
            if not out:
                if self._closing:
                    self._closed = True
                break
            now = self._time()
            for buffer in out:
                self._out._put(buffer, now)
                total += len(buffer)
        return total

    def _read(self, pump: Pump) -> int:
        """Give the pump what has arrived; return how many bytes."""
        total = 0
        while not self._closed and not self._closing and total < _TURN:
            piece = self._in._take(self._time())
            if piece is None:
                break
            count = 0
            for destination in pump.get_buffers():
                size = min(len(piece) - count, len(destination))
                destination[:size] = piece[count : count + size]
                count += size
            self._in._taken(count)
            total += count
            pump.received(count)
        if not self._closed and self._in._through(self._time()):
            self._reason = self._reason or BrokenError(f"{self._name}: the other end closed it")
            self._closed = True
        return total

    def wake(self) -> None:
        self._wakeup.set()

    def close(self, reason: Exception | None = None, *, flush: bool = False) -> None:
        if self._closed or (self._closing and flush):
            return
        self._reason = self._reason or reason
        if flush:
            self._closing = True
        else:
            self._finish()
        self._wakeup.set()

    def _finish(self) -> None:
        self._closed = True
        self._link.alive = False
        self._out._end(self._time())
        self._in._way.clear()  # nobody is left to take it
        self._in._size = 0

    def _break(self) -> None:
        if not self._closed:
            self._closed = True
            self._reason = BrokenError(f"{self._name}: the connection was cut")
            self._wakeup.set()


class FaultyNetwork:
    """While entered, connections to ``memory://`` addresses of this event loop are made by it; a context manager.

    Engines that have no address and find each other by name are connected by it too, and their addresses are
    ``memory://local/<site>``. Links made before stay as they are.

    Args:
        on_link: called with each new link before a byte passes, so that its faults hold from the start.

    Attributes:
        links: every link made, the oldest first.
        refused: names of sites whose dialling fails with ``ConnectError``.
    """

    def __init__(self, on_link: Callable[[LinkControl], object] | None = None) -> None:
        self._on_link = on_link
        self.links: list[LinkControl] = []
        self.refused: set[str] = set()

    def __enter__(self) -> Self:
        self._token = pairing.set(self._pair)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        pairing.reset(self._token)

    def _pair(self, dialler: str, address: str) -> tuple[Wire, Wire]:
        if dialler in self.refused:
            raise ConnectError(f"{address}: refuses {dialler}, as the test has asked")
        link = LinkControl(dialler, address)
        self.links.append(link)
        if self._on_link is not None:
            self._on_link(link)
        return link._wires

    def link(self, dialler: str) -> LinkControl:
        """Return the newest link that a site has dialled.

        Raises:
            LookupError: it has dialled none.
        """
        for link in reversed(self.links):
            if link.dialler == dialler:
                return link
        raise LookupError(f"{dialler} has dialled no link; there are {self.links}")
