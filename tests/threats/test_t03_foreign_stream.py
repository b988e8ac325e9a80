"""T3: a stream is its opener's: whoever else speaks on it is refused, and counted."""

from __future__ import annotations

import pytest

from fanstream.errors import RemoteProtocolError
from fanstream.protocol import bodies
from fanstream.protocol.events import ObjectArrived
from fanstream.protocol.frames import PAYLOAD, FrameType, pack
from fanstream.testing import Frame, RawPeer
from tests.federation import (
    Keeper,
    hubs,
    on_memory,
    until,
)
from tests.protocol.linked import Hub, Pair, Side, connect, encoded, linked, stream
from tests.threats.siege import (
    Forger,
    Offence,
    T,
    address,
    besieged,
    expect_life,
    first,
    just,
    large,
    offend,
    small,
)

pytestmark = pytest.mark.anyio

OFFENCES: dict[str, Offence] = {
    "chunk of a stranger's stream": (large(lambda data: data._replace(alias=99)), "stream 99, which was never opened"),
    "chunk of the engine's own": (large(lambda data: data._replace(alias=2)), "stream 2, which was never opened"),
    "object of a stranger's stream": (just(Frame(T.OBJECT, alias=41)), "stream 41, which was never opened"),
    "end of a stranger's stream": (just(Frame(T.END, alias=43)), "stream 43, which was never opened"),
    "grant on a stranger's stream": (just(Frame(T.GRANT, alias=4)), "stream 4, which was never opened"),
    "object of no stream": (just(Frame(T.OBJECT)), "stream 0, which was never opened"),
    "open with the engine's numbering": (first(lambda frame: frame._replace(alias=8)), "OPEN names stream 8"),
}


@hubs
@pytest.mark.parametrize("offence", OFFENCES)
async def test_an_offence_ends_its_link_by_name_and_no_other(transport: str, offence: str) -> None:
    await offend(transport, *OFFENCES[offence])


# --- between members of one hub, whose streams have the same numbers on their own links ---


def two_members() -> tuple[Hub, Pair]:
    """A stream from the server through the hub to site-1; and a member with a link of its own."""
    hub = Hub()
    member = connect(Side("member", dialler=True), Side("hub", dialler=False, shared=hub.shared, hub=True))
    return hub, member


FRAMES: dict[str, bytes] = {
    "object": pack(T.OBJECT, 1, body=PAYLOAD.pack(0, 0, 0, 0)),
    "chunk": pack(T.CHUNK, 1, body=bytes(17)),
    "reply": pack(T.REPLY, 2, body=PAYLOAD.pack(0, 0, 0, 0)),
    "grant": pack(T.GRANT, 2),
    "credit": pack(T.CREDIT, 2, 2**40),
    "end": pack(T.END, 1),
    "abort": pack(T.ABORT, 1, body=bodies.encode(bodies.Cause("ERROR"))),
    "ending": pack(T.ENDING, 2),
    "ended": pack(T.ENDED, 2, body=bodies.encode(bodies.Ending("OK"))),
    "refused": pack(T.REFUSED, 2, body=bodies.encode(bodies.Cause("ERROR"))),
    "lost": pack(T.LOST, 2, body=bodies.encode(bodies.Cause("ERROR"))),
    "allow": pack(T.ALLOW, 2, 2**40),
}


@pytest.mark.parametrize("frame", FRAMES)
def test_a_member_reaches_no_stream_of_another_by_its_number(frame: str) -> None:
    hub, (_, near) = two_members()
    sender, receiver = hub.stream()
    with pytest.raises(RemoteProtocolError, match=r"stream \d, which was never opened"):
        near.feed(FRAMES[frame])
    near.core.lost("offence")
    hub.pump()
    assert (hub.server.events, hub.site.events) == ([], []), "nothing of it got through"
    sender.send(0, encoded(n=1), 0)
    hub.pump()
    assert hub.site.take(ObjectArrived).leg is receiver


@pytest.mark.parametrize("frame", [name for name in FRAMES if FRAMES[name][8] == 1])
def test_what_comes_after_the_end_is_counted_and_dropped(frame: str) -> None:
    pair = _, right = linked()
    _, receiver = stream(pair)
    receiver.ended("OK", "", b"")
    right.feed(pack(FrameType.DONE, 1), FRAMES[frame])
    assert (right.core.stray, right.events) == (1, [])


@on_memory
async def test_the_id_of_anothers_stream_gives_no_way_in(transport: str) -> None:
    async with besieged(transport) as fed:
        keeper = Keeper().register(fed.server)
        async with RawPeer.dial(address(fed)) as victim, RawPeer.dial(address(fed), "thief") as thief:
            await victim.greet("victim")
            await thief.greet("thief")
            victim.send(*Forger("victim").stream(*small(1), stream=b"i" * 16))
            await victim.receive(T.REPLY)
            thief.send(*Forger("thief").stream({"n": 99}, stream=b"i" * 16))
            await expect_life(victim)
            await expect_life(thief)
            await until(lambda: 99 in keeper.seen)
            assert keeper.log.count("get_consumer") == 2, (
                "it is a stream of the thief's own, with a consumer of its own"
            )


@on_memory
async def test_nobody_can_use_up_the_id_of_anothers_stream(transport: str) -> None:
    async with besieged(transport) as fed:
        keeper = Keeper().register(fed.server)
        async with RawPeer.dial(address(fed)) as victim, RawPeer.dial(address(fed), "thief") as thief:
            await victim.greet("victim")
            await thief.greet("thief")
            thief.send(*Forger("thief").stream({"n": 99}, stream=b"i" * 16))
            await thief.receive(T.REPLY)
            victim.send(*Forger("victim").stream({"n": 7}, stream=b"i" * 16))
            await victim.receive(T.REPLY)
            assert keeper.seen == [99, 7]
