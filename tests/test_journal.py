"""The journal's file: what it keeps, what it drops, whom it refuses, and what a failing disk or a stray byte does."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest

from fanstream import EngineSettings, StreamEngine
from fanstream.codec import Encoded
from fanstream.errors import JournalError
from fanstream.journal import Journal, Record
from fanstream.protocol import bodies
from fanstream.store import Kept, State, Store, check
from fanstream.testing import asyncio_backend, trio_backend
from fanstream.wakeup import current_face
from tests.striking import Strike

both = pytest.mark.parametrize(
    "anyio_backend", [pytest.param(asyncio_backend(), id="asyncio"), pytest.param(trio_backend(), id="trio")]
)
OPENING = bodies.Opening(b"s" * 16, "server", ["site-1"], "models", "weights", 4, life=b"l" * 16, resume=60_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def encoded(text: bytes, *buffers: bytes) -> Encoded:
    sizes = tuple(map(len, buffers))
    return Encoded(text, tuple(map(memoryview, buffers)), sizes, sum(sizes))


@dataclass
class Opened:
    """A journal that is run, and the streams of earlier lives."""

    path: Path
    kept: list[Kept] = field(default_factory=list)
    journal: Journal = field(init=False)

    async def __aenter__(self) -> Opened:
        self.journal = Journal(self.path, "site-1", current_face())
        self.kept = await self.journal.open()
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(self.journal.run)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.journal.flush()
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)
        await self.journal.aclose()


async def begun(opened: Opened, objects: int, *, stream: bytes = b"s" * 16, acked: int = 0) -> Record:
    record = opened.journal.begin(bodies.Opening(stream, "server", ["site-1"], "a", "b", 4), b"body")
    for seq in range(objects):
        await record.done(seq, encoded(b"reply %d" % seq, b"%d" % seq * 5), acked=acked)
    return record


@both
@pytest.mark.anyio
async def test_another_life_finds_what_was_done(path: Path) -> None:
    async with Opened(path) as first:
        record = first.journal.begin(OPENING, b"context")
        await record.done(0, encoded(b"r0"), acked=0)
        await record.done(1, encoded(b"r1", b"abc", b"defg"), acked=0)
    async with Opened(path) as second:
        (kept,) = second.kept
        assert (kept.opening, kept.body, kept.answered, kept.acked, kept.ending) == (OPENING, b"context", 2, 0, b"")
        assert [reply.envelope for reply, _ in kept.replies.values()] == [b"r0", b"r1"]
        large, flags = kept.replies[1]
        assert ([bytes(buffer) for buffer in large.buffers], large.sizes, large.total, flags) == (
            [b"abc", b"defg"], (3, 4), 7, 0,
        )  # fmt: skip
        record = second.journal.resume(kept)
        await record.done(2, encoded(b"r2"), acked=2)
        await second.journal.begin(OPENING, b"").ended(b"e", 0, 0)
    async with Opened(path) as third:
        assert [(kept.answered, list(kept.replies), kept.ending) for kept in third.kept] == [
            (3, [2], b""),
            (0, [], b"e"),
        ]


@both
@pytest.mark.anyio
async def test_another_life_of_the_opener_is_remembered_before_what_is_done_for_it(path: Path) -> None:
    later = msgspec.structs.replace(OPENING, life=b"m" * 16, epoch=2)
    async with Opened(path) as first:
        record = first.journal.begin(msgspec.structs.replace(OPENING, epoch=1), b"context")
        await record.done(0, encoded(b"r0"), acked=0)
        first.journal.followed(later)
        first.journal.followed(msgspec.structs.replace(later, stream=b"t" * 16))  # not here
        await record.done(1, encoded(b"r1"), acked=0)
    async with Opened(path) as second:
        ((kept,)) = second.kept
        assert (kept.opening, kept.body, kept.answered) == (later, b"context", 2)


@both
@pytest.mark.anyio
async def test_the_end_is_kept_with_its_last_reply_and_without_those_that_were_not_said(path: Path) -> None:
    async with Opened(path) as first:
        record = await begun(first, 2)
        await record.ended(b"end", 3, 1, (2, encoded(b"last"), 1))
        withdrawn = await begun(first, 2, stream=b"w" * 16)
        await withdrawn.ended(b"withdrawn", 1, 0)
    async with Opened(path) as second:
        ended, cut_short = second.kept
        assert [(seq, flags) for seq, (_, flags) in ended.replies.items()] == [(1, 0), (2, 1)]
        assert (ended.answered, ended.ending) == (3, b"end")
        assert (cut_short.answered, list(cut_short.replies)) == (1, [0])


@both
@pytest.mark.anyio
async def test_what_is_forgotten_or_acknowledged_leaves_nothing(path: Path) -> None:
    async with Opened(path) as first:
        await begun(first, 3, acked=0)
        first.journal.forget("server", b"s" * 16)
        first.journal.forget("server", b"s" * 16)
        first.journal.forget("stranger", b"s" * 16)
        record = await begun(first, 2, stream=b"t" * 16)
        await record.done(2, encoded(b"r2"), acked=2)
    with closing(sqlite3.connect(path)) as connection:
        rows = {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("streams", "replies", "pieces")
        }
    assert rows == {"streams": 1, "replies": 1, "pieces": 0}


@both
@pytest.mark.anyio
async def test_streams_that_wait_at_once_share_one_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    write = Store.write

    def counted(store: Store, steps: Any) -> Any:
        batches.append(len(steps))
        return write(store, steps)

    monkeypatch.setattr(Store, "write", counted)
    async with Opened(path) as opened, anyio.create_task_group() as tg:
        for number in range(50):
            tg.start_soon(partial(begun, opened, 1, stream=b"%016d" % number))
    assert sum(batches) == 100
    assert len(batches) <= 3
    async with Opened(path) as again:
        assert len(again.kept) == 50


@both
@pytest.mark.anyio
@pytest.mark.parametrize("at", range(12))
async def test_a_wait_may_be_cancelled_anywhere(path: Path, at: int) -> None:
    """After so many turns of the loop; what was asked for is written all the same, in order."""
    async with Opened(path) as opened:
        asked = 0

        async def stream() -> None:
            nonlocal asked
            record = opened.journal.begin(OPENING, b"context")
            for seq in range(5):
                asked = seq + 1
                await record.done(seq, encoded(b"%d" % seq), acked=0)

        async with anyio.create_task_group() as tg:
            tg.start_soon(stream)
            for _ in range(at):
                await anyio.lowlevel.checkpoint()
            tg.cancel_scope.cancel()
    async with Opened(path) as again:
        assert [kept.answered for kept in again.kept] == ([asked] if asked else [])


class FailingStep(Store):
    """A file on a disk that fails."""

    error: sqlite3.Error | None = None
    refuses: Callable[[int], bool] = staticmethod(lambda _number: True)

    def mark(self, number: int, state: Any) -> None:
        super().mark(number, state)
        if self.error is not None and self.refuses(number):
            raise self.error


def fault(code: int, text: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


@both
@pytest.mark.anyio
async def test_nothing_is_written_after_what_failed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fanstream.journal.Store", FailingStep)
    monkeypatch.setattr(FailingStep, "error", fault(sqlite3.SQLITE_FULL, "database or disk is full"))
    async with Opened(path) as opened:
        record = opened.journal.begin(OPENING, b"context")
        record.ask(lambda store: store.begin(record.number + 100, b"", b""))
        record.ask(lambda store: store.mark(record.number, State()))
        record.ask(lambda store: store.begin(record.number + 200, b"", b""))
        with pytest.raises(JournalError, match="disk is full"):
            await record.begun()
        rows = opened.journal._store._connection.execute("SELECT id FROM streams ORDER BY id").fetchall()
        assert rows == [(record.number,), (record.number + 100,)]
        opened.journal._store._connection.execute("DELETE FROM streams WHERE body = ?", (b"\0" * 4,))


@both
@pytest.mark.anyio
async def test_a_write_that_fails_ends_the_waits_of_its_stream_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fanstream.journal.Store", FailingStep)
    monkeypatch.setattr(FailingStep, "refuses", staticmethod(lambda number: number == 1))
    monkeypatch.setattr(FailingStep, "error", fault(sqlite3.SQLITE_FULL, "database or disk is full"))
    async with Opened(path) as opened, anyio.create_task_group() as tg:
        tg.start_soon(partial(begun, opened, 2, stream=b"t" * 16))  # in one batch with the other
        with pytest.raises(JournalError, match=f"journal {path}: cannot be written: database or disk is full. Make"):
            await begun(opened, 1)
    async with Opened(path) as again:
        assert {kept.opening.stream: kept.answered for kept in again.kept} == {b"s" * 16: 0, b"t" * 16: 2}


@both
@pytest.mark.anyio
async def test_after_a_failed_sync_nothing_is_believed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fanstream.journal.Store", FailingStep)
    monkeypatch.setattr(FailingStep, "error", fault(sqlite3.SQLITE_IOERR_FSYNC, "disk I/O error"))
    async with Opened(path) as opened:
        with pytest.raises(JournalError, match="disk I/O error"):
            await begun(opened, 1)
        monkeypatch.setattr(FailingStep, "error", None)
        with pytest.raises(JournalError, match="disk I/O error"):
            await begun(opened, 1, stream=b"t" * 16)


@both
@pytest.mark.anyio
async def test_a_disk_that_is_full_takes_further_streams_once_there_is_room(path: Path) -> None:
    large = bytes(1_000_000)
    async with Opened(path) as opened:
        await begun(opened, 2)
        connection = opened.journal._store._connection
        connection.execute("PRAGMA max_page_count = 100")
        record = await begun(opened, 1, stream=b"t" * 16)
        with pytest.raises(JournalError, match="database or disk is full"):
            await record.done(1, encoded(b"r", large), acked=0)
        connection.execute("PRAGMA max_page_count = 100000")
        with pytest.raises(JournalError, match="database or disk is full"):
            await record.done(2, encoded(b"r"), acked=0)
        await (await begun(opened, 1, stream=b"u" * 16)).done(1, encoded(b"r", large), acked=0)
    async with Opened(path) as again:
        assert [kept.answered for kept in again.kept] == [2, 1, 2]
        assert bytes(again.kept[2].replies[1][0].buffers[0]) == large


@both
@pytest.mark.anyio
async def test_what_is_over_while_the_disk_is_full_is_dropped_once_there_is_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget, tries = Store.forget, 0

    def full(store: Store, number: int) -> None:
        nonlocal tries
        tries += 1
        raise fault(sqlite3.SQLITE_FULL, "database or disk is full")

    async with Opened(path) as opened:
        for stream in (b"s", b"t"):
            await begun(opened, 2, stream=stream * 16)
        monkeypatch.setattr(Store, "forget", full)
        for stream in (b"s", b"t"):
            opened.journal.forget("server", stream * 16)
        await anyio.sleep(5.5)
        assert tries <= 3 + 5, "once a second, both at once"
        await begun(opened, 1, stream=b"u" * 16)  # what can be written is
        monkeypatch.setattr(Store, "forget", forget)
        await anyio.sleep(2)
        await opened.journal.flush()
        rows = opened.journal._store.execute("SELECT id FROM streams").fetchall()
        assert len(rows) == 1
    async with Opened(path) as again:
        assert [kept.opening.stream for kept in again.kept] == [b"u" * 16]


def test_a_commit_is_on_the_disk(path: Path) -> None:
    store = Store(path, "site-1")
    found = [store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")]
    store.close()
    assert found == [2, "wal"], "2 is FULL"


# --- whom it refuses, at the start ---


def check_refused(path: Path, reason: str, fix: str, *, site: str = "site-1") -> None:
    with pytest.raises(JournalError) as caught:
        Store(path, site).load()
    error = caught.value
    assert error.path == str(path)
    assert reason in error.reason
    assert fix in error.fix
    assert str(error) == f"journal {path}: {error.reason}. {error.fix}"


def test_one_file_is_one_engine_s(path: Path) -> None:
    store = Store(path, "site-1")
    check_refused(path, "is in use by another engine", "a journal of its own")
    store.close()
    check_refused(path, "is the journal of site-1", "Give site-2 its own", site="site-2")
    Store(path, "site-1").close()


def test_it_is_open_to_nobody_else(path: Path) -> None:
    store = Store(path, "site-1")
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
    store.close()
    path.chmod(0o640)
    check_refused(path, "has mode 0640", f"chmod 600 {path}")


def test_another_file_is_left_alone(path: Path, tmp_path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    path.chmod(0o600)
    before = path.read_bytes()
    check_refused(path, "is a database of something else", "Name another file")
    assert path.read_bytes() == before
    check_refused(tmp_path, "is no regular file", "Name a file")
    check_refused(tmp_path / "missing" / "journal", "cannot be made: No such file", "a folder that this user may write")


@pytest.mark.parametrize("version", [3, 5])
def test_another_version_is_not_guessed_at(path: Path, version: int) -> None:
    Store(path, "site-1").close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    check_refused(path, f"has version {version}, this engine knows 4", "the release that wrote it")
    assert path.read_bytes() == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anything")
def test_a_folder_that_may_not_be_written(path: Path) -> None:
    path.parent.chmod(0o500)
    try:
        check_refused(path, "cannot be made: Permission denied", "a folder that this user may write")
    finally:
        path.parent.chmod(0o700)


@pytest.mark.parametrize(
    "content", [b"x", b"no journal\n" * 1000, os.urandom(8192), b"SQLite format 3\0" + bytes(4096)]
)
def test_garbage_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    check_refused(path, "is damaged, or no journal", "Move it away")
    assert path.read_bytes() == content


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A journal with two streams in it."""
    path = tmp_path_factory.mktemp("example") / "journal"

    async def make() -> None:
        async with Opened(path) as opened:
            await begun(opened, 3)
            await (await begun(opened, 1, stream=b"t" * 16)).ended(b"end", 1, 0)

    anyio.run(make)
    return path.read_bytes()


def seen(kept: list[Kept]) -> list[Any]:
    return [
        (one.opening, one.body, one.answered, one.acked, one.ending, [
            (seq, reply.envelope, [bytes(buffer) for buffer in reply.buffers], flags)
            for seq, (reply, flags) in one.replies.items()
        ])
        for one in kept
    ]  # fmt: skip


def test_a_damaged_file_is_refused_or_says_nothing_wrong(example: bytes, path: Path) -> None:
    def read(content: bytes) -> list[Any]:
        path.write_bytes(content)
        path.chmod(0o600)
        store = Store(path, "site-1")
        try:
            return seen(store.load())
        finally:
            store.close()

    whole = read(example)
    used = [index for index, byte in enumerate(example) if byte]  # most of a page is empty
    refused = 0
    for seed in range(100):
        rng = Random(seed)
        content = bytearray(example)
        for _ in range(rng.randint(1, 4)):
            content[rng.choice(used)] ^= rng.randint(1, 255)
        if not seed % 10:
            del content[rng.randrange(1, len(content)) :]
        for file in path.parent.iterdir():
            file.unlink()
        try:
            kept = read(bytes(content))
        except JournalError:
            refused += 1
        else:
            assert all(one in whole for one in kept), f"seed {seed}: a row may be missing, none may be changed"
    assert refused > 50


@both
@pytest.mark.anyio
async def test_an_engine_with_a_bad_journal_does_not_start(path: Path, tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=f"journal {tmp_path}: is no regular file"):
        async with StreamEngine("site-1", settings=EngineSettings(journal=tmp_path)):
            pytest.fail("it was entered")
    async with StreamEngine("site-1", settings=EngineSettings(journal=path)):
        with pytest.raises(JournalError, match="is in use by another engine"):
            async with StreamEngine("site-1", settings=EngineSettings(journal=path)):
                pytest.fail("it was entered")
    async with StreamEngine("site-1", settings=EngineSettings(journal=path)):
        pass


@both
@pytest.mark.anyio
@pytest.mark.parametrize("column", ["opening", "body", "sites", "settled", "verdict"])
async def test_a_damaged_row_of_its_own_streams_keeps_an_engine_from_starting(path: Path, column: str) -> None:
    said = bodies.encode(msgspec.structs.replace(OPENING, opener="site-1", targets=["site-2"], epoch=1))
    row = {"opening": check(said), "body": check(b""), "sites": check(b"\x80"), "settled": 1, "verdict": check(b"\xc0")}
    with closing(Store(path, "site-1")) as store:
        store.execute("INSERT INTO outgoing VALUES (1, :opening, :body, :sites, :settled, :verdict)", row)
    async with StreamEngine("site-1", settings=EngineSettings(journal=path)) as engine:
        assert [left.first for left in engine.unfinished_streams()] == [1]
    with closing(Store(path, "site-1")) as store:
        store.execute(f"UPDATE outgoing SET {column} = ?", (-1 if column == "settled" else b"damaged",))
    for _ in range(2):  # the first try changes nothing
        with pytest.raises(JournalError, match=r"is damaged, or no journal: .*Move it away"):
            async with StreamEngine("site-1", settings=EngineSettings(journal=path)):
                pytest.fail("it was entered")


@both
@pytest.mark.anyio
async def test_entering_and_leaving_may_be_cancelled_anywhere(path: Path) -> None:
    """And leaves the file to the next engine each time."""

    async def live() -> None:
        async with StreamEngine("site-1", settings=EngineSettings(journal=path)):
            await anyio.lowlevel.checkpoint()

    n = 0
    while True:
        n += 1
        with anyio.CancelScope() as scope:
            strike = Strike(n, scope)
            await strike.watch(live())
        store = Store(path, "site-1")
        assert store.load() == []
        store.close()
        if strike.struck_at is None:
            break
    assert n > 5
