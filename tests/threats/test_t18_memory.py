"""T18: what one site, and all of them, make an engine hold has a bound."""

from __future__ import annotations

import numpy as np
import pytest

from fanstream import EngineSettings, Limits, StreamEngine
from fanstream.protocol import bodies
from fanstream.protocol.events import Lost, ObjectArrived, Refused
from fanstream.protocol.frames import PAYLOAD
from fanstream.testing import FaultyNetwork, Frame, RawPeer
from fanstream.testing.frames import FrameCutter
from tests.federation import (
    on_memory,
)
from tests.protocol.linked import Pair, Side, connect, encoded, linked, opening, pump, stream, surroundings
from tests.threats.siege import (
    KIB,
    Answering,
    Forger,
    T,
    address,
    besieged,
    expect_goodbye,
    expect_life,
    small,
)

pytestmark = pytest.mark.anyio


@on_memory
async def test_a_window_overrun_on_a_forwarded_stream_ends_the_link(transport: str) -> None:
    with FaultyNetwork() as network:
        async with besieged(transport) as fed, StreamEngine("site-2", connect=address(fed)):
            await fed.server.wait_for_sites(["site-2"])
            async with RawPeer.dial(address(fed)) as peer:
                await peer.greet()
                network.link("site-2").down.stall()
                payloads = ({"n": number, "text": "x" * 3000} for number in range(3000))
                peer.send(*Forger(backlog=8000).stream(*payloads, target="site-2"))
                await expect_goodbye(peer, "bytes in flight on a forwarded stream, window")
                network.link("site-2").resume()


# --- reservations, in the core: what does not fit is not granted ---

TIGHT = {"origin_bytes": 256 * KIB, "engine_bytes": 512 * KIB, "window": 64 * KIB, "frame": 4 * KIB}
BIG = np.zeros(20_000)  # 160 kB


def reserved(side: Side) -> int:
    return side.shared.budget.used


def test_the_defaults() -> None:
    limits = Limits()
    assert (limits.origin_bytes, limits.engine_bytes, limits.unasked_bytes) == (2**28, 2**30, 2**28)


@pytest.mark.parametrize("streams", [2, 5, 40])
def test_each_stream_beyond_a_sites_share_holds_one_object_alone(streams: int) -> None:
    pair = left, right = linked(right=surroundings(limits=Limits(**TIGHT)))
    object_size = encoded(w=BIG).total
    for number in range(streams):
        leg = left.core.open(opening(stream=number.to_bytes(16, "big"), backlog=8), 0, b"")
        for seq in range(8):
            leg.send(seq, encoded(w=BIG), 0)
    pump(pair)
    arrived = [event for event in right.events if isinstance(event, ObjectArrived)]
    assert len(arrived) == streams, "and no second one of any, since nothing was released"
    assert reserved(right) <= streams * (object_size + KIB)


def test_what_one_site_holds_leaves_the_others_their_share() -> None:
    shared = surroundings(limits=Limits(**TIGHT))
    greedy = connect(Side("greedy", dialler=True), Side("site-1", dialler=False, shared=shared))
    modest = connect(Side("modest", dialler=True), Side("site-1", dialler=False, shared=shared))
    for pair, count in ((greedy, 2), (modest, 1)):
        name = pair[0].name
        for number in range(count):
            leg = pair[0].core.open(
                opening(opener=name, stream=(name * 4)[:15].encode() + bytes([number]), backlog=4), 0, b""
            )
            for seq in range(2):
                leg.send(seq, encoded(w=np.zeros(12_000)), 0)
        pump(pair)
    got = [event for event in modest[1].events if isinstance(event, ObjectArrived)]
    assert len(got) == 2, "both, though the first site has all of its own share"
    assert shared.budget.used_by("modest") < TIGHT["origin_bytes"]


# --- small objects, which come unasked ---


def flood(pair: Pair, number: int, size: int, count: int) -> None:
    """Send *count* small objects on one stream, which nobody consumes."""
    left, _ = pair
    leg = left.core.open(opening(stream=number.to_bytes(16, "big"), backlog=8192), 0, b"")
    payload = encoded(b=bytes(size)) if size else encoded()
    for seq in range(count):
        leg.send(seq, payload, 0)
    pump(pair)


@pytest.mark.parametrize("size", [0, 100, 4000, 9000, 60_000])
def test_what_comes_unasked_is_bounded_for_each_site(size: int) -> None:
    pair = left, right = linked(right=surroundings(limits=Limits(unasked_bytes=2**20)))
    for number in range(3):
        flood(pair, number, size, 1 + 2**21 // (size + 1024))
    refused = [event for event in left.events if isinstance(event, Refused)]
    assert len(refused) == 3
    assert {event.rc for event in refused} == {"SERVICE_UNAVAILABLE"}
    assert "small objects from server wait: there is no more room" in refused[0].reason
    assert [type(event) for event in right.events].count(Lost) == 3, "the site hears of it, and drops what waits"
    assert right.core.session.accepts_streams, "the link lives"
    assert (right.shared.budget.standing, right.shared.budget.used, right.core.legs) == (0, 0, {})


@pytest.mark.parametrize("size", [0, 4000, 60_000])
def test_many_streams_share_the_room(size: int) -> None:
    pair = left, right = linked(right=surroundings(limits=Limits(unasked_bytes=2**20)))
    each = 1 + 2**18 // (size + 1024)  # a little more than comes free and the first piece of room
    for number in range(12):
        flood(pair, number, size, each)
    refused = [event for event in left.events if isinstance(event, Refused)]
    assert right.shared.budget.standing <= 2**20
    assert len(refused) >= 8
    assert len(right.core.legs) == 12 - len(refused) > 0


def test_another_site_has_its_own_room() -> None:
    shared = surroundings(limits=Limits(unasked_bytes=2**20))
    for name, refusals in (("greedy", 1), ("modest", 0)):
        pair = left, _right = connect(Side(name, dialler=True), Side("site-1", dialler=False, shared=shared))
        for number, count in enumerate([900, 400] if refusals else [900]):
            leg = left.core.open(opening(opener=name, stream=bytes([number]) * 16, backlog=8192), 0, b"")
            for seq in range(count):
                leg.send(seq, encoded(n=1), 0)
            pump(pair)
        assert [type(event) for event in left.events].count(Refused) == refusals


@pytest.mark.parametrize("size", [0, 100, 9000])
def test_what_is_consumed_makes_room_for_more(size: int) -> None:
    pair = _left, right = linked(right=surroundings(limits=Limits(unasked_bytes=2**20)))
    sender, receiver = stream(pair, backlog=8192)
    payload = encoded(b=bytes(size)) if size else encoded()
    for seq in range(2000):
        sender.send(seq, payload, 0)
        if seq % 20 == 19:
            pump(pair)
            for event in right.events:
                assert isinstance(event, ObjectArrived)
                receiver.release(event.size)
                receiver.reply(event.seq, encoded())
            right.events.clear()
    pump(pair)
    assert right.core.legs, "nothing was refused"
    assert right.shared.budget.standing <= 2**18
    assert receiver.inbound.unasked == 0
    assert sender.inbound.unasked == 0
    sender.abort("TASK_ABORTED", "server", "")
    pump(pair)
    receiver.ended("TASK_ABORTED", "", b"")
    assert right.shared.budget.standing == 0


def test_small_objects_behind_one_that_never_comes_are_counted_too() -> None:
    pair = left, right = linked(right=surroundings(limits=Limits(unasked_bytes=2**20)))
    sender, _ = stream(pair, backlog=8192)
    sender.send(0, encoded(w=BIG), 0)
    right.feed(FrameCutter().feed(left.output())[0].pack())  # all but its data
    head = encoded(n=1)
    for seq in range(1, 3000):
        right.feed(Frame(T.OBJECT, 1, seq, body=PAYLOAD.pack(0, 0, 0, 0) + head.envelope).pack())
        if not right.core.legs:
            break
    assert 500 < seq < 1100, "about a thousand, at a KiB each"


def test_an_object_beyond_the_limit_that_is_no_more_than_announced_counts_as_one() -> None:
    pair = _, right = linked(right=surroundings(limits=Limits(unasked_bytes=2**20, object=64 * KIB)))
    sender, receiver = stream(pair, backlog=8192)
    for seq in range(3):
        sender.send(seq, encoded(w=BIG), 0)
    pump(pair)
    assert receiver.inbound.unasked == 3 * KIB
    for event in list(right.events):
        assert isinstance(event, ObjectArrived)
        receiver.release(event.size)
    assert receiver.inbound.unasked == 0


@on_memory
async def test_an_engine_refuses_the_stream_and_goes_on(transport: str) -> None:
    settings = EngineSettings(limits=Limits(unasked_bytes=2**20), registration_grace=0)
    async with besieged(transport, settings=settings) as fed:
        keeper = Answering()
        keeper.blocking = True
        keeper.register(fed.server)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            opened, *objects = Forger(backlog=8000).stream(*small(2000))
            peer.send(opened, *objects)
            refused = bodies.decode(bodies.Cause, (await peer.receive(T.REFUSED)).body)
            assert refused.rc == "SERVICE_UNAVAILABLE"
            await expect_life(peer)
        assert set(keeper.rcs) <= {"COMMUNICATION_ERROR"}
