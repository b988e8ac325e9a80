"""The file of a journal: an SQLite database with a checksum beside all that it keeps.

It says what is durable and what is damaged, and waits for the disk: a thread of its own is to use it. What is kept, and
when, is the matter of ``journal.py`` and ``outgoing/ledger.py``.
"""

from __future__ import annotations

import binascii
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from .codec import Encoded
from .errors import JournalError, RemoteProtocolError
from .protocol import bodies

_APPLICATION: Final = 0x46414E53  # "FANS", in the header of the file
_VERSION: Final = 4  # of the tables
_SMALLEST: Final = 512  # bytes: a page of SQLite's
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


class State(msgspec.Struct, array_like=True, frozen=True):
    """How far a stream is: objects answered, replies that the opener has, and the body of ENDED, if it has ended."""

    answered: int = 0
    acked: int = 0
    ending: bytes = b""


class _Head(msgspec.Struct, array_like=True, frozen=True):
    """One reply, without its buffers."""

    flags: int
    envelope: bytes
    sizes: tuple[int, ...] = ()


_decode_state = msgspec.msgpack.Decoder(State).decode
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
        row = (number, check(opening), check(body), check(_encode(State())), check(_encode(None)))
        self._connection.execute("INSERT INTO streams VALUES (?, ?, ?, ?, ?)", row)

    def done(self, number: int, state: State, seq: int, reply: Encoded, flags: int) -> None:
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

    def mark(self, number: int, state: State) -> None:
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
