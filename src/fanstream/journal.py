"""The journal: what a site has answered, on the disk before it is said, so that its next life can go on with it.

What it has opened itself stands in the same file, and is the matter of ``outgoing/ledger.py``. One file belongs to one
engine. A worker thread writes; what several streams want kept at one time shares one sync.
"""

from __future__ import annotations

import binascii
import logging
import math
import os
import sqlite3
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
import msgspec

from .codec import Encoded
from .errors import JournalError, RemoteProtocolError
from .protocol import bodies
from .wakeup import Face

_log = logging.getLogger(__name__)

_APPLICATION: Final = 0x46414E53  # "FANS", in the header of the file
_VERSION: Final = 4  # of the tables
_SMALLEST: Final = 512  # bytes: a page of SQLite's
_AGAIN: Final = 1.0  # seconds after which it is tried again to drop what is over
_OWED: Final = 0  # in place of a stream's number, which begins at 1: what is over of several
_PIECE: Final = 64 * 1024 * 1024  # bytes: SQLite takes no value of more than 1 GB
_LOG_SIZE: Final = 64 * 1024 * 1024  # bytes of the write-ahead log that stay allocated
_BROKEN: Final = frozenset((sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))
_TABLES: Final = (
    "CREATE TABLE site (name TEXT NOT NULL)",
    """CREATE TABLE streams (
        id INTEGER PRIMARY KEY, opening BLOB NOT NULL, body BLOB NOT NULL, state BLOB NOT NULL, lease BLOB NOT NULL
    )""",
    "CREATE TABLE replies (stream INTEGER, seq INTEGER, head BLOB NOT NULL, PRIMARY KEY (stream, seq))",
    """CREATE TABLE pieces (
        stream INTEGER, seq INTEGER, number INTEGER, checksum INTEGER NOT NULL, data BLOB NOT NULL,
        PRIMARY KEY (stream, seq, number)
    )""",
    """CREATE TABLE outgoing (
        id INTEGER PRIMARY KEY, opening BLOB NOT NULL, body BLOB NOT NULL, sites BLOB NOT NULL,
        settled INTEGER NOT NULL, verdict BLOB NOT NULL
    )""",
)

_T = TypeVar("_T")

_encode = msgspec.msgpack.Encoder().encode


class _State(msgspec.Struct, array_like=True, frozen=True):
    """How far a stream is: objects answered, replies that the opener has, and the body of ENDED, if it has ended."""

    answered: int = 0
    acked: int = 0
    ending: bytes = b""


class _Head(msgspec.Struct, array_like=True, frozen=True):
    """One reply, without its buffers."""

    flags: int
    envelope: bytes
    sizes: tuple[int, ...] = ()


_decode_state = msgspec.msgpack.Decoder(_State).decode
_decode_lease = msgspec.msgpack.Decoder(float | None).decode
_decode_head = msgspec.msgpack.Decoder(_Head).decode


@dataclass(frozen=True, slots=True)
class Kept:
    """A stream as an earlier life left it.

    Attributes:
        number: the journal's, of the stream.
        opening: OPEN's routing part.
        body: the rest of OPEN.
        answered: how many objects were answered: the first that was not is consumed again.
        acked: how many replies the opener has.
        replies: the others, each with its flags, by number.
        ending: the body of ENDED; empty if the stream has not ended.
        lease: until when it is kept without its opener, by the wall clock; None if nobody had begun to wait.
    """

    number: int
    opening: bodies.Opening
    body: bytes = field(repr=False)
    answered: int
    acked: int
    replies: dict[int, tuple[Encoded, int]] = field(repr=False)
    ending: bytes = field(repr=False)
    lease: float | None


Step = Callable[["Store"], object]
"""One change to the file; it raises ``sqlite3.Error`` where it cannot be made."""


class Store:
    """The file, for one thread at a time.

    Args:
        path: where it is, or is to be made; its folder has to be there.
        site: whose it is.

    Raises:
        JournalError: it cannot be used.
    """

    def __init__(self, path: Path, site: str) -> None:
        self.path = path
        self._site = site
        self._broken: JournalError | None = None
        self._check_file()
        try:
            self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as exc:
            raise self._refusal(exc) from exc
        try:
            self._prepare()
        except (sqlite3.Error, UnicodeDecodeError) as exc:
            self._connection.close()
            raise self._refusal(exc) from exc
        except BaseException:
            self._connection.close()
            raise

    def _check_file(self) -> None:
        path = self.path
        try:
            status = path.stat()
        except FileNotFoundError:
            try:
                # Never opened otherwise: closing a file would take back the locks that this process has on it.
                path.touch(mode=0o600, exist_ok=False)
            except OSError as exc:
                raise JournalError(
                    path, f"cannot be made: {exc.strerror}", "Name a file in a folder that this user may write"
                ) from exc
            return
        except OSError as exc:
            raise JournalError(path, f"cannot be read: {exc.strerror}", "Let the engine's user use it") from exc
        if not stat.S_ISREG(status.st_mode):
            raise JournalError(path, "is no regular file", "Name a file, or one that is to be made")
        if 0 < status.st_size < _SMALLEST:  # SQLite would take it for an empty one
            raise self._damaged(f"it has {status.st_size} bytes")
        if os.name == "posix":  # elsewhere the mode says nothing
            mode = stat.S_IMODE(status.st_mode)
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise JournalError(path, f"has mode {mode:04o}, and other users may use it", f"Run: chmod 600 {path}")

    def _refusal(self, exc: sqlite3.Error | UnicodeDecodeError) -> JournalError:
        if isinstance(exc, UnicodeDecodeError):  # a message about the schema repeats what is in the file
            return self._damaged("its schema cannot be read")
        code = exc.sqlite_errorcode & 0xFF if hasattr(exc, "sqlite_errorcode") else 0
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return JournalError(self.path, "is in use by another engine", "Give each engine a journal of its own")
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self._damaged(str(exc))
        fix = "Let the engine's user write the file and its folder"
        if code == sqlite3.SQLITE_FULL:
            fix = "Make room on the disk"
        return JournalError(self.path, f"cannot be used: {exc}", fix)

    def _damaged(self, what: str) -> JournalError:
        fix = "Move it away to begin with an empty one: the streams that it had are lost to their openers"
        return JournalError(self.path, f"is damaged, or no journal: {what}", fix)

    def _prepare(self) -> None:
        run = self._connection.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        application, version = run("PRAGMA application_id").fetchone()[0], run("PRAGMA user_version").fetchone()[0]
        empty = not run("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != _APPLICATION and not (empty and application == 0):
            raise JournalError(self.path, "is a database of something else", "Name another file")
        if application == _APPLICATION and version != _VERSION:
            raise JournalError(
                self.path,
                f"has version {version}, this engine knows {_VERSION}",
                "Use the release that wrote it until its streams have ended, or move it away: then they are lost",
            )
        mode = run("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise JournalError(self.path, f"can only be kept in mode {mode}, not wal", "Put it on a local disk")
        run("PRAGMA synchronous = FULL")
        run(f"PRAGMA journal_size_limit = {_LOG_SIZE}")
        run("BEGIN IMMEDIATE")
        if empty:
            for table in _TABLES:
                run(table)
            run(f"PRAGMA application_id = {_APPLICATION}")
            run(f"PRAGMA user_version = {_VERSION}")
            run("INSERT INTO site VALUES (?)", (self._site,))
        else:  # written all the same: a disk that is full, or may not be written, is found now
            run("UPDATE site SET name = name")
        run("COMMIT")
        found = run("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise self._damaged(str(found))
        names = [row[0] for row in run("SELECT name FROM site")]
        if names != [self._site]:
            raise JournalError(
                self.path, f"is the journal of {', '.join(map(str, names)) or 'nobody'}", f"Give {self._site} its own"
            )

    @property
    def execute(self) -> Callable[..., sqlite3.Cursor]:
        """Run a statement: within a step, as part of its commit."""
        return self._connection.execute

    def close(self) -> None:
        """Close the file; what was written stays."""
        self._connection.close()

    def load(self) -> list[Kept]:
        """Read what earlier lives have left of incoming streams.

        Raises:
            JournalError: the file is damaged.
        """
        return self.read(lambda: list(self._load()))

    def read(self, reading: Callable[[], _T]) -> _T:
        """Call what reads and decodes rows, and return what it returns.

        Raises:
            JournalError: the file is damaged.
        """
        try:
            return reading()
        except (sqlite3.Error, msgspec.MsgspecError, RemoteProtocolError, DamageError, UnicodeDecodeError) as exc:
            raise self._damaged(str(exc)) from exc

    def _load(self) -> Iterator[Kept]:
        rows = self._connection.execute("SELECT id, opening, body, state, lease FROM streams ORDER BY id").fetchall()
        for number, opening, body, state, lease in rows:
            told = bodies.decode(bodies.Opening, checked(opening))
            where = _decode_state(checked(state))
            replies = {}
            found = self._connection.execute("SELECT seq, head FROM replies WHERE stream = ? ORDER BY seq", (number,))
            for seq, head in found.fetchall():
                replies[seq] = self._load_reply(number, seq, _decode_head(checked(head)))
            first, count = where.acked, where.answered - where.acked
            if len(replies) != count or any(seq != first + index for index, seq in enumerate(replies)):
                raise DamageError(f"stream {number} has {len(replies)} replies, {count} expected")
            until = _decode_lease(checked(lease))
            yield Kept(number, told, checked(body), where.answered, where.acked, replies, where.ending, until)

    def _load_reply(self, number: int, seq: int, head: _Head) -> tuple[Encoded, int]:
        pieces = self._connection.execute(
            "SELECT checksum, data FROM pieces WHERE stream = ? AND seq = ? ORDER BY number", (number, seq)
        )
        buffers = []
        for size in head.sizes:
            buffer = bytearray()
            while len(buffer) < size:
                checksum, data = pieces.fetchone() or (0, None)
                if not isinstance(data, bytes) or not data or binascii.crc32(data) != checksum:
                    raise DamageError(f"reply {seq} of stream {number}")
                buffer += data
            if len(buffer) != size:
                raise DamageError(f"reply {seq} of stream {number}")
            buffers.append(memoryview(buffer))
        return Encoded(head.envelope, tuple(buffers), head.sizes, sum(head.sizes)), head.flags

    def write(self, steps: Sequence[tuple[int, Step]]) -> dict[int, JournalError]:
        """Make changes durable, all at once if that can be.

        Args:
            steps: each with the number of the stream that it is for, in the order in which they were asked for.

        Returns:
            For each stream of which something was not written, and nothing after it: why.
        """
        if self._broken is not None:
            return {number: self._broken for number, _ in steps}
        try:
            self._commit([step for _, step in steps])
        except (sqlite3.Error, OverflowError, UnicodeDecodeError) as exc:
            if len(steps) == 1:
                return {steps[0][0]: self._failure(exc)}
        else:
            return {}
        failed: dict[int, JournalError] = {}
        for number, step in steps:
            if number not in failed:
                failed |= self.write([(number, step)])
        return failed

    def _commit(self, steps: Sequence[Step]) -> None:
        run = self._connection.execute
        run("BEGIN IMMEDIATE")
        try:
            for step in steps:
                step(self)
            run("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                with suppress(sqlite3.Error):
                    run("ROLLBACK")
            raise

    def _failure(self, exc: Exception) -> JournalError:
        error = JournalError(self.path, f"cannot be written: {exc}", "Make room on the disk, or replace it")
        if getattr(exc, "sqlite_errorcode", 0) & 0xFF in _BROKEN:
            # After a sync that has failed, the next may succeed and nothing be on the disk.
            self._broken = error
        return error

    # --- steps ---

    def begin(self, number: int, opening: bytes, body: bytes) -> None:
        """Note a stream."""
        row = (number, check(opening), check(body), check(_encode(_State())), check(_encode(None)))
        self._connection.execute("INSERT INTO streams VALUES (?, ?, ?, ?, ?)", row)

    def done(self, number: int, state: _State, seq: int, reply: Encoded, flags: int) -> None:
        """Note that an object was consumed, and the reply to it."""
        run = self._connection.execute
        head = _Head(flags, reply.envelope, tuple(reply.sizes))
        run("INSERT INTO replies VALUES (?, ?, ?)", (number, seq, check(_encode(head))))
        piece = 0
        for buffer in reply.buffers:
            for start in range(0, len(buffer), _PIECE):
                data = buffer[start : start + _PIECE]
                run("INSERT INTO pieces VALUES (?, ?, ?, ?, ?)", (number, seq, piece, binascii.crc32(data), data))
                piece += 1
        self.mark(number, state)

    def mark(self, number: int, state: _State) -> None:
        """Note how far a stream is; replies that nobody will ask for go."""
        run = self._connection.execute
        if run("UPDATE streams SET state = ? WHERE id = ?", (check(_encode(state)), number)).rowcount != 1:
            raise sqlite3.DataError(f"stream {number} is not there")
        outside = (number, state.acked, state.answered)
        run("DELETE FROM replies WHERE stream = ? AND (seq < ? OR seq >= ?)", outside)
        run("DELETE FROM pieces WHERE stream = ? AND (seq < ? OR seq >= ?)", outside)

    def follow(self, number: int, opening: bytes) -> None:
        """Note that a later life of the opener has taken a stream up."""
        self._connection.execute("UPDATE streams SET opening = ? WHERE id = ?", (check(opening), number))

    def lease(self, number: int, until: float | None) -> None:
        """Note until when a stream is kept without its opener."""
        self._connection.execute("UPDATE streams SET lease = ? WHERE id = ?", (check(_encode(until)), number))

    def forget(self, number: int) -> None:
        """Drop all of a stream."""
        for table, column in (("streams", "id"), ("replies", "stream"), ("pieces", "stream")):
            self._connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (number,))  # noqa: S608 - names of ours


def _make_all(steps: Sequence[Step], store: Store) -> None:
    for step in steps:
        step(store)


class DamageError(Exception):
    """What was read is not what was written."""


def check(data: bytes) -> bytes:
    """Put a checksum before what is written."""
    return binascii.crc32(data).to_bytes(4, "little") + data


def checked(data: Any) -> bytes:
    """Return what was written, without its checksum.

    Raises:
        DamageError: it is not what was written.
    """
    if not isinstance(data, bytes) or binascii.crc32(data[4:]).to_bytes(4, "little") != data[:4]:
        raise DamageError("a checksum is wrong")
    return data[4:]


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
        state = _State(seq + 1, acked)
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
        state = _State(answered, acked, ending)
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
