"""Sites that are slow, and sites that have stopped: who gets time, who does not, and how long the others wait."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from fanstream import Drop, FLContext, ObjectProducer, Quorum, Shareable, StreamContext, StreamOptions, make_reply
from fanstream.options import KIB, MIB
from fanstream.protocol.frames import PAYLOAD, FrameType
from fanstream.testing import FaultyNetwork, Frame, LinkControl
from tests.federation import Keeper, Watching, federation, hubs, long_or_short, on_memory, within_the_process

pytestmark = pytest.mark.anyio

HOUR = 3600.0
LONG = 10 * HOUR
PATIENT = StreamOptions(progress_timeout=4)


class Models(ObjectProducer):
    """Produces objects of the given sizes; keeps each one's replies, and how long they took."""

    def __init__(self, *sizes: int, timeout: float = HOUR) -> None:
        self._sizes = list(sizes)
        self._timeout = timeout
        self._sent_at = 0.0
        self.replies: list[dict[str, Shareable]] = []
        self.seconds: list[float] = []

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, float]:
        if not self._sizes:
            return None, 0
        self._sent_at = anyio.current_time()
        return Shareable({"n": len(self.replies), "model": bytes(self._sizes.pop(0))}), self._timeout

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        self.replies.append(dict(replies))
        self.seconds.append(anyio.current_time() - self._sent_at)

    def rcs(self, site: str) -> list[str]:
        return [str(replies[site].get_return_code()) for replies in self.replies if site in replies]

    def reason(self, site: str, number: int = -1) -> Any:
        return self.replies[number][site].get_header("reason")


def rates(**of: float) -> Callable[[LinkControl], None]:
    """Say what a ``FaultyNetwork`` is to do with the link of each site: let it carry so many bytes per second."""

    def limit(link: LinkControl) -> None:
        link.up.rate = link.down.rate = of.get(link.dialler.replace("-", "_"), 1e9)

    return limit


def sleeping(seconds: float) -> Callable[[int], Awaitable[None]]:
    async def sleep(_n: int) -> None:
        await anyio.sleep(seconds)

    return sleep


# --- a site that moves has time ---


@on_memory
async def test_a_slow_site_has_all_the_time_it_needs_for_as_long_as_it_moves(transport: str) -> None:
    with FaultyNetwork(rates(site_1=80 * KIB)):
        async with federation(transport, 2, seconds=LONG) as fed:
            for site in fed.sites.values():
                Keeper().register(site)
            models = Models(4 * MIB, 4 * MIB)
            result = await fed.stream(models, options=PATIENT)
    assert result.complete
    assert min(models.seconds) > 50


@on_memory
async def test_a_reply_on_its_way_is_progress_too(transport: str) -> None:
    async def answer(_n: int) -> Any:
        reply = make_reply("OK")
        reply["update"] = bytes(10 * MIB)
        return True, reply

    with FaultyNetwork(rates(site_1=200 * KIB)):
        async with federation(transport, 1, seconds=LONG) as fed:
            Keeper(answer).register(fed.sites["site-1"])
            models = Models(100)
            assert (await fed.stream(models, options=PATIENT)).complete
    assert models.seconds[0] > 50


@on_memory
@pytest.mark.parametrize(
    ("rate", "sizes", "progress_timeout", "least"),
    [(100 * KIB, (12 * MIB, 1000, 12 * MIB), 8, 120), (10 * KIB, (4 * MIB,), 30, 400)],
    ids=["slow", "slower"],
)
async def test_through_a_hub_progress_is_that_of_the_site_beyond(
    transport: str, rate: int, sizes: tuple[int, ...], progress_timeout: float, least: float
) -> None:
    """A hub gives credit in pieces that may take longer; only what is under way at the end has to fit the timeout."""
    with FaultyNetwork(rates(site_2=rate)):
        async with federation(transport, 2, seconds=LONG) as fed:
            Keeper().register(fed.sites["site-2"])
            models = Models(*sizes)
            options = StreamOptions(progress_timeout=progress_timeout)
            result = await fed.stream(models, ["site-2"], opener=fed.sites["site-1"], options=options)
            assert result.complete, models.reason("site-2")
    assert models.seconds[0] > least


@on_memory
async def test_what_has_come_of_one_long_frame_is_progress(transport: str) -> None:
    """The first chunk takes 25 s, and a reply that is one frame 20 s: more than the progress timeout."""

    async def answer(_n: int) -> Any:
        reply = make_reply("OK")
        reply["update"] = "x" * 200 * KIB
        return True, reply

    with FaultyNetwork(rates(site_1=10 * KIB)):
        async with federation(transport, 1, seconds=LONG) as fed:
            Keeper(answer).register(fed.sites["site-1"])
            models = Models(MIB)
            assert (await fed.stream(models, options=PATIENT)).complete, models.reason("site-1")
    assert models.seconds[0] > 120


@on_memory
async def test_the_objects_own_timeout_stays_the_longest(transport: str) -> None:
    with FaultyNetwork(rates(site_1=20 * KIB)):
        async with federation(transport, 1, seconds=LONG) as fed:
            Keeper().register(fed.sites["site-1"])
            models = Models(4 * MIB, timeout=30)
            await fed.stream(models, options=StreamOptions(progress_timeout=4, end_timeout=1000))
    assert models.seconds == [pytest.approx(30)]
    assert models.reason("site-1") == "no reply within the timeout of 30 s"


# --- a site that has stopped is found ---


@on_memory
async def test_a_transfer_that_stops_is_found_soon(transport: str) -> None:
    with FaultyNetwork(rates(site_1=256 * KIB)) as network:
        async with federation(transport, 1, seconds=LONG) as fed, anyio.create_task_group() as tg:
            Keeper().register(fed.sites["site-1"])

            async def stall() -> None:
                await anyio.sleep(20)
                network.link("site-1").down.stall()
                await anyio.sleep(10)
                network.link("site-1").down.resume()

            tg.start_soon(stall)
            models = Models(10 * MIB)
            result = await fed.stream(models, options=StreamOptions(progress_timeout=4, end_timeout=100))
    assert 20 + 4 <= models.seconds[0] <= 20 + 5 + 1
    assert models.reason("site-1").startswith("no progress for 4")
    assert (result.rc, result.sites["site-1"].late) == ("TIMEOUT", 1)


@within_the_process
async def test_a_consumer_that_hangs_is_found_soon_and_delays_no_other(transport: str) -> None:
    async with federation(transport, 2, seconds=LONG) as fed:
        hanging = Keeper()

        async def hang(_n: int) -> None:
            await hanging.block()

        hanging.do = hang
        hanging.register(fed.sites["site-1"])
        Keeper().register(fed.sites["site-2"])
        models = Models(MIB, MIB, MIB)
        result = await fed.stream(
            models, options=StreamOptions(progress_timeout=60, straggler=Drop(2), stall_timeout=HOUR)
        )
    assert models.rcs("site-1") == ["TIMEOUT", "TIMEOUT"]
    assert models.rcs("site-2") == ["OK"] * 3
    assert all(60 <= seconds <= 75 for seconds in models.seconds[:2])
    assert "progress timeout is 60 s" in models.reason("site-1", 0)
    assert result.sites["site-1"].outcomes == {"timed_out": 2, "not_sent": 1}


@within_the_process
async def test_a_site_has_the_time_that_its_pace_makes_of_a_size(transport: str) -> None:
    """What takes 100 s each MiB, at a site and not on the way to it, has 400 s and the timeout for four of them."""
    async with federation(transport, 1, seconds=LONG) as fed:
        hanging = Keeper()

        async def consume(n: int) -> None:
            await anyio.sleep([100, 400, HOUR][n])

        hanging.do = consume
        hanging.register(fed.sites["site-1"])
        models = Models(MIB, 4 * MIB, 4 * MIB, timeout=1000)
        options = StreamOptions(progress_timeout=101, end_timeout=2 * HOUR)
        await fed.stream(models, options=options)
    assert models.rcs("site-1") == ["OK", "OK", "TIMEOUT"]
    assert models.seconds == [pytest.approx(100, abs=1), pytest.approx(400, abs=1), pytest.approx(501, abs=1)]
    assert "for what takes 400 s at this site's pace" in models.reason("site-1")


@on_memory
async def test_the_wire_tells_each_site_its_own_time(transport: str) -> None:
    told: dict[str, list[int]] = {"site-1": [], "site-2": []}

    def watch(link: LinkControl) -> None:
        def rewrite(frame: Frame) -> list[Frame]:
            if frame.kind == FrameType.OBJECT:
                told[link.dialler].append(PAYLOAD.unpack_from(frame.body)[0])
            return [frame]

        link.down.rewrite = rewrite

    with FaultyNetwork(watch):
        async with federation(transport, 2, seconds=LONG) as fed:
            Keeper(sleeping(10)).register(fed.sites["site-1"])
            Keeper(sleeping(1)).register(fed.sites["site-2"])
            await fed.stream(Models(MIB, MIB, timeout=60), options=StreamOptions(progress_timeout=20))
    assert told["site-1"] == [60_000, pytest.approx(30_000, rel=0.01)]
    assert told["site-2"] == [60_000, pytest.approx(21_000, rel=0.01)]


@on_memory
async def test_one_entry_of_the_heap_is_enough(transport: str) -> None:
    seen: list[int] = []
    async with federation(transport, 3, seconds=LONG) as fed:
        for site in fed.sites.values():
            Keeper(sleeping(0.1)).register(site)
        before = len(fed.server.deadlines)

        def judge(seq: int, replies: dict[str, Shareable]) -> None:
            seen.append(len(fed.server.deadlines) - before)

        options = StreamOptions(progress_timeout=4, gather=Quorum(2, patience=3), window=8)
        await fed.stream(Watching(50, judge=judge), options=options)
    assert max(seen) == 1


# --- patience ---


@within_the_process
async def test_a_quorum_with_patience_waits_for_those_who_are_nearly_there(transport: str) -> None:
    """Three of five are enough; the fourth is a little later, the fifth is a straggler."""
    async with federation(transport, 5, seconds=LONG) as fed:
        for site, seconds in zip(fed.sites.values(), (10, 11, 12, 13, 100), strict=True):
            Keeper(sleeping(seconds)).register(site)
        models = Models(100, 100, 100)
        options = StreamOptions(gather=Quorum(3, patience=3.0), max_lag=8, end_timeout=HOUR)
        result = await fed.stream(models, options=options)
    assert result.complete
    assert [set(replies) for replies in models.replies] == [{"site-1", "site-2", "site-3", "site-4"}] * 3
    assert models.seconds[0] == pytest.approx(11 + 3 * 1, abs=0.1)
    assert all(13 < seconds < 20 for seconds in models.seconds)


@within_the_process
@pytest.mark.parametrize("patience", [None, 3.0])
async def test_replies_after_the_gather_are_shown_up_to_the_end(transport: str, patience: float | None) -> None:
    async with federation(transport, 2, seconds=LONG) as fed:
        Keeper(sleeping(1)).register(fed.sites["site-1"])
        Keeper(sleeping(4)).register(fed.sites["site-2"])
        producer = Watching(3, timeout=8)
        result = await fed.stream(
            producer, options=StreamOptions(gather=Quorum(1, patience), max_lag=8, end_timeout=60)
        )
    shown = producer.early + producer.late
    assert sorted(shown) == [(site, seq) for site in ("site-1", "site-2") for seq in range(3)]
    assert producer.late == [("site-2", 2)], "12 s after the first was sent, when 2 s had passed"
    assert result.sites["site-2"].outcomes == {"replied": 2, "timed_out": 1}
    assert producer.rcs("site-1") == ["OK"] * 3


@within_the_process
async def test_who_has_judged_enough_is_shown_no_more(transport: str) -> None:
    async with federation(transport, 2, seconds=LONG) as fed:
        Keeper(sleeping(1)).register(fed.sites["site-1"])
        Keeper(sleeping(4)).register(fed.sites["site-2"])
        producer = Watching(3, judge=lambda seq, replies: "enough")
        result = await fed.stream(producer, options=StreamOptions(gather="first"))
    assert (result.rc, producer.early, producer.late) == ("OK", [("site-1", 0)], [])


@hubs
async def test_what_a_producer_raises_about_a_reply_after_the_end_reaches_the_caller(transport: str) -> None:
    class ShownError(Exception):
        pass

    class Raising(Watching):
        async def process_reply(self, site: str, *args: Any, **kwargs: Any) -> None:
            if site == "site-2":
                raise ShownError

    async with federation(transport, 2, seconds=LONG) as fed:
        Keeper().register(fed.sites["site-1"])
        Keeper(sleeping(long_or_short(transport, 3, 0.05))).register(fed.sites["site-2"])
        with pytest.raises(ShownError):
            await fed.stream(Raising(1), options=StreamOptions(gather="first"))
