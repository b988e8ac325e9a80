"""What the machines and the simulation have found, each as small as it gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pytest

from fanstream import EngineSettings, Shareable, StreamOptions, StreamResult, make_reply
from fanstream.codec.memory import Memory
from fanstream.deadlines import Deadline
from fanstream.options import Limits
from fanstream.policies import Drop
from fanstream.protocol import bodies
from fanstream.protocol.events import ObjectArrived, Opened
from fanstream.protocol.frames import FrameType, pack
from fanstream.protocol.opener import OpenerLeg
from fanstream.testing import FaultyNetwork, RawPeer
from fanstream.testing.peer import hello
from tests.federation import QUICK, Keeper, Numbers, delayed, federation, on_memory, within_the_process
from tests.protocol.linked import encoded, linked, opening, pump, small_limits, stream


def test_an_object_that_waits_for_its_reservation_does_not_wait_for_smaller_ones_behind_it() -> None:
    tight = small_limits(origin_bytes=64 * 1024, engine_bytes=64 * 1024)
    pair = _, right = linked(tight(), tight())
    sender, receiver = stream(pair, backlog=4)
    for seq, size in enumerate((100_000, 100_000, 10_000, 20_000)):
        sender.send(seq, encoded(a=bytes(size)), 1000)
    for seq in range(4):
        pump(pair)
        arrived = right.take(ObjectArrived)
        assert arrived.seq == seq
        receiver.release(arrived.size)
    assert right.shared.budget.used == 0


@on_memory
@pytest.mark.anyio
async def test_an_abort_with_the_loss_right_behind_it_costs_a_site_no_other_stream(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with federation(transport, 2) as fed:
        Keeper().register(fed.sites["site-2"])
        (near,) = fed.sites["site-1"]._links
        async with fed.sites["site-1"].open_stream("models", "weights", ["site-2"]) as stream:
            await stream.send(Shareable({"n": 0}))
            for leg in list(near.core.legs.values()):
                assert isinstance(leg, OpenerLeg)
                leg.abort("TASK_ABORTED", "site-1", "")
            near.leave("bye")  # the hub hears both in one piece, and so does the other site
        assert "defect" not in caplog.text
        assert (await fed.stream(Numbers(1), ["site-2"])).complete


def test_hundreds_of_streams_that_send_at_once_do_not_cut_each_others_frames() -> None:
    pair = left, right = linked()
    legs = [left.core.open(opening(stream=number.to_bytes(16, "big")), 0, b"") for number in range(400)]
    pump(pair)
    right.events.clear()
    for leg in legs:
        leg.send(0, encoded(a=b"x" * 10_000), 1000)
    pump(pair)
    assert [type(event) for event in right.events] == [ObjectArrived] * 400


@within_the_process
@pytest.mark.anyio
async def test_a_site_that_others_have_streamed_to_is_no_way_to_them(transport: str) -> None:
    async with federation(transport, 2) as fed:
        for engine in fed.engines:
            Keeper().register(engine)
        assert (await fed.stream(Numbers(1), ["site-1"], opener=fed.sites["site-2"])).complete
        assert (await fed.stream(Numbers(1), ["site-1"])).complete
        assert (await fed.stream(Numbers(1), ["site-1", "site-2"])).complete


@within_the_process
@pytest.mark.anyio
async def test_a_producer_that_runs_ahead_goes_on_where_nobody_can_be_reached(transport: str) -> None:
    async with federation(transport, 0) as fed:
        producer = Numbers(5)
        with anyio.fail_after(60):
            await fed.stream(producer, ["ghost"], options=StreamOptions(window=2))
        assert producer.rcs("ghost") == ["COMMUNICATION_ERROR"] * 5


@within_the_process
@pytest.mark.anyio
async def test_nothing_is_produced_after_the_replies_have_ended_the_stream(transport: str) -> None:
    async with federation(transport, 1) as fed:
        Keeper().register(fed.sites["site-1"])
        producer = Numbers(10, judge=lambda n, _replies: "enough" if n == 1 else None)
        await fed.stream(producer, options=StreamOptions(window=2))
        assert producer.log[-1] == "process"


@within_the_process
@pytest.mark.anyio
async def test_the_end_does_not_wait_for_a_site_that_is_dropped_meanwhile(transport: str) -> None:
    async with federation(transport, 1) as fed:

        async def hang(_n: int) -> None:
            await anyio.sleep_forever()

        Keeper(hang).register(fed.sites["site-1"])
        options = StreamOptions(gather="first", window=3, straggler=Drop(1), end_timeout=100)
        began = anyio.current_time()
        async with fed.server.open_stream("models", "weights", ["site-1"], options=options) as stream:
            with anyio.move_on_after(1):
                await stream.send(Shareable({"n": 0}), timeout=5)
        assert anyio.current_time() - began == pytest.approx(5, abs=0.1)


@on_memory
@pytest.mark.anyio
async def test_a_stream_aborted_while_its_site_comes_leaves_nothing_there(transport: str) -> None:
    results: list[StreamResult] = []
    with FaultyNetwork() as network:
        network.refused.add("site-1")
        async with federation(transport, 0) as fed:
            Keeper().register(await fed.join("site-1"))
            fl_ctx = fed.server.new_context()

            async def stream() -> None:
                options = StreamOptions(connect_grace=10)
                results.append(await fed.stream(Numbers(3), fl_ctx=fl_ctx, options=options))

            tell = fed.server._links._sites.tell

            def tell_and_abort() -> None:
                tell()
                fl_ctx.get_run_abort_signal().trigger("enough")

            fed.server._links._sites.tell = tell_and_abort  # type: ignore[method-assign]  # for the very moment
            async with anyio.create_task_group() as tg:
                tg.start_soon(stream)
                await anyio.wait_all_tasks_blocked()
                network.refused.clear()
    assert [result.rc for result in results] == ["TASK_ABORTED"]


@within_the_process
@pytest.mark.anyio
async def test_a_stream_that_nobody_takes_and_that_is_lost_at_once_is_no_defect(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultyNetwork() as network:
        async with federation(transport, 1, settings=QUICK) as fed:
            taken = fed.sites["site-1"]._links._on_opened

            def open_and_lose(event: Opened) -> None:
                taken(event)
                network.links[-1].cut()

            fed.sites["site-1"]._links._on_opened = open_and_lose
            await fed.stream(Numbers(1))
    assert "defect" not in caplog.text


@on_memory
@pytest.mark.anyio
async def test_a_peer_that_says_goodbye_with_its_greeting_is_no_defect(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with federation(transport, 0) as fed, RawPeer.dial(fed.server.addresses[0]) as peer:
        goodbye = pack(FrameType.GOAWAY, body=bodies.encode(bodies.Goodbye("bye")))
        peer.send(hello("site-1").pack() + goodbye)  # in one piece
        await peer.closed()
        assert fed.server.sites() == set()
    assert "defect" not in caplog.text


@pytest.mark.interpreted
@within_the_process
@pytest.mark.anyio
async def test_a_stream_whose_objects_wait_to_be_consumed_is_not_watched_every_millisecond(transport: str) -> None:
    settings = EngineSettings(registration_grace=0, idle_timeout=1)
    async with federation(transport, 1, settings=settings) as fed:
        deadlines = fed.sites["site-1"].deadlines
        at, moments = deadlines.at, list[float]()

        def count(when: float, callback: Callable[[float], object]) -> Deadline:
            moments.append(when)
            return at(when, callback)

        deadlines.at = count  # type: ignore[method-assign]  # so that they are counted

        async def consume(_n: int) -> None:
            await anyio.sleep(20)

        Keeper(consume).register(fed.sites["site-1"])
        await fed.stream(Numbers(2, timeout=100), options=StreamOptions(window=2))
        assert len(moments) < 100


def test_memory_dropped_while_other_memory_is_taken_is_accounted_for() -> None:
    assert np.__version__  # loaded: without it nothing is used again
    held: list[memoryview] = []

    class Interrupted(Memory):
        def _allocate(self, size: int) -> Any:
            block = super()._allocate(size)
            held.clear()  # as another thread may, or the garbage collector
            return block

    memory = Interrupted(1 << 30)
    for size in range(1000, 1100):
        held.append(memory.take(size))
        held.append(memory.take(size + 1000))
        memory.take(size + 2000)
        last = memory.take(1)
        assert memory.lent == 1
        del last


@within_the_process
@pytest.mark.anyio
async def test_replies_that_nobody_will_judge_do_not_hold_up_the_end(transport: str) -> None:
    settings = EngineSettings(registration_grace=0, limits=Limits(origin_bytes=64 * 1024, engine_bytes=64 * 1024))
    async with federation(transport, 1, settings=settings) as fed:

        async def consume(_n: int) -> tuple[bool, Shareable]:
            reply = make_reply("OK")
            reply["data"] = bytes(100_000)
            return True, reply

        async def judge(_replies: object) -> str:
            await anyio.sleep(1)  # meanwhile the site answers the others
            return "enough"

        Keeper(consume).register(fed.sites["site-1"])
        producer = Numbers(5, judge=lambda _n, replies: judge(replies))
        began = anyio.current_time()
        result = await fed.stream(producer, options=StreamOptions(window=3))
        assert anyio.current_time() - began == pytest.approx(1, abs=0.1)
        assert result.sites["site-1"].rc == "OK"


@within_the_process
@pytest.mark.anyio
async def test_a_site_that_consumes_for_longer_than_its_idle_timeout_is_not_idle(transport: str) -> None:
    settings = EngineSettings(registration_grace=0, idle_timeout=1)
    async with federation(transport, 1, settings=settings) as fed:

        async def consume(_n: int) -> None:
            await anyio.sleep(20)

        Keeper(consume).register(fed.sites["site-1"])
        assert (await fed.stream(Numbers(2, timeout=100))).complete


@within_the_process
@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.anyio
async def test_where_both_sites_have_dialled_the_end_of_one_link_leaves_the_other(transport: str, which: int) -> None:
    with FaultyNetwork(delayed(0.05)) as network:
        async with federation(transport, 1) as fed:
            site = fed.sites["site-1"]
            for engine in fed.engines:
                Keeper().register(engine)
            async with anyio.create_task_group() as tg:
                tg.start_soon(fed.stream, Numbers(1))
                tg.start_soon(lambda: fed.stream(Numbers(1), ["server"], opener=site))
            assert len(network.links) == (2 if transport == "local" else 1)
            await fed.settle()
            network.links[which].cut()
            await anyio.wait_all_tasks_blocked()
            for opener, target in ((fed.server, "site-1"), (site, "server")):
                with anyio.fail_after(5):
                    await opener.wait_for_sites([target])
                    assert (await fed.stream(Numbers(1), [target], opener=opener)).complete
                await fed.settle()
            assert len(network.links) == 2
