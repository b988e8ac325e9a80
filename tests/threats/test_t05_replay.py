"""T5: a stream opens once, and an object is consumed once."""

from __future__ import annotations

import pytest

from fanstream import ReturnCode
from fanstream.errors import RemoteProtocolError
from fanstream.protocol import bodies
from fanstream.protocol.events import ObjectArrived
from fanstream.protocol.frames import pack
from fanstream.testing import Frame, RawPeer
from fanstream.testing.frames import FrameCutter
from tests.federation import (
    Keeper,
    hubs,
    on_memory,
    until,
)
from tests.protocol.linked import encoded, linked, pump, stream
from tests.protocol.linked import opening as linked_opening
from tests.threats.siege import (
    Forger,
    Offence,
    T,
    address,
    after_object,
    besieged,
    expect_life,
    offend,
    small,
)

pytestmark = pytest.mark.anyio

OFFENCES: dict[str, Offence] = {
    "open of an older number": (
        lambda forger: [forger.stream()[0]._replace(alias=7), forger.stream()[0]],
        "OPEN names stream 3",
    ),
    "open on an open stream": (after_object(T.OPEN), "frame of type 16"),
}


@hubs
@pytest.mark.parametrize("offence", OFFENCES)
async def test_an_offence_ends_its_link_by_name_and_no_other(transport: str, offence: str) -> None:
    await offend(transport, *OFFENCES[offence])


@hubs
async def test_a_stream_is_opened_once(transport: str) -> None:
    async with besieged(transport) as fed:
        Keeper().register(fed.server)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            forger = Forger()
            peer.send(*forger.stream(*small(1), stream=b"once" * 4))
            await peer.receive(T.REPLY)
            peer.send(*forger.stream(*small(1), stream=b"once" * 4))
            refused = await peer.receive(T.REFUSED)
            assert bodies.decode(bodies.Cause, refused.body).rc == ReturnCode.BAD_REQUEST_DATA
            await expect_life(peer)


@hubs
async def test_a_duplicate_is_answered_again_and_consumed_once(transport: str) -> None:
    async with besieged(transport) as fed:
        keeper = Keeper().register(fed.server)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            opened, one, two = Forger().stream(*small(2))
            peer.send(opened, one)
            reply = await peer.receive(T.REPLY)
            for _ in range(3):
                peer.send(one)
                assert await peer.receive(T.REPLY) == reply
            peer.send(two, one, Frame(T.END, alias=opened.alias, seq=2))
            ended = await peer.receive(T.ENDED)
            assert bodies.decode(bodies.Ending, ended.body).rc == "OK"
            assert keeper.seen == [0, 1]
            peer.send(Frame(T.DONE, alias=opened.alias))
            peer.send(one, two, Frame(T.CREDIT, alias=opened.alias, seq=9), Frame(T.ABORT, alias=opened.alias))
            await expect_life(peer)


# --- a whole session said again ---


@on_memory
@pytest.mark.parametrize("where", ["the same link", "a new link", "a new link of another life"])
async def test_a_recorded_session_is_of_no_use(transport: str, where: str) -> None:
    async with besieged(transport) as fed:
        keeper = Keeper().register(fed.server)
        forger = Forger()
        session = forger.stream(*small(2), stream=b"once" * 4)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            peer.send(*session, Frame(T.END, session[0].alias, 2))
            await peer.receive(T.ENDED)
            if where == "the same link":
                await say_again(peer, [frame._replace(alias=9) for frame in session])
        if where != "the same link":
            await until(lambda: "stranger" not in fed.server.sites())
            incarnation = b"another life...." if "life" in where else b"stranger........"
            async with RawPeer.dial(address(fed)) as peer:
                await peer.greet(incarnation=incarnation)
                await say_again(peer, session)
        assert keeper.seen == [0, 1], "each was consumed once"
        assert keeper.log.count("get_consumer") == 1


async def say_again(peer: RawPeer, session: list[Frame]) -> None:
    peer.send(*session, Frame(T.END, session[0].alias, 2))
    refused = await peer.receive(T.REFUSED)
    assert bodies.decode(bodies.Cause, refused.body).rc == "BAD_REQUEST_DATA"


@pytest.mark.parametrize("again", range(4))
@pytest.mark.parametrize("times", [1, 3])
def test_an_object_comes_out_of_the_core_once(again: int, times: int) -> None:
    pair = left, right = linked()
    sender, receiver = stream(pair, backlog=8)
    frames = []
    for seq in range(4):
        sender.send(seq, encoded(n=seq), 0)
        frames.append(left.output())
    right.feed(*frames)
    right.feed(frames[again] * times)
    arrived = [right.take(ObjectArrived).seq for _ in range(4)]
    assert (arrived, right.events, right.core.duplicates) == ([0, 1, 2, 3], [], times)
    for seq in range(4):
        receiver.reply(seq, encoded(n=-seq))
    right.output()
    right.feed(frames[again])
    assert right.events == []
    assert FrameCutter().feed(right.output())[0].seq == again, "answered from the cache"


def test_an_answer_that_was_acknowledged_is_forgotten() -> None:
    pair = left, right = linked()
    sender, receiver = stream(pair, backlog=8)
    sender.send(0, encoded(n=0), 0)
    first = left.output()
    right.feed(first)
    receiver.reply(0, encoded(n=0))
    pump(pair)
    sender.send(1, encoded(n=1), 0)
    pump(pair)
    right.events.clear()
    right.feed(first)
    assert right.output() == b""
    assert (right.events, right.core.duplicates) == ([], 1)


@pytest.mark.parametrize("alias", [0, 1, 2, 4, 2**32 - 2])
def test_a_number_is_given_once(alias: int) -> None:
    pair = _, right = linked()
    stream(pair)
    with pytest.raises(RemoteProtocolError, match=rf"OPEN names stream {alias}|type 16 for ReceiverLeg"):
        right.feed(pack(T.OPEN, alias, body=bodies.join_opening(linked_opening(stream=b"n" * 16), b"")))


def test_an_answer_is_kept_until_it_was_acknowledged() -> None:
    pair = left, right = linked()
    sender, receiver = stream(pair, backlog=8)
    frames = []
    for seq in range(2):
        sender.send(seq, encoded(n=seq), 0)
        frames.append(left.output())
    right.feed(*frames)
    receiver.reply(0, encoded(n=0))
    pump(pair)
    receiver.reply(1, encoded(n=1))
    right.output()  # is lost
    sender.send(2, encoded(n=2), 0)  # and says that one reply has come
    pump(pair)
    right.feed(frames[1])
    assert [frame.seq for frame in FrameCutter().feed(right.output())] == [1]
