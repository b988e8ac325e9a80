"""Openers that crash, and resume their durable streams in another life: what is produced, consumed and judged again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import numpy as np
import pytest

from fanstream import (
    Quorum,
    ReturnCode,
    Shareable,
    StreamContextKey,
    StreamEngine,
    StreamOptions,
    make_reply,
)
from fanstream.errors import CodecError, SecurityError, UnknownStreamError
from fanstream.options import Limits
from fanstream.store import Store
from tests.federation import Numbers, on_memory, until
from tests.held_writes import HeldWrites
from tests.outgoing.lives import (
    SETTINGS,
    SITES,
    Seekable,
    crashed_after,
    hanging,
    lives,
)

pytestmark = [pytest.mark.anyio, on_memory]


@pytest.mark.parametrize("window", [1, 4])
async def test_a_stream_goes_on_in_the_next_lives_of_its_opener(transport: str, tmp_path: Path, window: int) -> None:
    async with lives(tmp_path, transport, window=window) as (opener, keepers):
        running = await crashed_after(opener, 3, Seekable(60))
        stream_id = running.stream_id
        firsts = []
        for _ in range(2):
            async with opener.life() as engine:
                (left,) = engine.unfinished_streams()
                assert (left.stream_id, left.channel, left.topic, left.targets) == (
                    stream_id, "models", "weights", tuple(SITES),
                )  # fmt: skip
                firsts.append(left.first)
                running = opener.begin(engine, Seekable(60), stream_id)
                await until(lambda running=running: len(running.producer.judged) > window, 60)  # type: ignore[misc]
                assert running.producer.sought == [left.first]
                assert engine.unfinished_streams() == []
        async with opener.life(crash=False) as engine:
            (left,) = engine.unfinished_streams()
            firsts.append(left.first)
            running = opener.begin(engine, Seekable(60), stream_id)
            result = await running.done()
            assert result.complete, result
            assert (result.stream_id, result.first, result.objects) == (stream_id, left.first, 60 - left.first)
            assert result.outcomes == {"replied": 2 * (60 - left.first)}
            assert running.producer.judged == list(range(left.first, 60))
        assert firsts == sorted(set(firsts)), "each life has settled some"
        for keeper in keepers.values():
            assert keeper.seen == list(range(60)), "nothing was consumed twice"
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


async def test_a_slow_site_misses_nothing_and_what_was_judged_without_it_is_judged_again(
    transport: str, tmp_path: Path
) -> None:
    async with lives(tmp_path, transport, gather=Quorum(1), max_lag=8) as (opener, keepers):
        going = hanging(keepers["site-2"], 2)
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
                opener.crash = held.killed(crash)  # type: ignore[method-assign]
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
