"""Openers that crash, and resume their durable streams in another life: what is produced, consumed and judged again.

A crash is a copy of the journal's files, with which the next life begins, and a cut link for the life before.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import numpy as np
import pytest

from fanstream import (
    EngineSettings,
    FLContext,
    Quorum,
    ReturnCode,
    Shareable,
    StreamContext,
    StreamContextKey,
    StreamEngine,
    StreamOptions,
    StreamResult,
    make_reply,
)
from fanstream.errors import CodecError, JournalError, SecurityError, UnknownStreamError
from fanstream.journal import Store
from fanstream.options import Limits
from fanstream.protocol.frames import FrameType
from fanstream.testing import FaultyNetwork, Frame
from tests.federation import Federation, Keeper, Numbers, delayed, federation, on_memory, until
from tests.held_writes import HeldWrites
from tests.simulation.disk import Threads
from tests.striking import Strike

pytestmark = [pytest.mark.anyio, on_memory]

SETTINGS = EngineSettings(retry_max=1.0)
SITES = ["site-1", "site-2"]


class Seekable(Numbers):
    """Numbers that can begin anywhere; ``judged`` has the number of each object whose replies were seen."""

    def __init__(self, number: int, *, timeout: Any = 300.0, judge: Any = None, size: int = 0) -> None:
        super().__init__(number, timeout=timeout, judge=judge)
        self.size = size
        self.sought: list[int] = []
        self.judged: list[int] = []
        self.first = 0

    async def seek(self, seq: int, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        self.sought.append(seq)
        self.made = self.first = seq

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, Any]:
        shareable, timeout = await super().produce(stream_ctx, fl_ctx)
        if shareable is not None and self.size:
            shareable["w"] = np.full(self.size, shareable["n"], dtype=np.uint8)
        return shareable, timeout

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        n = self.first + len(self.judged)
        self.judged.append(n)
        for site, reply in replies.items():
            if reply.get_return_code() == ReturnCode.OK:
                assert reply["n"] == n, f"{site} answers {reply['n']} to object {n}"
        return await super().process_replies(replies, stream_ctx, fl_ctx)


class Running:
    """A durable stream in one life of its opener."""

    def __init__(self, engine: StreamEngine, producer: Seekable, resume: str | None, options: StreamOptions) -> None:
        self._engine = engine
        self._resume = resume
        self._options = options
        self.producer = producer
        self.context: StreamContext = {}
        self.result: StreamResult | None = None
        self.error: Exception | None = None

    @property
    def stream_id(self) -> str:
        found: str = self.context[StreamContextKey.STREAM_ID]
        return found

    async def run(self, targets: list[str]) -> None:
        try:
            self.result = await self._engine.stream_objects(
                "models", "weights", self.context, targets, self.producer, self._engine.new_context("job"),
                options=self._options, resume=self._resume,
            )  # fmt: skip
        except Exception as exc:  # noqa: BLE001 - shown by the test
            self.error = exc

    async def done(self) -> StreamResult:
        await until(lambda: self.result is not None or self.error is not None, 200)
        assert self.error is None, self.error
        assert self.result is not None
        return self.result


class Lives:
    """One opener, life after life."""

    def __init__(self, fed: Federation, network: FaultyNetwork, folder: Path, options: StreamOptions) -> None:
        self.fed = fed
        self.network = network
        self.options = options
        self.settings = SETTINGS
        self._folder = folder
        self._number = 0
        self._tasks: anyio.abc.TaskGroup

    @property
    def path(self) -> Path:
        return self._folder / f"journal-{self._number}"

    @asynccontextmanager
    async def life(self, *, crash: bool = True) -> AsyncIterator[StreamEngine]:
        """Live until the block ends: a crash, of which nobody is told, or an end in good order."""
        settings = self.settings.model_copy(update={"journal": self.path})
        over = anyio.Event()
        born: list[StreamEngine] = []

        async def live() -> None:
            async with (
                StreamEngine("opener", connect=self.fed.server.addresses[0], settings=settings) as engine,
                anyio.create_task_group() as self._tasks,
            ):
                born.append(engine)
                with anyio.CancelScope(shield=True):
                    await over.wait()
                if crash:
                    self._tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tg:
            tg.start_soon(live)
            await self.fed.server.wait_for_sites(["opener"])
            await until(lambda: born and born[0].sites() >= {*SITES, "server"})
            try:
                yield born[0]
            finally:
                if crash:
                    self.crash()
                over.set()
        self.network.refused.clear()

    def crash(self) -> None:
        before = self.path
        self._number += 1
        for file in before.parent.glob(before.name + "*"):
            shutil.copy(file, str(file).replace(before.name, self.path.name))
        self.network.refused.add("opener")
        self.network.link("opener").cut()

    def begin(self, engine: StreamEngine, producer: Seekable, resume: str | None = None, **options: Any) -> Running:
        told = self.options.model_copy(update=options)
        if resume is not None:
            told = told.model_copy(update={"durable": False})  # to resume says it all
        running = Running(engine, producer, resume, told)
        self._tasks.start_soon(running.run, SITES)
        return running


@asynccontextmanager
async def lives(folder: Path, transport: str, **options: Any) -> AsyncIterator[tuple[Lives, dict[str, Keeper]]]:
    with FaultyNetwork(delayed(0.005)) as network:
        async with federation(transport, 2, settings=SETTINGS) as fed:
            keepers = {name: Keeper().register(engine) for name, engine in fed.sites.items()}
            yield Lives(fed, network, folder, StreamOptions(durable=True, **options)), keepers
            network.refused.clear()


async def crashed_after(opener: Lives, judged: int, producer: Seekable | None = None) -> Running:
    """Have a stream's opener die once so many objects were judged."""
    async with opener.life() as engine:
        running = opener.begin(engine, producer or Seekable(20))
        await until(lambda: len(running.producer.judged) >= judged, 60)
    return running


@pytest.mark.parametrize("window", [1, 4])
async def test_a_stream_goes_on_in_the_next_lives_of_its_opener(transport: str, tmp_path: Path, window: int) -> None:
    async with lives(tmp_path, transport, window=window) as (opener, keepers):
        running = await crashed_after(opener, 3)
        stream_id = running.stream_id
        firsts = []
        for _ in range(2):
            async with opener.life() as engine:
                (left,) = engine.unfinished_streams()
                assert (left.stream_id, left.channel, left.topic, left.targets) == (
                    stream_id, "models", "weights", tuple(SITES),
                )  # fmt: skip
                firsts.append(left.first)
                running = opener.begin(engine, Seekable(20), stream_id)
                await until(lambda running=running: len(running.producer.judged) >= 4, 60)  # type: ignore[misc]
                assert running.producer.sought == [left.first]
                assert engine.unfinished_streams() == []
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            firsts.append(left.first)
            running = opener.begin(engine, Seekable(20), stream_id)
            result = await running.done()
            assert result.complete, result
            assert (result.stream_id, result.first, result.objects) == (stream_id, left.first, 20 - left.first)
            assert result.outcomes == {"replied": 2 * (20 - left.first)}
            assert running.producer.judged == list(range(left.first, 20))
        assert firsts == sorted(set(firsts)), "each life has settled some"
        for keeper in keepers.values():
            assert keeper.seen == list(range(20)), "nothing was consumed twice"
            assert keeper.rcs == ["OK"]
        async with opener.life() as engine:
            assert engine.unfinished_streams() == [], "an ended stream leaves the journal"


async def test_a_reply_that_was_not_settled_comes_again_without_its_effect(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport) as (opener, keepers):
        answers = iter(range(100))

        async def answer(n: int) -> Any:
            reply = make_reply(ReturnCode.OK, None)
            reply["n"], reply["answer"] = n, next(answers)
            return True, reply

        for keeper in keepers.values():
            keeper.do = answer
        judging = anyio.Event()

        async def judge(_n: int, _replies: Any) -> None:
            judging.set()
            await anyio.sleep_forever()

        async with opener.life() as engine:
            before = opener.begin(engine, Seekable(1, judge=judge))
            await judging.wait()
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            assert left.first == 0
            after = opener.begin(engine, Seekable(1), left.stream_id)
            assert (await after.done()).complete
        said = [{site: reply["answer"] for site, reply in run.producer.replies[0].items()} for run in (before, after)]
        assert said[0] == said[1]
        assert [keeper.seen for keeper in keepers.values()] == [[0], [0]]


@pytest.mark.parametrize("size", [3_000, 50_000, 3_000_000])
async def test_half_an_object_of_an_earlier_life_is_thrown_away(transport: str, tmp_path: Path, size: int) -> None:
    """Whatever arrived of it, the next life sends all of what it makes anew."""
    async with lives(tmp_path, transport, window=2) as (opener, keepers):

        async def slow(n: int) -> None:
            await anyio.sleep(0.05)

        keepers["site-1"].do = slow
        async with opener.life() as engine:
            running = opener.begin(engine, Seekable(6, size=size))
            await until(lambda: len(running.producer.judged) >= 2, 60)
            opener.network.link("opener").up.cut_after(size * 3 // 2)
            opener.network.refused.add("opener")
            await until(lambda: not opener.network.link("opener").alive or running.result, 60)
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            running = opener.begin(engine, Seekable(6, size=size), left.stream_id)
            assert (await running.done()).complete
        assert [keeper.seen for keeper in keepers.values()] == [list(range(6))] * 2


async def test_a_site_that_was_out_of_reach_stays_so_in_the_next_life(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport) as (opener, keepers):
        async with opener.life() as engine:
            opener.network.refused.add("site-2")
            opener.network.link("site-2").cut()
            await until(lambda: "site-2" not in engine.sites(), 60)
            before = opener.begin(engine, Seekable(6))
            await until(lambda: len(before.producer.judged) >= 2, 60)
        opener.network.refused.discard("site-2")
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            result = await opener.begin(engine, Seekable(6), left.stream_id).done()
            assert result.sites["site-2"].outcomes == {"unreachable": 6 - left.first}
            assert result.sites["site-1"].outcomes == {"replied": 6 - left.first}
        assert [keeper.seen for keeper in keepers.values()] == [list(range(6)), []]


async def test_objects_that_were_judged_without_a_late_reply_are_settled_as_it_comes(
    transport: str, tmp_path: Path
) -> None:
    """Or a site would have more objects than the next life, which knows nothing of its answers, lets it have."""
    async with lives(tmp_path, transport, window=2, max_lag=1) as (opener, keepers):

        async def slow(n: int) -> None:
            await anyio.sleep(1 if n < 3 else 10)

        async def judge(n: int, _replies: Any) -> None:
            if n == 3:
                await anyio.sleep_forever()

        for keeper in keepers.values():
            keeper.do = slow
        async with opener.life() as engine:
            before = opener.begin(engine, Seekable(6, timeout=0.1, judge=judge))
            await until(lambda: before.producer.made == 5, 60)
            await anyio.sleep(1)  # the last of them arrives
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            assert left.first >= 2
            after = opener.begin(engine, Seekable(6), left.stream_id)
            assert (await after.done()).complete
        assert [keeper.seen for keeper in keepers.values()] == [list(range(6))] * 2


async def test_sites_keep_a_durable_stream_for_its_window_and_no_longer(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport, resume_window=60) as (opener, keepers):
        await crashed_after(opener, 2)
        began = anyio.current_time()
        async with opener.life() as engine:  # it is there again, in another life, and resumes nothing
            assert len(engine.unfinished_streams()) == 1
            await anyio.sleep(15)
            assert [keeper.rcs for keeper in keepers.values()] == [[], []]
            await until(lambda: all(keeper.rcs for keeper in keepers.values()), 200)
            assert anyio.current_time() - began == pytest.approx(60, abs=25)  # threads take real time
            assert {*keepers["site-1"].rcs, *keepers["site-2"].rcs} == {"COMMUNICATION_ERROR"}
            await until(lambda: engine.unfinished_streams() == [], 200)
            assert engine._journal is not None
            await engine._journal.flush()
            with pytest.raises(UnknownStreamError, match="the journal of opener has no such unfinished stream"):
                await engine.stream_objects(
                    "models", "weights", {}, SITES, Seekable(3), engine.new_context(), resume="0" * 32
                )
        async with opener.life() as engine:
            assert engine.unfinished_streams() == [], "its lease is over on the disk too"


async def test_an_opener_that_is_back_too_late_loses_its_sites(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport, resume_window=20) as (opener, keepers):
        await crashed_after(opener, 2)
        await anyio.sleep(30)
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            running = opener.begin(engine, Seekable(left.first + 2), left.stream_id)
            result = await running.done()
            assert result.rc == ReturnCode.COMMUNICATION_ERROR
            assert result.outcomes == {"lost": 2, "unreachable": 2}
        assert [keeper.rcs for keeper in keepers.values()] == [["COMMUNICATION_ERROR"]] * 2


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


def bye(stream_ctx: StreamContext, fl_ctx: FLContext) -> str:
    return "bye"


async def leave_at_once(n: int) -> Any:
    reply = make_reply(ReturnCode.OK)
    reply["n"] = n
    return False, reply


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
        going = anyio.Event()

        async def hang(n: int) -> None:
            if n == 2:
                await going.wait()

        keepers["site-2"].do = hang
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


async def test_a_slow_site_misses_nothing_and_what_was_judged_without_it_is_judged_again(
    transport: str, tmp_path: Path
) -> None:
    async with lives(tmp_path, transport, gather=Quorum(1), max_lag=8) as (opener, keepers):
        going = anyio.Event()

        async def hang(n: int) -> None:
            if n == 2:
                await going.wait()

        keepers["site-2"].do = hang
        await crashed_after(opener, 6)
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            assert left.first == 2, "site-2 has not answered object 2"
            going.set()
            running = opener.begin(engine, Seekable(10), left.stream_id)
            result = await running.done()
            assert result.outcomes == {"replied": 16}
            assert running.producer.judged == list(range(2, 10))
        assert [keeper.seen for keeper in keepers.values()] == [list(range(10))] * 2


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


async def test_a_site_that_does_not_have_the_stream_any_more_is_lost_and_the_others_go_on(
    transport: str, tmp_path: Path
) -> None:
    async with lives(tmp_path, transport) as (opener, keepers):
        await crashed_after(opener, 3)
        resuming = opener.fed.sites["site-1"]._links._resuming
        (leg,) = resuming._incoming.values()
        resuming.give_up(leg, "as if it had been restarted without a journal")
        await until(lambda: keepers["site-1"].rcs)
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            running = opener.begin(engine, Seekable(left.first + 4), left.stream_id)
            result = await running.done()
            assert result.sites["site-1"].rc == "COMMUNICATION_ERROR"
            assert result.sites["site-1"].outcomes == {"lost": 1, "unreachable": 3}
            assert result.sites["site-2"].outcomes == {"replied": 4}


async def test_the_first_open_that_nobody_heard_is_said_again(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport) as (opener, keepers):
        async with opener.life() as engine:
            for link in [opener.network.link("site-1"), opener.network.link("site-2")]:
                link.down.stall()
            running = opener.begin(engine, Seekable(3))
            await until(lambda: running.producer.made == 1, 60)
            await anyio.sleep(0.1)
            for link in [opener.network.link("site-1"), opener.network.link("site-2")]:
                link.cut()
        await opener.fed.server.wait_for_sites(SITES)
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            running = opener.begin(engine, Seekable(3), left.stream_id)
            assert (await running.done()).complete
        assert [keeper.seen for keeper in keepers.values()] == [[0, 1, 2]] * 2
        assert keepers["site-1"].stream_ctxs[0][StreamContextKey.STREAM_ID] == left.stream_id


async def test_links_that_break_while_the_stream_is_resumed(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport, window=4) as (opener, keepers):

        async def slow(n: int) -> None:
            await anyio.sleep(0.02)

        keepers["site-1"].do = slow
        await crashed_after(opener, 3)
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            running = opener.begin(engine, Seekable(20), left.stream_id)
            for count in range(2, 12, 3):
                await until(partial(lambda run, many: len(run.producer.judged) >= many, running, count), 60)
                opener.network.link("opener").cut()
                await until(lambda: opener.network.link("opener").alive, 60)
                opener.network.link("site-1").cut()
            assert (await running.done()).complete
        assert [keeper.seen for keeper in keepers.values()] == [list(range(20))] * 2


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


def rows(path: Path) -> list[Any]:
    """What the streams are that an engine has opened, by what is on its disk."""
    copy = path.with_name("copy")
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    with closing(sqlite3.connect(copy)) as connection:
        return connection.execute("SELECT id FROM outgoing").fetchall()


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


async def test_public_props_are_those_of_the_earlier_life(transport: str, tmp_path: Path) -> None:
    """A life that cannot decode them does not go on without; the next one may."""
    async with lives(tmp_path, transport) as (opener, _keepers):
        for name, engine in opener.fed.sites.items():
            engine.settings = engine.settings.model_copy(update={"public_props": {"where": [[[name]]]}})
        await crashed_after(opener, 3)
        seen: list[dict[str, Any]] = []

        def judge(_n: int, replies: dict[str, Shareable]) -> None:
            seen.append({site: reply.get_peer_props() for site, reply in replies.items()})

        opener.settings = SETTINGS.model_copy(update={"limits": Limits(depth=3)})
        async with opener.life() as engine:
            (left,) = engine.unfinished_streams()
            await refusal(engine, CodecError, "value.*deeper than 3", resume=left.stream_id)
            assert engine.unfinished_streams() == [left]
        opener.settings = SETTINGS
        async with opener.life(crash=False) as engine:
            assert engine.unfinished_streams() == [left]
            assert left.first > 0
            running = opener.begin(engine, Seekable(left.first + 1, judge=judge), left.stream_id)
            assert (await running.done()).complete
        assert seen == [{name: {"where": [[[name]]]} for name in SITES}]


async def test_public_props_that_are_too_large_for_the_journal_are_not_kept(transport: str, tmp_path: Path) -> None:
    props = {"where": "here", "weights": np.zeros(1_000_000, np.uint8)}
    async with lives(tmp_path, transport) as (opener, _keepers):
        site = opener.fed.sites["site-1"]
        site.settings = site.settings.model_copy(update={"public_props": props})
        first = await crashed_after(opener, 3)
        known = first.producer.replies[2]["site-1"].get_peer_props()
        assert known is not None
        assert known["where"] == "here"
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            running = opener.begin(engine, Seekable(left.first + 1), left.stream_id)
            assert (await running.done()).complete
            assert running.producer.replies[0]["site-1"].get_peer_props() == {}


async def test_what_is_settled_is_on_the_disk_before_the_window_moves(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a reply acknowledged before: a site's cache has what another life would ask for."""
    async with lives(tmp_path, transport, window=2) as (opener, _keepers):
        async with opener.life(crash=False) as engine:
            log: list[str] = []
            write = Store.write

            def noted(store: Store, steps: Any) -> Any:
                failed = write(store, steps)
                log.extend(["written"] * len(steps))
                return failed

            monkeypatch.setattr(Store, "write", noted)
            producer = Seekable(6)
            original = producer.produce

            async def produce(stream_ctx: Any, fl_ctx: Any) -> Any:
                log.append("produce")
                return await original(stream_ctx, fl_ctx)

            producer.produce = produce  # type: ignore[method-assign]
            assert (await opener.begin(engine, producer).done()).complete
        for index, entry in enumerate(log):
            if entry == "produce":
                assert log[: index + 1].count("produce") <= log[:index].count("written") - 1 + 2, log


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


async def refusal(engine: StreamEngine, kind: type[Exception], match: str, **how: Any) -> None:
    given: dict[str, Any] = {
        "channel": "models", "topic": "weights", "targets": SITES, "producer": Seekable(3),
        "options": StreamOptions(), **how,
    }  # fmt: skip
    with pytest.raises(kind, match=match):
        await engine.stream_objects(stream_ctx={}, fl_ctx=engine.new_context(), **given)


async def test_an_opener_may_be_killed_between_any_two_writes(transport: str, tmp_path: Path) -> None:
    """Whatever stands in the journal then, each object is consumed once, and the stream ends once."""
    async with lives(tmp_path, transport) as (opener, keepers):
        crash, passing, resumed, done = opener.crash, 0, 0, False
        while not done:
            for keeper in keepers.values():
                keeper.seen.clear()
                keeper.rcs.clear()
            with pytest.MonkeyPatch.context() as patch:
                held = HeldWrites(patch, passing)

                def killed(held: HeldWrites = held) -> None:
                    crash()
                    held.release()

                opener.crash = killed  # type: ignore[method-assign]
                async with opener.life() as engine:
                    running = opener.begin(engine, Seekable(3))
                    await until(lambda: held.stopped or running.result is not None, 60)  # noqa: B023 - called at once
                    done = not held.stopped
            async with opener.life(crash=False) as engine:
                for left in engine.unfinished_streams():
                    resumed += 1
                    result = await opener.begin(engine, Seekable(3), left.stream_id).done()
                    assert result.complete, f"after {passing} writes: {result}"
            await until(lambda: not any(len(site._links._resuming) for site in opener.fed.sites.values()), 200)
            began = passing > 0
            for keeper in keepers.values():
                assert keeper.seen == [0, 1, 2] * began, f"after {passing} writes"
                assert keeper.rcs == ["OK"] * began
            passing += 1
        assert resumed >= 5, "begun, three settled, ended"


async def test_what_is_resumed_has_to_be_what_was_begun(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport) as (opener, _keepers):
        stream = (await crashed_after(opener, 2)).stream_id
        async with opener.life(crash=False) as engine:
            wrong: list[tuple[str, dict[str, Any]]] = [
                (r"channel is 'other', but 'models' in the journal for stream " + stream, {"channel": "other"}),
                ("topic is 'other', but 'weights' in the journal", {"topic": "other"}),
                (r"targets is \['site-1'\], but \['site-1', 'site-2'\] in the journal", {"targets": ["site-1"]}),
                ("optional is True, but False", {"optional": True}),
                ("options.backlog is 8, but 2", {"options": StreamOptions(window=4)}),
            ]
            for match, how in wrong:
                await refusal(engine, ValueError, match, resume=stream, **how)
            await refusal(engine, SecurityError, "has no identity to seal with", resume=stream, secure=True)
            await refusal(engine, TypeError, "which has no method seek", resume=stream, producer=Numbers(1))
            await refusal(engine, TypeError, "resume is 7 of type int, expected a stream's id", resume=7)
            await refusal(engine, UnknownStreamError, "stream abc cannot be resumed", resume="abc")
            assert [left.stream_id for left in engine.unfinished_streams()] == [stream], "and it is still there"
            running = opener.begin(engine, Seekable(20), stream)
            await until(lambda: running.producer.judged, 60)
            await refusal(engine, UnknownStreamError, "has been resumed before", resume=stream)
            assert (await running.done()).complete


async def test_what_cannot_be_durable_is_refused_at_once(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport) as (opener, _), opener.life(crash=False) as engine:
        durable = StreamOptions(durable=True)
        assert opener.fed.server.unfinished_streams() == []
        match = "a durable stream needs EngineSettings.journal, which is None"
        await refusal(opener.fed.server, ValueError, match, options=durable)
        await refusal(opener.fed.server, ValueError, match, resume="0" * 32)
        await refusal(engine, TypeError, "generator, which has no method seek", options=durable, producer=numbers())
        with pytest.raises(ValueError, match="who sends one by one"):
            async with engine.open_stream("models", "weights", SITES, options=durable):
                pass


async def numbers() -> AsyncIterator[Shareable]:
    yield Shareable({"n": 0})


def test_a_durable_stream_needs_a_window(anyio_backend: Any, transport: str) -> None:
    with pytest.raises(ValueError, match="durable is True and resume_window 0"):
        StreamOptions(durable=True, resume_window=0)
