"""Sites that crash, and come back with their journal: what goes on, what is said again, and what is done twice.

A crash is a copy of the journal's files, with which the next life begins, and a cut link for the life before.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from fanstream import (
    EngineSettings,
    ReturnCode,
    StreamContextKey,
    StreamEngine,
    StreamOptions,
    StreamResult,
    make_reply,
)
from fanstream.errors import JournalError
from fanstream.observe import AUDIT_LOGGER, PolicyDecided
from fanstream.options import Limits
from fanstream.security import Policy
from fanstream.store import Store
from fanstream.testing import FaultyNetwork
from tests.federation import Federation, Keeper, Numbers, delayed, federation, on_memory, until
from tests.held_writes import HeldWrites

pytestmark = [pytest.mark.anyio, on_memory]

SETTINGS = EngineSettings(retry_max=1.0)


class Lives:
    """One site, life after life.

    Attributes:
        keeper: what all of them have consumed, and when they ended.
        keys: the stable key of each object that was consumed, and its number.
    """

    def __init__(self, fed: Federation, network: FaultyNetwork, folder: Path) -> None:
        self._fed = fed
        self._network = network
        self._folder = folder
        self._number = 0
        self.keeper = Keeper()
        self.keys: list[tuple[Any, Any, Any, int]] = []
        self.contexts: list[dict[str, Any]] = []

    @property
    def path(self) -> Path:
        return self._folder / f"journal-{self._number}"

    def register(self, engine: StreamEngine) -> None:
        lives = self

        class Consumers(Keeper):
            async def get_consumer(self, stream_ctx: Any, fl_ctx: Any) -> Any:
                lives.contexts.append(dict(stream_ctx))
                consumer = await lives.keeper.get_consumer(stream_ctx, fl_ctx)
                consume = consumer.consume

                async def noted(shareable: Any, ctx: Any, fl: Any) -> Any:
                    key = StreamContextKey
                    lives.keys.append((ctx[key.OPENER], ctx[key.STREAM_ID], ctx[key.SEQ], shareable["n"]))
                    return await consume(shareable, ctx, fl)

                consumer.consume = noted  # type: ignore[method-assign,assignment]
                return consumer

        engine.register_stream_processing("models", "weights", Consumers(), stream_done_cb=self.keeper.done)

    @asynccontextmanager
    async def life(self, *, journal: bool = True, **others: Any) -> AsyncIterator[StreamEngine]:
        """Live until the block ends, with other settings if there are any: a crash, of which nobody is told."""
        settings = SETTINGS.model_copy(update={"journal": self.path if journal else None, **others})
        over = anyio.Event()
        born: list[StreamEngine] = []

        async def live() -> None:
            async with StreamEngine("site-1", connect=self._fed.server.addresses[0], settings=settings) as engine:
                self.register(engine)
                born.append(engine)
                with anyio.CancelScope(shield=True):
                    await over.wait()

        async with anyio.create_task_group() as tg:
            tg.start_soon(live)
            await self._fed.server.wait_for_sites(["site-1"])
            try:
                yield born[0]
            finally:
                self.crash()
                keeper, self.keeper = self.keeper, Keeper()  # what is done from here on was never done
                keeper.do, self.keeper.do = None, keeper.do
                seen, keys, rcs = keeper.seen[:], self.keys[:], keeper.rcs[:]
                over.set()
        self.keeper.seen, self.keys, self.keeper.rcs = seen, keys, rcs
        self._network.refused.clear()

    def has_seen(self, count: int) -> bool:
        """Whether so many objects have been consumed."""
        return len(self.keeper.seen) >= count

    def crash(self) -> None:
        """Cut the link; what is on the disk at this moment is the next life's."""
        before = self.path
        self._number += 1
        for file in before.parent.glob(before.name + "*"):
            shutil.copy(file, str(file).replace(before.name, self.path.name))
        self._network.refused.add("site-1")
        self._network.link("site-1").cut()


@asynccontextmanager
async def lives(folder: Path, transport: str) -> AsyncIterator[tuple[Federation, Lives]]:
    with FaultyNetwork(delayed(0.005)) as network:
        async with federation(transport, 0, settings=SETTINGS) as fed:
            yield fed, Lives(fed, network, folder)
            network.refused.clear()


class Stream:
    """A stream from the server that runs beside a site's lives."""

    def __init__(self, fed: Federation, producer: Numbers, **options: Any) -> None:
        self.fed = fed
        self.producer = producer
        self.options = StreamOptions(**options)
        self.scope = anyio.CancelScope()  # cancelled for an opener that goes
        self.result: StreamResult | None = None

    async def run(self) -> None:
        with self.scope:
            self.result = await self.fed.stream(self.producer, ["site-1"], options=self.options)

    async def done(self) -> StreamResult:
        await until(lambda: self.result is not None, 200)
        assert self.result is not None
        return self.result


@pytest.mark.parametrize("window", [1, 4])
async def test_a_site_goes_on_where_its_earlier_lives_have_answered(
    transport: str, tmp_path: Path, window: int
) -> None:
    async with lives(tmp_path, transport) as (fed, site), anyio.create_task_group() as tg:
        stream = Stream(fed, Numbers(12, timeout=300), window=window)

        async def pause(_n: int) -> None:
            await anyio.sleep(0.05)

        for crash in range(3):
            site.keeper.do = pause
            async with site.life():
                if not crash:
                    tg.start_soon(stream.run)
                await until(partial(site.has_seen, 3 * (crash + 1)), 60)
        async with site.life():
            result = await stream.done()
            assert result.complete, result
            assert result.sites["site-1"].resumed == 3
            await until(lambda: site.keeper.rcs == ["OK"])
        assert sorted(set(site.keeper.seen)) == list(range(12))
        assert len(site.keeper.seen) <= 12 + 3, "at most one object twice for each crash"
        assert site.keeper.seen == sorted(site.keeper.seen)
        (opener,), (stream_id,) = {key[0] for key in site.keys}, {key[1] for key in site.keys}
        assert (opener, stream_id) == ("server", result.stream_id)
        assert all(seq == n for _, _, seq, n in site.keys)
        assert len(site.contexts) == 4
        assert all(one == site.contexts[0] | {"__end_stream__": one["__end_stream__"]} for one in site.contexts)


async def test_a_reply_that_was_lost_is_said_again_as_it_was(transport: str, tmp_path: Path) -> None:
    """Its data breaks off in the middle; the next life has never computed it, and goes on at the byte."""
    async with lives(tmp_path, transport) as (fed, site), anyio.create_task_group() as tg:
        stream = Stream(fed, Numbers(1, timeout=300))
        site._network.refused.clear()

        async def answer(n: int) -> Any:
            reply = make_reply(ReturnCode.OK)
            reply["w"] = np.arange(1_000_000, dtype=np.float32)
            site._network.link("site-1").up.cut_after(1_500_000)
            site._network.refused.add("site-1")
            return True, reply

        site.keeper.do = answer
        async with site.life():
            tg.start_soon(stream.run)
            await until(lambda: not any(link.alive for link in site._network.links), 60)
        async with site.life():
            result = await stream.done()
        assert result.complete
        assert np.array_equal(stream.producer.replies[0]["site-1"]["w"], np.arange(1_000_000, dtype=np.float32))
        assert site.keeper.seen == [0]


@pytest.mark.parametrize("early", [True, False])
async def test_an_end_that_was_lost_is_said_again(transport: str, tmp_path: Path, early: bool) -> None:
    async with lives(tmp_path, transport) as (fed, site), anyio.create_task_group() as tg:
        stream = Stream(fed, Numbers(1 if not early else 5, timeout=300))
        finished: list[Any] = []

        async def done(_ctx: Any, _fl: Any) -> str:
            finished.append(1)
            site._network.link("site-1").up.stall()
            return "the result"

        async def answer(n: int) -> Any:
            return (not early, make_reply(ReturnCode.OK))

        site.keeper.do = answer
        async with site.life() as engine:
            engine.register_stream_processing("models", "weights", site.keeper, stream_done_cb=done)
            tg.start_soon(stream.run)
            await until(lambda: finished, 60)
            await until(lambda: not engine._incoming)
        async with site.life() as second:
            result = await stream.done()
            await until(lambda: len(second._links._resuming) == 0)
            assert second._journal is not None
            await second._journal.flush()
        assert (result.sites["site-1"].end_result, result.sites["site-1"].rc) == ("the result", "OK")
        assert result.sites["site-1"].outcomes.get("replied") == 1
        assert (finished, site.keeper.seen) == ([1], [0])
        async with site.life() as third:
            assert len(third._links._resuming) == 0, "the opener has said DONE: nothing is left"


async def test_a_stream_without_a_further_object_is_finalized_by_the_next_life(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport) as (fed, site), anyio.create_task_group() as tg:
        producer = Numbers(1, timeout=300)
        judged, go_on = anyio.Event(), anyio.Event()

        async def judge(_n: int, _replies: Any) -> None:
            judged.set()
            await go_on.wait()

        producer.judge = judge
        stream = Stream(fed, producer)
        async with site.life():
            tg.start_soon(stream.run)
            await judged.wait()
        async with site.life():
            # Whatever ends the stream from now on, there is something to finalize.
            await until(lambda: site.keeper.log == ["get_consumer"], 20)
            go_on.set()
            result = await stream.done()
            assert result.complete
            assert site.keeper.log == ["get_consumer", "finalize", "done_cb"]
        assert site.keeper.seen == [0]


async def test_without_a_journal_the_stream_is_lost_at_once(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport) as (fed, site), anyio.create_task_group() as tg:
        stream = Stream(fed, Numbers(3, timeout=300))

        async def block(_n: int) -> None:
            await site.keeper.block()

        site.keeper.do = block
        async with site.life(journal=False):
            tg.start_soon(stream.run)
            await site.keeper.blocked.wait()
        began = anyio.current_time()
        async with site.life(journal=False):
            result = await stream.done()
        assert result.sites["site-1"].outcomes == {"lost": 1, "unreachable": 2}
        assert anyio.current_time() - began < 5


async def test_an_opener_that_does_not_come_back_ends_the_stream_as_ever(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport) as (fed, site), anyio.create_task_group() as tg:
        stream = Stream(fed, Numbers(9, timeout=300), resume_window=20)

        async def block(n: int) -> None:
            if n:
                await site.keeper.block()

        site.keeper.do = block
        async with site.life():
            tg.start_soon(stream.run)
            await site.keeper.blocked.wait()
        stream.scope.cancel()
        await anyio.sleep(200)  # the opener has forgotten it
        async with site.life() as engine:
            began = anyio.current_time()
            assert len(engine._links._resuming) == 1
            await until(lambda: "done_cb" in site.keeper.log, 60)
            assert anyio.current_time() - began == pytest.approx(20, abs=10)  # threads take real time
            assert site.keeper.rcs == ["COMMUNICATION_ERROR"]
            assert engine._journal is not None
            await engine._journal.flush()
        async with site.life() as engine:
            assert len(engine._links._resuming) == 0


@pytest.mark.parametrize("ended", [False, True], ids=["suspended", "ended"])
async def test_a_life_does_not_begin_the_wait_anew_that_another_has_begun(
    transport: str, tmp_path: Path, ended: bool
) -> None:
    """A site that restarts again and again lets go of a stream whose opener has gone, when it would have anyway."""
    async with lives(tmp_path, transport) as (fed, site), anyio.create_task_group() as tg:
        stream = Stream(fed, Numbers(9, timeout=300), resume_window=40)

        async def second(n: int) -> Any:
            if not n:
                return None
            site._network.link("site-1").up.stall()  # what is said from here on is not heard
            if not ended:
                await site.keeper.block()
            return (False, make_reply(ReturnCode.OK))

        site.keeper.do = second
        async with site.life() as engine:
            tg.start_soon(stream.run)
            await until(lambda: len(site.keeper.seen) == 2, 60)
            await until(lambda: not ended or not engine._incoming)
            began = anyio.current_time()
        stream.scope.cancel()
        await anyio.sleep(1)  # the opener's abort finds nobody, and is kept for as long as the window
        fed.server._links._resuming.clear()
        whole = 40 + 60 * ended
        for passed in range(whole // 10 - 1):
            async with site.life() as engine:
                assert len(engine._links._resuming) == 1, f"after {passed} lives of 10 s"
                await anyio.sleep(began + (passed + 1) * 10 - anyio.current_time())
        async with site.life() as engine:
            await until(lambda: len(engine._links._resuming) == 0, 60)
            assert anyio.current_time() - began == pytest.approx(whole, abs=5)
            await until(lambda: ended or site.keeper.rcs == ["COMMUNICATION_ERROR"])
        async with site.life() as engine:
            assert len(engine._links._resuming) == 0


@pytest.mark.parametrize(("lease", "left"), [(1e9, 20), (-1e9, 0)], ids=["set back", "long over"])
async def test_the_wall_clock_can_neither_prolong_the_wait_nor_take_the_time_to_finalize(
    transport: str, tmp_path: Path, lease: float, left: float
) -> None:
    async with lives(tmp_path, transport) as (fed, site), anyio.create_task_group() as tg:
        stream = Stream(fed, Numbers(9, timeout=300), resume_window=20)

        async def block(n: int) -> None:
            if n:
                await site.keeper.block()

        site.keeper.do = block
        async with site.life():
            tg.start_soon(stream.run)
            await site.keeper.blocked.wait()
        await stream.done()  # its window is over
        with closing(Store(site.path, "site-1")) as store:
            assert store.write([(1, lambda store: store.lease(1, lease))]) == {}
        async with site.life() as engine:
            began = anyio.current_time()
            await until(lambda: site.keeper.rcs == ["COMMUNICATION_ERROR"], 60)
            assert anyio.current_time() - began == pytest.approx(left, abs=3)  # threads take real time
            assert len(engine._links._resuming) == 0


async def test_leaving_the_engine_ends_its_streams_for_good(transport: str, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"journal": tmp_path / "journal"})
    async with federation(transport, 0, settings=SETTINGS) as fed, anyio.create_task_group() as tg:
        keeper = Keeper()
        stream = Stream(fed, Numbers(2, timeout=300))

        async def block(_n: int) -> None:
            await keeper.block()

        keeper.do = block
        async with StreamEngine("site-1", connect=fed.server.addresses[0], settings=settings) as engine:
            keeper.register(engine)
            await fed.server.wait_for_sites(["site-1"])
            tg.start_soon(stream.run)
            await keeper.blocked.wait()
        assert (await stream.done()).sites["site-1"].rc == "TASK_ABORTED"
        async with StreamEngine("site-1", connect=fed.server.addresses[0], settings=settings) as engine:
            assert len(engine._links._resuming) == 0


async def test_what_cannot_be_kept_is_not_acknowledged(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with lives(tmp_path, transport) as (fed, site), site.life() as engine:
        error = JournalError(site.path, "cannot be written: database or disk is full", "Make room")
        full = False

        def write(store: Store, steps: Any) -> Any:
            if full and any(number == 1 for number, _ in steps):
                return {1: error, **original(store, [step for step in steps if step[0] != 1])}
            return original(store, steps)

        original = Store.write
        monkeypatch.setattr(Store, "write", write)

        async def fill(n: int) -> None:
            nonlocal full
            full = n == 1

        site.keeper.do = fill
        result = await fed.stream(Numbers(4, timeout=30), ["site-1"])
        ended = result.sites["site-1"]
        assert ended.outcomes == {"replied": 1, "aborted": 1}
        assert ended.rc == "EXECUTION_EXCEPTION"
        assert "the journal failed at site-1, correlation id" in ended.reason
        assert "disk is full" in caplog.text
        assert (await fed.stream(Numbers(2, timeout=30), ["site-1"])).complete, (
            "the link lives, and so do other streams"
        )
        assert engine.sites() == {"server"}


@pytest.mark.parametrize("early", [False, True])
async def test_a_disk_that_is_full_as_the_stream_ends(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    """The end is another then, the opener hears why, and nothing of it stays on the disk."""
    async with lives(tmp_path, transport) as (fed, site):
        mark = Store.mark

        def full(store: Store, number: int, state: Any) -> None:
            if state.ending:
                raise sqlite3.OperationalError("database or disk is full")
            mark(store, number, state)

        async def answer(n: int) -> Any:
            return (not early or n < 1, make_reply(ReturnCode.OK))

        monkeypatch.setattr(Store, "mark", full)
        site.keeper.do = answer
        async with site.life() as engine:
            result = await fed.stream(Numbers(2, timeout=30), ["site-1"])
            ended = result.sites["site-1"]
            assert (ended.rc, ended.end_result) == ("EXECUTION_EXCEPTION", None)
            assert "the journal failed at site-1, correlation id" in ended.reason
            assert ended.outcomes == ({"replied": 1, "aborted": 1} if early else {"replied": 2})
            assert site.keeper.rcs == ["OK"], "it was finalized before"
            await until(lambda: len(engine._links._resuming) == 0, 200)
            assert engine._journal is not None
            await engine._journal.flush()
        async with site.life() as engine:
            assert len(engine._links._resuming) == 0
            assert not engine._incoming


async def test_a_site_may_be_killed_between_any_two_writes(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport) as (fed, site), anyio.create_task_group() as tg:
        crash, passing, done, crashes = site.crash, 0, False, 0
        while not done:
            stream = Stream(fed, Numbers(3, timeout=300))
            site.keeper.seen.clear()
            with pytest.MonkeyPatch.context() as patch:
                held = HeldWrites(patch, passing)
                site.crash = held.killed(crash)  # type: ignore[method-assign]
                async with site.life():
                    tg.start_soon(stream.run)
                    await until(lambda: held.stopped or stream.result is not None, 60)  # noqa: B023 - called at once
                    done = not held.stopped
                    crashes += held.stopped
            async with site.life() as engine:
                result = await stream.done()
                if passing:
                    assert result.complete, f"after {passing} writes: {result}"
                    assert sorted(set(site.keeper.seen)) == [0, 1, 2]
                    assert len(site.keeper.seen) <= 4, "one twice at most"
                else:
                    assert result.sites["site-1"].outcomes == {"lost": 1, "unreachable": 2}
                    assert site.keeper.seen == []
                await until(lambda: len(engine._links._resuming) == 0, 200)
            passing += 1
        assert crashes >= 6, "begun, three answered, ended, forgotten"


async def test_a_stream_is_on_the_disk_before_its_consumer_is_made(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lives(tmp_path, transport) as (fed, site), site.life():
        write = Store.write

        def noted(store: Store, steps: Any) -> Any:
            failed = write(store, steps)
            site.keeper.log += ["written"] * len(steps)
            return failed

        monkeypatch.setattr(Store, "write", noted)
        assert (await fed.stream(Numbers(2), ["site-1"])).complete
        assert site.keeper.log[:6] == ["written", "get_consumer", "consume", "consumed", "written", "consume"]


async def test_the_stable_key_is_there_without_a_journal_and_never_travels(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport) as (fed, site), site.life(journal=False):
        context = {StreamContextKey.SEQ: 7, StreamContextKey.OPENER: "somebody", StreamContextKey.STREAM_ID: "x"}
        result = await fed.server.stream_objects(
            "models", "weights", context, ["site-1"], Numbers(2), fed.server.new_context()
        )
        assert site.keys == [("server", result.stream_id, seq, seq) for seq in range(2)]
        assert context[StreamContextKey.SEQ] == 7


async def test_sealed_streams_and_the_engine_s_own_are_not_written_down(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport) as (fed, site), site.life() as engine:
        assert engine._journal is not None
        result = await fed.stream(Numbers(1), ["site-1"], options=StreamOptions(resume_window=0))
        assert result.complete
        await engine._journal.flush()
        assert engine._journal._next == 1, "a stream that cannot be resumed is not worth a sync"


# --- under another policy ---


def taking(topic: str) -> Policy:
    """Allow the hub one topic, and this site to take all."""
    stream = {"name": topic, "effect": "allow", "from": "role:hub", "to": "*", "channel": "models", "topic": topic}
    takes = {"name": "takes all", "effect": "allow", "site": "*", "channel": "*", "topic": "*"}
    return Policy.model_validate({"streams": [stream], "registrations": [takes]})


def decisions(caplog: pytest.LogCaptureFixture) -> list[PolicyDecided]:
    events = [getattr(record, "audit", None) for record in caplog.records]
    return [event for event in events if isinstance(event, PolicyDecided) and event.action == "take"]


async def test_a_stream_whose_opener_the_next_life_denies_does_not_go_on(
    transport: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, AUDIT_LOGGER)
    async with lives(tmp_path, transport) as (fed, site), anyio.create_task_group() as tg:
        stream = Stream(fed, Numbers(5, timeout=300))

        async def block(n: int) -> None:
            if n == 2:
                await site.keeper.block()

        site.keeper.do = block
        async with site.life(policy=taking("weights")):
            tg.start_soon(stream.run)
            await site.keeper.blocked.wait()
        async with site.life(policy=taking("update")) as engine:
            result = await stream.done()
            await until(lambda: not engine._incoming)
            assert site.keeper.rcs == ["COMMUNICATION_ERROR"], "what the consumer holds is released"
            assert len(engine._links._resuming) == 0
            told = [(event.opener, event.topic, event.allowed) for event in decisions(caplog)]
            assert told == [("server", "weights", True), ("server", "weights", False)]
            assert engine._journal is not None
            await engine._journal.flush()
        end = result.sites["site-1"]
        assert (end.outcomes, end.resumed) == ({"replied": 2, "lost": 1, "unreachable": 2}, 0)
        assert "the policy of site-1 denies it" in end.reason
        assert site.keeper.seen == [0, 1, 2]
        async with site.life() as engine:
            assert len(engine._links._resuming) == 0, "and the life after it knows nothing of the stream"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"sealed_only": True}, "site-1 takes sealed streams only"),
        ({"limits": Limits(backlog=3)}, "a backlog of 8 objects, limit 3"),
    ],
    ids=["sealed only", "backlog"],
)
@pytest.mark.parametrize("ended", [False, True], ids=["suspended", "ended"])
async def test_a_stream_that_the_next_life_would_not_take_does_not_go_on(
    transport: str, tmp_path: Path, settings: dict[str, Any], reason: str, ended: bool
) -> None:
    async with lives(tmp_path, transport) as (fed, site), anyio.create_task_group() as tg:
        stream = Stream(fed, Numbers(5, timeout=300), window=4)

        async def second(n: int) -> Any:
            if n != 1:
                return None
            site._network.link("site-1").up.stall()
            if not ended:
                await site.keeper.block()
            return (False, make_reply(ReturnCode.OK))

        site.keeper.do = second
        async with site.life() as engine:
            tg.start_soon(stream.run)
            await until(lambda: len(site.keeper.seen) == 2, 60)
            await until(lambda: not ended or not engine._incoming)
        async with site.life(**settings) as engine:
            result = await stream.done()
            await until(lambda: not engine._incoming)
            assert len(engine._links._resuming) == 0
            assert ended or (site.keeper.rcs, site.keeper.log[-1]) == (["COMMUNICATION_ERROR"], "done_cb")
            assert engine._journal is not None
            await engine._journal.flush()
        end = result.sites["site-1"]
        assert end.resumed == 0
        assert end.reason.endswith(reason)
        assert site.keeper.seen == [0, 1]
        async with site.life() as engine:
            assert len(engine._links._resuming) == 0, "and the life after it knows nothing of the stream"


async def test_an_end_is_not_said_again_to_an_opener_that_the_next_life_denies(transport: str, tmp_path: Path) -> None:
    async with lives(tmp_path, transport) as (fed, site), anyio.create_task_group() as tg:
        stream = Stream(fed, Numbers(1, timeout=300))
        finished: list[Any] = []

        async def done(_ctx: Any, _fl: Any) -> str:
            finished.append(1)
            site._network.link("site-1").up.stall()
            return "the result"

        async with site.life(policy=taking("weights")) as engine:
            engine.register_stream_processing("models", "weights", site.keeper, stream_done_cb=done)
            tg.start_soon(stream.run)
            await until(lambda: finished, 60)
            await until(lambda: not engine._incoming)
        async with site.life(policy=taking("update")) as engine:
            result = await stream.done()
            assert len(engine._links._resuming) == 0
        assert result.sites["site-1"].end_result is None
        assert "the policy of site-1 denies it" in result.sites["site-1"].reason


async def test_a_stream_whose_opener_the_next_life_allows_goes_on_and_is_judged_once(
    transport: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the role that the opener shows when it comes back: before, nobody is known to be a hub."""
    caplog.set_level(logging.INFO, AUDIT_LOGGER)
    async with lives(tmp_path, transport) as (fed, site), anyio.create_task_group() as tg:
        stream = Stream(fed, Numbers(3, timeout=300))

        async def block(n: int) -> None:
            if n == 1 and len(site.keeper.seen) == 2:
                await site.keeper.block()

        async def cut(n: int) -> None:
            if n == 2:
                site._network.link("site-1").cut()

        site.keeper.do = block
        async with site.life(policy=taking("weights")):
            tg.start_soon(stream.run)
            await site.keeper.blocked.wait()
        site.keeper.do = cut
        async with site.life(policy=taking("weights")):
            result = await stream.done()
        assert result.complete, result
        assert result.sites["site-1"].resumed == 2
        assert [event.allowed for event in decisions(caplog)] == [True, True], "as it began, and in the life after it"
        assert site.keeper.seen == [0, 1, 1, 2]
