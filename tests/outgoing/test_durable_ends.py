"""How durable streams end: by themselves, by an abort, or for want of room; and what the next life makes of it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest

from fanstream import (
    FLContext,
    Quorum,
    ReturnCode,
    StreamContext,
    make_reply,
)
from fanstream.errors import JournalError
from fanstream.options import Limits
from fanstream.protocol.frames import FrameType
from fanstream.store import Store
from fanstream.testing import Frame
from tests.federation import Keeper, on_memory, until
from tests.outgoing.lives import (
    SETTINGS,
    SITES,
    Lives,
    Running,
    Seekable,
    bye,
    crashed_after,
    hanging,
    leave_at_once,
    lives,
    rows,
)
from tests.simulation.disk import Threads
from tests.striking import Strike

pytestmark = [pytest.mark.anyio, on_memory]


async def test_a_site_that_finished_takes_no_more_part_and_its_end_is_kept(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport) as (opener, keepers):

        async def leave(n: int) -> Any:
            reply = make_reply(ReturnCode.OK)
            reply["n"] = n
            return (n < 2, reply)

        keepers["site-1"].do = leave
        for engine in opener.fed.sites.values():
            engine.register_stream_processing("models", "weights", keepers[engine.name], stream_done_cb=bye)
        await crashed_after(opener, 5)
        await until(lambda: not opener.fed.sites["site-1"]._links._resuming, 200)  # it was told DONE
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            running = opener.begin(engine, Seekable(9), left.stream_id)
            result = await running.done()
            assert (result.sites["site-1"].rc, result.sites["site-1"].end_result) == ("OK", "bye")
            assert result.sites["site-1"].outcomes == {"not_sent": 9 - left.first}
            assert result.sites["site-2"].outcomes == {"replied": 9 - left.first}
        assert (keepers["site-1"].seen, keepers["site-2"].seen) == ([0, 1, 2], list(range(9)))


async def test_a_site_that_finished_is_asked_again_for_replies_that_were_not_settled(
    transport: str, tmp_path: Path
) -> None:
    async with lives(tmp_path, transport, window=4) as (opener, keepers):
        gone = anyio.Event()

        async def leave(n: int) -> Any:
            reply = make_reply(ReturnCode.OK)
            reply["n"] = n
            return (n < 2, reply)

        async def judge(n: int, _replies: Any) -> None:
            await (gone.wait() if n == 0 else anyio.sleep_forever())

        keepers["site-1"].do = leave
        async with opener.life() as engine:
            running = opener.begin(engine, Seekable(6, judge=judge))
            await until(lambda: any(one.gathering.sites["site-1"].ended for one in engine._outgoing), 60)
            gone.set()
            await until(lambda: running.producer.judged == [0, 1], 60)
            assert engine._journal is not None
            await engine._journal.flush()
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            assert left.first == 1
            result = await opener.begin(engine, Seekable(6), left.stream_id).done()
        assert result.sites["site-1"].outcomes == {"replied": 2, "not_sent": 3}
        assert result.sites["site-2"].outcomes == {"replied": 5}
        assert (keepers["site-1"].seen, keepers["site-2"].seen) == ([0, 1, 2], list(range(6)))


async def test_an_end_that_cannot_be_decoded_is_the_same_in_the_next_life(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport) as (opener, keepers):
        opener.settings = SETTINGS.model_copy(update={"limits": Limits(depth=4)})
        for engine in opener.fed.sites.values():
            engine.register_stream_processing("models", "weights", keepers[engine.name], stream_done_cb=deep)
        keepers["site-1"].do = leave_at_once
        ends = []
        async with opener.life() as engine:
            running = opener.begin(engine, Seekable(5))
            await until(lambda: len(running.producer.judged) > 2, 60)
            (stream,) = engine._outgoing
            site = stream.gathering.sites["site-1"]
            ends.append((site.rc, site.end_result, site.reason))
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            result = await opener.begin(engine, Seekable(5), left.stream_id).done()
            ends += [(site.rc, site.end_result, site.reason) for site in result.sites.values()]
        assert ends[0][:2] == ("EXECUTION_RESULT_ERROR", None)
        assert "end_result cannot be decoded: value" in ends[0][2]
        assert ends == ends[:1] * 3, "the site that ended in that life, and the one that ended in this"


def deep(stream_ctx: StreamContext, fl_ctx: FLContext) -> list[Any]:
    return [[[[[[]]]]]]


@pytest.mark.parametrize("lost", ["all of the end", "what was judged"])
async def test_an_end_that_was_not_settled_is_heard_again(transport: str, tmp_path: Path, lost: str) -> None:
    """The sites have ended, and wait for it to be known; the next life hears their replies and ends once more."""
    async with lives(tmp_path, transport) as (opener, keepers):
        for engine in opener.fed.sites.values():
            engine.register_stream_processing("models", "weights", keepers[engine.name], stream_done_cb=bye)
        blocked = anyio.Event()

        async def judge(_n: int, _replies: Any) -> None:
            blocked.set()
            await anyio.sleep_forever()

        async def last(n: int) -> Any:
            reply = make_reply(ReturnCode.OK)
            reply["n"] = n
            return (n < 1, reply)

        if lost == "what was judged":
            for keeper in keepers.values():
                keeper.do = last
        async with opener.life() as engine:
            running = opener.begin(engine, Seekable(2))
            if lost == "what was judged":
                await until(lambda: len(running.producer.judged) == 1, 60)
                running.producer.judge = judge
                await blocked.wait()
                await anyio.sleep(1)
            else:
                await until(lambda: all(keeper.rcs for keeper in keepers.values()), 60)
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            running = opener.begin(engine, Seekable(2), left.stream_id)
            result = await running.done()
            assert result.complete, result
            assert {site.end_result for site in result.sites.values()} == {"bye"}
            assert running.producer.judged == list(range(left.first, 2))
        assert [keeper.rcs for keeper in keepers.values()] == [["OK"], ["OK"]]
        assert [keeper.seen for keeper in keepers.values()] == [[0, 1], [0, 1]]


@asynccontextmanager
async def ended_unheard(
    folder: Path, transport: str, producer: Seekable, *, arrive: int = 20, **options: Any
) -> AsyncIterator[tuple[Lives, dict[str, Keeper], str, anyio.Event]]:
    """Have an opener die once it has ended its stream, while all its sites wait for an event before they say so.

    Of the objects, so many *arrive*; the others are lost on their way.
    """
    async with lives(folder, transport, **options) as (opener, keepers):
        ending, going = [], anyio.Event()

        def arriving(frame: Frame) -> list[Frame]:
            return [] if frame.kind == FrameType.OBJECT and frame.seq >= arrive else [frame]

        async def wait(stream_ctx: StreamContext, fl_ctx: FLContext) -> str:
            ending.append(fl_ctx.get_identity_name())
            await going.wait()
            return "bye"

        for engine in opener.fed.sites.values():
            engine.register_stream_processing("models", "weights", keepers[engine.name], stream_done_cb=wait)
        async with opener.life() as engine:
            for name in SITES:
                opener.network.link(name).down.rewrite = arriving
            running = opener.begin(engine, producer)
            await until(lambda: len(ending) == len(SITES), 60)
        for name in SITES:
            opener.network.link(name).down.rewrite = None
        yield opener, keepers, running.stream_id, going


@pytest.mark.parametrize("window", [1, 4])
async def test_an_opener_that_dies_as_it_ends_a_stream_comes_back_to_its_end(
    transport: str, tmp_path: Path, window: int
) -> None:
    async with ended_unheard(tmp_path, transport, Seekable(3), window=window) as (opener, keepers, stream, going):
        going.set()
        async with opener.life(crash=False) as engine:
            running = opener.begin(engine, Seekable(9), stream)
            result = await running.done()
            assert (result.rc, result.complete, result.value) == ("OK", True, None)
            assert (result.first, result.objects) == (3, 0)
            assert {site.end_result for site in result.sites.values()} == {"bye"}
            assert (running.producer.sought, running.producer.log) == ([3], []), "nothing is produced any more"
        async with opener.life() as engine:
            assert engine.unfinished_streams() == []
        assert [keeper.seen for keeper in keepers.values()] == [[0, 1, 2]] * 2


@pytest.mark.parametrize(
    ("value", "rc", "arrive"), [({"accuracy": 0.9}, "OK", 20), (False, "ERROR", 3)], ids=["truthy", "falsy"]
)
async def test_the_value_that_ended_a_stream_outlives_its_opener(
    transport: str, tmp_path: Path, value: Any, rc: str, arrive: int
) -> None:
    """Of objects that are taken back before they arrive, the sites know from END alone."""
    first = Seekable(20, judge=lambda n, _replies: value if n == 2 else None)
    async with (
        ended_unheard(tmp_path, transport, first, arrive=arrive, window=4) as (opener, keepers, stream, going),
        opener.life(crash=False) as engine,
    ):
        running = opener.begin(engine, Seekable(20), stream)
        await anyio.sleep(1)  # in which the sites hear of the end once more
        going.set()
        result = await running.done()
        assert (result.rc, result.value, result.objects) == (rc, value, 0)
        assert {(site.rc, site.end_result) for site in result.sites.values()} == {("OK", "bye")}
        assert (running.producer.sought, running.producer.log) == ([], []), "nothing is asked of the producer"
        await until(lambda: not any(len(site._links._resuming) for site in opener.fed.sites.values()), 200)
        for keeper in keepers.values():
            assert keeper.rcs == ["OK"]
            assert keeper.seen == list(range(len(keeper.seen)))


async def test_a_value_that_cannot_be_kept_is_asked_for_again(transport: str, tmp_path: Path) -> None:
    value = object()
    first = Seekable(20, judge=lambda n, _replies: value if n == 2 else None)
    async with (
        ended_unheard(tmp_path, transport, first) as (opener, _keepers, stream, going),
        opener.life(crash=False) as engine,
    ):
        going.set()
        running = opener.begin(engine, Seekable(20, judge=lambda _n, _replies: value), stream)
        result = await running.done()
        assert result.value is value
        assert running.producer.sought == [2]
        assert running.producer.judged == [2]


@pytest.mark.parametrize("many", [3, 5, 9], ids=["too few", "the same", "more"])
async def test_what_an_end_leaves_open_is_produced_again_and_no_more_than_that(
    transport: str, tmp_path: Path, many: int
) -> None:
    async with lives(tmp_path, transport, gather=Quorum(1), max_lag=8) as (opener, keepers):
        going = hanging(keepers["site-2"], 2)
        async with opener.life() as engine:
            opener.begin(engine, Seekable(5))
            await until(lambda: keepers["site-1"].rcs, 60)
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            assert left.first == 2
            going.set()
            running = opener.begin(engine, Seekable(many), left.stream_id)
            if many < 5:
                await until(lambda: running.error is not None, 60)
                assert isinstance(running.error, ValueError)
                assert "produce has made 3 objects, and 5 in an earlier life" in str(running.error)
                return
            result = await running.done()
            assert result.outcomes == {"replied": 6}
            assert running.producer.judged == [2, 3, 4]
            assert running.producer.log.count("produce") == 3
        assert [keeper.seen for keeper in keepers.values()] == [list(range(5))] * 2


async def test_the_code_of_an_end_that_settles_objects_outlives_the_opener(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport, gather=Quorum(1), max_lag=8) as (opener, keepers):

        async def block(n: int) -> None:
            if n == 1:
                await keepers["site-2"].block()

        keepers["site-2"].do = block
        async with opener.life() as engine:
            running = opener.begin(engine, Seekable(40))
            await until(lambda: len(running.producer.judged) == 9, 60)  # as many as its backlog lets be
            await opener.fed.sites["site-2"].shutdown_streamer()
            await until(lambda: len(running.producer.judged) > 12, 60)
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            result = await opener.begin(engine, Seekable(40), left.stream_id).done()
        assert (result.sites["site-2"].rc, keepers["site-2"].rcs) == ("TASK_ABORTED", ["TASK_ABORTED"])
        assert result.sites["site-1"].outcomes == {"replied": 40 - left.first}


async def test_an_abort_ends_it_for_good(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport) as (opener, keepers):
        await crashed_after(opener, 3)
        async with opener.life() as engine:
            (left,) = engine.unfinished_streams()
            running = opener.begin(engine, Seekable(100), left.stream_id)
            await until(lambda: len(running.producer.judged) > 2, 60)
            engine.run_abort_signal.trigger("enough")
            assert (await running.done()).rc == "TASK_ABORTED"
            await until(lambda: all(keeper.rcs for keeper in keepers.values()), 60)
            assert engine._journal is not None
            await engine._journal.flush()
        assert [keeper.rcs for keeper in keepers.values()] == [["TASK_ABORTED"]] * 2
        async with opener.life() as engine:
            assert engine.unfinished_streams() == []


class Disk(Threads):
    """Worker threads on virtual time, of which each call takes *seconds*."""

    def __init__(self, seconds: float) -> None:
        super().__init__(0)
        self.seconds = seconds

    def _while(self) -> float:
        return self.seconds / 2


@asynccontextmanager
async def told_of_ends(
    folder: Path, transport: str, disk: Disk
) -> AsyncIterator[tuple[Lives, dict[str, Keeper], anyio.Event]]:
    """Lives of an opener with such a disk, and an event: a site has been told that the stream is over."""
    with disk.instead():
        async with lives(folder, transport) as (opener, keepers):
            told = anyio.Event()
            for engine in opener.fed.sites.values():
                keeper = keepers[engine.name]
                engine.register_stream_processing(
                    "models", "weights", keeper, stream_done_cb=lambda _stream, _context: told.set()
                )
            yield opener, keepers, told


@pytest.mark.parametrize("how", ["signal", "exception"])
async def test_an_abort_is_on_the_disk_before_its_sites_hear_of_it(transport: str, tmp_path: Path, how: str) -> None:
    """So what sites were told to be aborted is never resumed."""

    def judge(n: int, _replies: Any) -> None:
        if n == 3 and how == "exception":
            raise RuntimeError("enough")

    async with told_of_ends(tmp_path, transport, Disk(0.02)) as (opener, keepers, told):
        async with opener.life() as engine:
            running = opener.begin(engine, Seekable(100, judge=judge))
            await until(lambda: len(running.producer.judged) > 3, 60)
            if how == "signal":
                engine.run_abort_signal.trigger("enough")
            await told.wait()
        assert {*keepers["site-1"].rcs, *keepers["site-2"].rcs} == {"TASK_ABORTED"}
        async with opener.life() as engine:
            assert engine.unfinished_streams() == []


async def test_an_opener_that_dies_between_the_disk_and_an_abort_leaves_its_sites_to_their_windows(
    transport: str, tmp_path: Path
) -> None:
    async with told_of_ends(tmp_path, transport, Disk(0.02)) as (opener, keepers, _told):
        async with opener.life() as engine:
            running = opener.begin(engine, Seekable(100))
            await until(lambda: len(running.producer.judged) > 2, 60)
            engine.run_abort_signal.trigger("enough")
            await until(lambda: not rows(opener.path), 60)
            assert [keeper.rcs for keeper in keepers.values()] == [[], []]
        async with opener.life() as engine:
            assert engine.unfinished_streams() == []
            await until(lambda: all(keeper.rcs for keeper in keepers.values()), 200)
        assert [keeper.rcs for keeper in keepers.values()] == [["COMMUNICATION_ERROR"]] * 2


async def test_an_abort_waits_for_a_slow_disk_for_a_moment_only(transport: str, tmp_path: Path) -> None:
    disk = Disk(0.02)
    async with told_of_ends(tmp_path, transport, disk) as (opener, keepers, told):
        async with opener.life() as engine:
            running = opener.begin(engine, Seekable(100))
            await until(lambda: len(running.producer.judged) > 2, 60)
            await anyio.sleep(0.1)
            disk.seconds = 30
            began = anyio.current_time()
            engine.run_abort_signal.trigger("enough")
            await told.wait()
            assert anyio.current_time() - began == pytest.approx(0.1 + 2 * 0.005, abs=0.001)
        disk.seconds = 0.02
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            result = await opener.begin(engine, Seekable(left.first + 1), left.stream_id).done()
            assert result.outcomes == {"lost": 2}
        assert [keeper.rcs for keeper in keepers.values()] == [["TASK_ABORTED"]] * 2


async def test_so_is_an_abort_while_the_stream_is_taken_up_again(transport: str, tmp_path: Path) -> None:
    async with told_of_ends(tmp_path, transport, Disk(0.02)) as (opener, keepers, told):
        await crashed_after(opener, 3)
        async with opener.life() as engine:
            (left,) = engine.unfinished_streams()
            running = opener.begin(engine, Seekable(100), left.stream_id)
            await anyio.sleep(0.001)
            engine.run_abort_signal.trigger("enough")
            await told.wait()
            assert running.producer.sought == []
        assert [keeper.rcs for keeper in keepers.values()] == [["TASK_ABORTED"]] * 2
        async with opener.life() as engine:
            assert engine.unfinished_streams() == []


async def test_what_cannot_be_written_ends_the_stream_with_its_error(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lives(tmp_path, transport) as (opener, keepers), opener.life(crash=False) as engine:
        error = JournalError(opener.path, "cannot be written: database or disk is full", "Make room")
        running = opener.begin(engine, Seekable(50))
        await until(lambda: len(running.producer.judged) > 2, 60)
        write = Store.write
        monkeypatch.setattr(Store, "write", lambda store, steps: {number: error for number, _ in steps})
        await until(lambda: running.error is not None, 60)
        assert running.error is error
        monkeypatch.setattr(Store, "write", write)
        await until(lambda: all(keeper.rcs for keeper in keepers.values()), 60)
        assert [keeper.rcs for keeper in keepers.values()] == [["TASK_ABORTED"]] * 2
        assert (await opener.begin(engine, Seekable(2)).done()).complete, "other streams go on"
        await until(lambda: not rows(opener.path), 60)


async def test_a_site_that_had_ended_when_the_disk_was_full_is_let_go_and_so_is_its_way(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lives(tmp_path, transport) as (opener, keepers), opener.life(crash=False) as engine:

        async def leave_as_the_disk_fills(n: int) -> Any:
            if n < 2:
                return None
            error = JournalError(opener.path, "cannot be written: database or disk is full", "Make room")
            monkeypatch.setattr(Store, "write", lambda store, steps: {number: error for number, _ in steps})
            return await leave_at_once(n)

        keepers["site-1"].do = leave_as_the_disk_fills
        running = opener.begin(engine, Seekable(50))
        await until(lambda: running.error is not None, 60)
        assert keepers["site-1"].rcs == ["OK"]
        await until(lambda: not any(link.core.legs for link in opener.fed.server._links), 5)
        await until(lambda: not opener.fed.sites["site-1"]._links._resuming, 5)


async def test_sites_hear_that_their_ends_are_known_once_the_journal_has_forgotten_the_stream(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lives(tmp_path, transport) as (opener, keepers), opener.life(crash=False) as engine:
        running = opener.begin(engine, Seekable(2))
        write = Store.write
        remembered: list[int] = []

        def slow(store: Store, steps: Any) -> Any:
            time.sleep(0.1)  # real time, in which virtual time flies
            if all(keeper.rcs for keeper in keepers.values()):
                remembered.append(sum(len(site._links._resuming) for site in opener.fed.sites.values()))
            return write(store, steps)

        monkeypatch.setattr(Store, "write", slow)
        assert (await running.done()).complete
        assert remembered == [2]
        await until(lambda: not any(len(site._links._resuming) for site in opener.fed.sites.values()), 200)


@pytest.mark.parametrize("resumed", [False, True], ids=["begun", "resumed"])
async def test_a_cancellation_anywhere_ends_it_everywhere(transport: str, tmp_path: Path, resumed: bool) -> None:
    """At each suspension in turn; nothing of it stays with the opener, on its disk, or at a site."""
    async with lives(tmp_path, transport, window=2, resume_window=900) as (opener, keepers):
        if resumed:
            async with opener.life() as engine:
                before = [opener.begin(engine, Seekable(3)) for _ in range(24)]

                async def wait(_n: int, _replies: Any) -> None:
                    await anyio.sleep_forever()

                for running in before:
                    running.producer.judge = wait
                await until(lambda: all(running.producer.judged for running in before), 60)
        async with opener.life(crash=False) as engine:
            left = [stream.stream_id for stream in engine.unfinished_streams()]
            assert len(left) == (24 if resumed else 0)
            struck, n = True, 0
            while struck and n < 24:
                n += 1
                running = Running(engine, Seekable(3), left.pop() if resumed else None, opener.options)
                with anyio.CancelScope() as scope:
                    strike = Strike(n, scope)
                    await strike.watch(running.run(SITES))
                struck = strike.struck_at is not None
                assert running.error is None, running.error
                assert struck or (running.result is not None and running.result.complete)
            assert not struck
            assert n > 4
            assert [stream.stream_id for stream in engine.unfinished_streams()] == left
            others = [opener.begin(engine, Seekable(3), stream) for stream in left]
            for other in others:
                assert (await other.done()).complete
            await until(lambda: len(engine._links._resuming) == 0, 200)
            assert not engine._outgoing
        with closing(sqlite3.connect(opener.path)) as connection:
            assert connection.execute("SELECT count(*) FROM outgoing").fetchone() == (0,)
        assert set(keepers["site-1"].rcs) | set(keepers["site-2"].rcs) <= {"OK", "TASK_ABORTED"}
