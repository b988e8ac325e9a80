"""T17: open streams are bounded, and so are those that are reset before they were of any use."""

from __future__ import annotations

import pytest

from fanstream import EngineSettings, Limits, ReturnCode
from fanstream.errors import RemoteProtocolError
from fanstream.protocol import bodies
from fanstream.protocol.events import Aborted, EndAnnounced, ObjectArrived, Opened, Refused
from fanstream.protocol.resets import Resets
from fanstream.protocol.surroundings import Surroundings
from fanstream.testing import Frame, RawPeer
from tests.federation import (
    QUICK,
    Keeper,
    hubs,
    on_memory,
    until,
)
from tests.protocol.linked import Hub, Pair, Side, connect, encoded, linked, opening, pump, stream, surroundings
from tests.threats.siege import (
    Answering,
    Forger,
    T,
    address,
    besieged,
    expect_goodbye,
    expect_life,
)

pytestmark = pytest.mark.anyio


@hubs
async def test_openings_beyond_the_limit_are_refused_and_the_link_lives(transport: str) -> None:
    settings = EngineSettings(limits=Limits(streams=8), registration_grace=0)
    async with besieged(transport, settings=settings) as fed:
        keeper = Answering()
        keeper.blocking = True
        keeper.register(fed.server)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            forger = Forger()
            for number in range(30):
                peer.send(*forger.stream({"n": number}))
            for _ in range(22):
                refused = await peer.receive(T.REFUSED)
                assert bodies.decode(bodies.Cause, refused.body).rc == ReturnCode.SERVICE_UNAVAILABLE
            await expect_life(peer)
            await until(lambda: len(keeper.seen) == 8)
        await until(lambda: keeper.rcs == ["COMMUNICATION_ERROR"] * 8)


@hubs
async def test_openings_to_nobody_are_refused_and_the_link_lives(transport: str) -> None:
    async with besieged(transport, settings=QUICK) as fed, RawPeer.dial(address(fed)) as peer:
        await peer.greet()
        forger = Forger()
        for number in range(300):
            peer.send(*forger.stream({"n": 1}, target=f"ghost-{number}"))
        for _ in range(300):
            refused = await peer.receive(T.REFUSED)
            assert bodies.decode(bodies.Cause, refused.body).rc == ReturnCode.COMMUNICATION_ERROR
        peer.send(*forger.stream({"n": 1}))
        refused = await peer.receive(T.REFUSED)
        assert bodies.decode(bodies.Cause, refused.body).rc == ReturnCode.TOPIC_UNKNOWN
        await expect_life(peer)


# --- resets, in the core ---


def limited(resets: int = 5, window: float = 30.0) -> Surroundings:
    return surroundings(limits=Limits(resets=resets, reset_window=window))


def give_up(pair: Pair, how: str, number: int, now: float = 0.0) -> None:
    """Open a stream and give it up in some way; what the site says of it is carried too."""
    left, right = pair
    leg = left.core.open(opening(stream=number.to_bytes(16, "big")), 0, b"")
    if how == "object and abort":
        leg.send(0, encoded(n=1), 0)
    if how == "withdrawn":
        leg.end(withdraw=True)
    else:
        leg.abort("TASK_ABORTED", "server", "")
    pump(pair, now=now)
    for event in right.events:
        if isinstance(event, (Aborted, EndAnnounced)):
            event.leg.ended("TASK_ABORTED", "", b"")
    pump(pair, now=now)
    left.events.clear()
    right.events.clear()


@pytest.mark.parametrize("how", ["abort", "object and abort", "withdrawn"])
def test_who_resets_too_many_streams_loses_the_link(how: str) -> None:
    pair = linked(right=limited(5))
    for number in range(5):
        give_up(pair, how, number)
    with pytest.raises(RemoteProtocolError, match=r"server has reset more than 5 streams within 30\.0 s"):
        give_up(pair, how, 5)


def test_the_defaults_are_100_within_30_seconds() -> None:
    pair = linked()
    for number in range(100):
        give_up(pair, "abort", number, now=29.0 * number / 100)
    with pytest.raises(RemoteProtocolError, match="more than 100 streams within"):
        give_up(pair, "abort", 100, now=29.9)


def test_what_was_long_ago_does_not_count() -> None:
    pair = linked(right=limited(5))
    for number in range(200):
        give_up(pair, "abort", number, now=6.0 * number)
    assert pair[1].core.session.accepts_streams


def test_what_has_been_consumed_may_be_aborted() -> None:
    pair = left, right = linked(right=limited(2))
    for _ in range(20):
        sender, receiver = stream(pair)
        sender.send(0, encoded(), 0)
        pump(pair)
        receiver.release(right.take(ObjectArrived).size)
        receiver.reply(0, encoded())
        sender.abort("TASK_ABORTED", "server", "")
        pump(pair)
        receiver.ended("TASK_ABORTED", "", b"")
        pump(pair)
        left.events.clear()
        right.events.clear()


def test_a_quorum_may_withdraw_what_a_slow_site_has_not_consumed() -> None:
    pair = left, right = linked(right=limited(2))
    for _ in range(20):
        sender, receiver = stream(pair)
        sender.send(0, encoded(), 0)
        sender.end(withdraw=True)
        pump(pair)
        receiver.ended("OK", "", b"")
        pump(pair)
        left.events.clear()
        right.events.clear()


def test_a_stream_counts_once_however_often_it_is_aborted() -> None:
    pair = _, right = linked(right=limited(2))
    sender, _ = stream(pair)
    sender.abort("TASK_ABORTED", "server", "")
    pump(pair)
    again = Frame(T.ABORT, sender.alias, body=bodies.encode(bodies.Cause("ERROR"))).pack()
    right.feed(again * 20)
    assert right.core.session.accepts_streams


def test_a_new_link_does_not_begin_anew() -> None:
    shared = limited(3)
    pair = linked(right=shared)
    for number in range(3):
        give_up(pair, "abort", number)
    with pytest.raises(RemoteProtocolError, match="more than 3"):
        give_up(pair, "abort", 3)
    again = left, right = connect(Side("server", dialler=True), Side("site-1", dialler=False, shared=shared))
    for now, taken in ((1.0, False), (29.0, False), (31.0, True)):
        leg = left.core.open(opening(), 0, b"")
        pump(again, now=now)
        if taken:
            assert type(right.events[-1]) is Opened
        else:
            refused = left.take(Refused)
            assert (refused.leg, refused.rc) == (leg, "SERVICE_UNAVAILABLE")
            assert "3 streams within 30.0 s" in refused.reason


def test_who_is_behind_a_hub_opens_nothing_for_a_while_and_the_hub_stays() -> None:
    hub = Hub()
    resets = hub.site.shared.resets
    for _ in range(101):
        resets.count("server", 0.0)
    leg = hub.server.core.open(opening(), 0, b"")
    hub.pump()
    refused = hub.server.take(Refused)
    assert (refused.leg, refused.rc) == (leg, "SERVICE_UNAVAILABLE")
    assert refused.reason == "server has reset more than 100 streams within 30.0 s"
    assert hub.site.core.session.accepts_streams
    hub.assert_no_route()


def test_a_hub_counts_what_it_forwards() -> None:
    hub = Hub()
    for number in range(101):
        leg = hub.server.core.open(opening(stream=number.to_bytes(16, "big")), 0, b"")
        leg.abort("TASK_ABORTED", "server", "")
    with pytest.raises(RemoteProtocolError, match="server has reset more than 100 streams"):
        hub.pump()
    assert hub.far.core.session.accepts_streams, "the site's link is not to blame"


def test_sites_count_apart_and_what_is_over_is_forgotten() -> None:
    resets = Resets(2, 10.0)
    for _ in range(3):
        resets.count("a", 0.0)
    assert resets.too_many("a", 9.0)
    assert not resets.too_many("a", 10.0)
    assert not resets.too_many("b", 0.0)
    for number in range(5000):
        resets.count(f"site-{number}", number / 10)
    assert len(resets._times) < 1200


@on_memory
@pytest.mark.parametrize("resets", [3, 20])
async def test_a_reset_flood_ends_its_link_alone(transport: str, resets: int) -> None:
    settings = EngineSettings(limits=Limits(resets=resets), registration_grace=0)
    async with besieged(transport, settings=settings) as fed:
        keeper = Keeper().register(fed.server)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            forger = Forger()
            for _ in range(resets + 1):
                (opened,) = forger.stream()
                peer.send(opened, Frame(T.ABORT, opened.alias, body=bodies.encode(bodies.Cause("TASK_ABORTED"))))
            await expect_goodbye(peer, f"stranger has reset more than {resets} streams")
        assert keeper.log == []
