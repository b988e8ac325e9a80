"""The journal: what a site has answered, on the disk before it is said, so that its next life can go on with it.

What it has opened itself stands in the same file, and is the matter of ``outgoing/ledger.py``. One file belongs to one
engine. A worker thread writes; what several streams want kept at one time shares one sync.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from .codec import Encoded
from .errors import JournalError
from .protocol import bodies
from .store import Kept, State, Step, Store
from .wakeup import Face

_log = logging.getLogger(__name__)

_AGAIN: Final = 1.0  # seconds after which it is tried again to drop what is over
_OWED: Final = 0  # in place of a stream's number, which begins at 1: what is over of several


class Journal:
    """One engine's journal.

    Args:
        path: the file.
        site: whose it is.
        face: the running event loop.
    """

    def __init__(self, path: Path, site: str, face: Face) -> None:
        self._path = path
        self.site = site
        self._face = face
        self._limiter = anyio.CapacityLimiter(1)
        self._steps: deque[tuple[Record, Step]] = deque()
        self._owed: list[Step] = []  # streams that are over, and could not be dropped
        self._news = face.wakeup()
        self._idle = face.wakeup()
        self._writing = False
        self._records: dict[tuple[str, bytes], Record] = {}
        self._next = 1
        self._store: Store

    async def open(self, *further: Step) -> list[Kept]:
        """Open the file; return the incoming streams that earlier lives have left.

        Args:
            further: called with the open file, to read what else is there.

        Raises:
            JournalError: it cannot be used.
        """

        def opened() -> tuple[Store, list[Kept]]:
            store = Store(self._path, self.site)
            try:
                for reads in further:
                    reads(store)
                return store, store.load()
            except BaseException:
                store.close()
                raise

        with anyio.CancelScope(shield=True):  # or nobody would close the file
            self._store, kept = await anyio.to_thread.run_sync(opened, limiter=self._limiter)
        self.skip(max((stream.number for stream in kept), default=0))
        return kept

    def skip(self, number: int) -> None:
        """Hear that an earlier life has used a number."""
        self._next = max(self._next, number + 1)

    def number(self) -> int:
        """Return a number for another stream."""
        self._next += 1
        return self._next - 1

    async def run(self) -> None:
        """Write what is asked for, in order, all that waits at one time with one sync."""
        while True:
            if self._steps or self._owed:
                await self._write()
            if not self._steps:
                self._idle.set()
                with anyio.move_on_after(_AGAIN if self._owed else math.inf):
                    await self._news.wait()

    async def _write(self) -> None:
        batch, self._steps = self._steps, deque()
        owed, self._owed = self._owed, []
        self._writing = True
        steps = [(record.number, step) for record, step in batch if record.error is None or step is record.last]
        if owed:
            steps.insert(0, (_OWED, partial(_make_all, owed)))
        failed = await anyio.to_thread.run_sync(self._store.write, steps, limiter=self._limiter)
        self._writing = False
        if _OWED in failed:
            self._owed += owed
        self._written(batch, failed)

    def _written(self, batch: deque[tuple[Record, Step]], failed: dict[int, JournalError]) -> None:
        for record, step in batch:
            error = failed.get(record.number)
            if error is not None and record.error is None:
                record.error = error
                _log.error("engine %s: %s", self.site, error)
            if error is not None and step is record.last:
                self._owed.append(step)
            record.settled()

    async def flush(self) -> None:
        """Wait until all that was asked for is written."""
        while self._steps or self._writing:
            await self._idle.wait()

    async def aclose(self) -> None:
        """Close the file, once nobody runs the journal any more."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._store.close, limiter=self._limiter)

    def add(self, record: Record, step: Step) -> None:
        """Have a step made, after those that were asked for before."""
        self._steps.append((record, step))
        self._news.set()

    def begin(self, opening: bodies.Opening, body: bytes) -> Record:
        """Keep a new stream."""
        record = Record(self, self.number(), self._face)
        self._records[opening.opener, opening.stream] = record
        routing = bodies.encode(opening)
        record.ask(lambda store: store.begin(record.number, routing, body))
        return record

    def resume(self, kept: Kept) -> Record:
        """Go on with a stream of an earlier life."""
        record = self._records[kept.opening.opener, kept.opening.stream] = Record(self, kept.number, self._face)
        return record

    def followed(self, opening: bodies.Opening) -> None:
        """Note that a later life of its opener has taken a stream up, if it is here; on the disk before its objects."""
        record = self._records.get((opening.opener, opening.stream))
        if record is not None:
            routing = bodies.encode(opening)
            record.ask(lambda store: store.follow(record.number, routing))

    def leased(self, opening: bodies.Opening, seconds: float | None) -> None:
        """Note for how long from now a stream is kept without its opener, if it is here; None once that is back.

        By the wall clock, for no other goes on from one life to the next.
        """
        record = self._records.get((opening.opener, opening.stream))
        if record is not None:
            until = None if seconds is None else self._face.wall() + seconds
            record.ask(lambda store: store.lease(record.number, until))

    def forget(self, opener: str, stream: bytes) -> None:
        """Drop a stream, if it is here."""
        record = self._records.pop((opener, stream), None)
        if record is not None:
            record.end_with(lambda store: store.forget(record.number))


class Record:
    """One stream in the journal; used by that stream's task alone.

    Attributes:
        number: the journal's, of the stream.
        error: why something of it could not be written: nothing more of it is, save that it is dropped.
        last: the step that drops it, once that is asked for.
    """

    def __init__(self, journal: Journal, number: int, face: Face) -> None:
        self._journal = journal
        self._wakeup = face.wakeup()
        self._pending = 0
        self.number = number
        self.error: JournalError | None = None
        self.last: Step | None = None

    @property
    def forgotten(self) -> bool:
        """Whether it is to be dropped."""
        return self.last is not None

    def ask(self, step: Step) -> None:
        """Have a step made soon."""
        self._pending += 1
        self._journal.add(self, step)

    def end_with(self, step: Step) -> None:
        """Have the stream dropped; tried again and again until it can be written."""
        self.last = step
        self.ask(step)

    def settled(self) -> None:
        """Hear that a step was made, or failed."""
        self._pending -= 1
        if not self._pending:
            self._wakeup.set()

    async def begun(self) -> None:
        """Return once it is on the disk that there is the stream: what has begun is never unknown to the next life.

        Raises:
            JournalError: it could not be written.
        """
        await self._settle()

    async def done(self, seq: int, reply: Encoded, *, acked: int) -> None:
        """Return once it is on the disk that object *seq* was consumed, and what the reply is.

        Args:
            seq: of the object.
            reply: what will be said.
            acked: how many replies the opener has.

        Raises:
            JournalError: it could not be written.
        """
        state = State(seq + 1, acked)
        self.ask(lambda store: store.done(self.number, state, seq, reply, 0))
        await self._settle()

    async def ended(
        self, ending: bytes, answered: int, acked: int, last: tuple[int, Encoded, int] | None = None
    ) -> None:
        """Return once it is on the disk that the stream has ended.

        Args:
            ending: the body of ENDED.
            answered: how many objects were answered, the last included.
            acked: how many replies the opener has.
            last: the number, reply and flags of the object that the end comes with.

        Raises:
            JournalError: it could not be written.
        """
        state = State(answered, acked, ending)
        if last is None:
            self.ask(lambda store: store.mark(self.number, state))
        else:
            seq, reply, flags = last
            self.ask(lambda store: store.done(self.number, state, seq, reply, flags))
        await self._settle()

    async def _settle(self) -> None:
        while self._pending:
            await self._wakeup.wait()
        if self.error is not None:
            raise self.error


def _make_all(steps: Sequence[Step], store: Store) -> None:
    for step in steps:
        step(store)
