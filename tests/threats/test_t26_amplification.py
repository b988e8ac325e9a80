"""T26: a stranger is told at most three times what it has said, and nobody more than it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanstream import Shareable, StreamEngine
from fanstream.errors import RemoteProtocolError
from fanstream.protocol import bodies
from fanstream.protocol.events import Greeted
from fanstream.protocol.frames import HEADER, MAGIC, Flag, FrameType, pack
from fanstream.testing import FaultyNetwork, Frame, RawPeer
from fanstream.testing.peer import hello
from tests.federation import (
    QUICK,
    hubs,
    on_memory,
    until,
)
from tests.protocol.linked import Side
from tests.threats.siege import (
    KIB,
    Forger,
    T,
    address,
    besieged,
    expect_life,
)
from tests.threats.test_t01_unauthenticated_peer import GREETINGS

pytestmark = pytest.mark.anyio

FLOODS: dict[str, Callable[[Frame, Frame], Iterable[Frame]]] = {
    "pings": lambda opened, one: [Frame(T.PING)] * 100_000,
    "openings": lambda opened, one: (opened._replace(alias=alias) for alias in range(3, 100_000, 2)),
    "duplicates": lambda opened, one: [one] * 2000,
}


@on_memory
@pytest.mark.parametrize("flood", FLOODS)
async def test_what_answers_a_flood_is_bounded_while_nobody_reads_it(transport: str, flood: str) -> None:
    with FaultyNetwork() as network:
        async with besieged(transport, settings=QUICK) as fed:
            consumed = anyio.Event()

            @fed.server.consumer("models", "weights")
            async def echo(shareable: Shareable, stream_ctx: Any, fl_ctx: Any) -> Shareable:
                consumed.set()
                return Shareable({"text": "x" * shareable["echo"]})

            async with RawPeer.dial(address(fed)) as peer:
                await peer.greet()
                link = network.link("stranger")
                link.down.stall()
                opened, one = Forger().stream({"echo": 3000})
                peer.send(opened, one)
                await consumed.wait()
                peer.send(*FLOODS[flood](opened, one))
                await until(lambda: not peer._output or "stranger" not in {link.peer for link in fed.server._links}, 60)
                before = link.down.arrived
                link.resume()
                with anyio.move_on_after(1):
                    await peer.closed()
                answered = link.down.arrived - before
                assert answered < 2 * KIB * KIB, "or the link has ended"


@hubs
async def test_a_flood_of_pings_is_answered(transport: str) -> None:
    async with besieged(transport) as fed, RawPeer.dial(address(fed)) as peer:
        await peer.greet()
        for _ in range(20):
            peer.send(Frame(T.PING).pack() * 1000)
        await peer.receive(T.PONG)  # one may answer many
        await expect_life(peer)


# --- before both have greeted ---


def answer_to(said: bytes, name: str = "hub") -> bytes:
    """What a listener says to a stranger, as a link has it said."""
    side = Side(name, dialler=False, hub=True)
    try:
        side.feed(said)
    except RemoteProtocolError as exc:
        side.core.session.leave("protocol", str(exc))
    return side.output()


@pytest.mark.parametrize("greeting", GREETINGS)
def test_a_bad_greeting_is_answered_with_three_times_its_bytes_at_most(greeting: str) -> None:
    said, _ = GREETINGS[greeting]
    data = said.pack() if isinstance(said, Frame) else said
    assert 0 < len(answer_to(data)) <= 3 * len(data)


@pytest.mark.parametrize("cut", range(0, 64, 4))
def test_the_answer_counts_what_has_come(cut: int) -> None:
    said = b"\xff" * cut
    assert len(answer_to(said)) <= 3 * len(said)


@pytest.mark.parametrize(
    "frame",
    [
        hello("\0" * 60_000),  # in an error message, each of these takes four characters
        hello("stranger", magic=bytes(60_000)),
        hello("\N{GRINNING FACE}" * 15_000),
        hello("stranger", low=2**63 - 1, high=2**64 - 1),
    ],
    ids=["name", "magic", "wide name", "versions"],
)
def test_what_a_stranger_says_is_not_said_back_at_length(frame: Frame) -> None:
    assert len(answer_to(frame.pack())) < 400


@given(st.binary(max_size=400))
def test_whatever_a_stranger_says(data: bytes) -> None:
    for said in (data, HEADER.pack(len(data), FrameType.HELLO, Flag.CRITICAL, 0, 0, 0, 0, 0) + data):
        assert len(answer_to(said)) <= 3 * len(said)


def test_the_shortest_hello_pays_for_the_longest() -> None:
    fields = ["x", bytes(16), False, 4096, 4096, 4096, 1, [], MAGIC]

    said = pack(FrameType.HELLO, body=msgspec.msgpack.encode(fields))
    side = Side("h" * 63, dialler=False, hub=True)
    side.feed(said)
    assert type(side.events[0]) is Greeted
    side.core.session.admit()
    assert len(side.output()) <= 3 * len(said)


@pytest.mark.parametrize("code", ["bye", "name-in-use", "refused"])
@pytest.mark.parametrize("heard", [0, 1, 23])
def test_who_has_said_hardly_anything_hears_nothing(code: str, heard: int) -> None:
    side = Side("hub", dialler=False)
    side.feed(bytes(heard))
    side.core.session.leave(code, "some reason")
    assert len(side.output()) <= 3 * heard


def test_whom_this_side_dialled_and_whom_it_knows_hear_the_whole_reason() -> None:
    dialler = Side("site-1", dialler=True)
    dialler.output()
    dialler.core.session.leave("protocol", "y" * 2000)
    known = Side("hub", dialler=False)
    known.feed(hello("stranger").pack())
    known.core.session.admit()
    known.output()
    known.core.session.leave("protocol", "y" * 2000)
    for side in (dialler, known):
        goodbye = bodies.decode(bodies.Goodbye, side.output()[HEADER.size :])
        assert goodbye.reason == "y" * 1000


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_engine_that_ends_says_nothing_to_strangers(anyio_backend: str) -> None:
    engine = StreamEngine("server", listen="tcp://127.0.0.1:0")
    async with engine as server, RawPeer.dial(server.addresses[0]) as peer:
        await until(lambda: server._links._half_open == 1)
        for link in server._links:
            link.leave("bye")
        await peer.closed()
        assert not peer._frames
