"""T4: a reply from a site that was not asked, or to an object that was not sent, is counted and never delivered."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from fanstream.protocol import bodies
from fanstream.protocol.frames import CHUNK, PAYLOAD
from fanstream.testing import Frame, RawPeer
from tests.federation import (
    Numbers,
    hubs,
    until,
)
from tests.protocol.linked import encoded
from tests.threats.siege import (
    Bytes,
    Offence,
    T,
    address,
    after_object,
    besieged,
    expect_life,
    just,
    offend,
    offend_as_receiver,
)

pytestmark = pytest.mark.anyio

OFFENCES: dict[str, Offence] = {
    "reply that nobody asked for": (just(Frame(T.REPLY, alias=2)), "stream 2, which was never opened"),
    "reply on a receiver's stream": (after_object(T.REPLY), "frame of type 19"),
}


@hubs
@pytest.mark.parametrize("offence", OFFENCES)
async def test_an_offence_ends_its_link_by_name_and_no_other(transport: str, offence: str) -> None:
    await offend(transport, *OFFENCES[offence])


ANSWERS: dict[str, tuple[Callable[[Frame], Bytes], str]] = {
    "reply to what was not sent": (lambda one: [Frame(T.REPLY, alias=one.alias, seq=5)], "REPLY 5 from stranger"),
    "ended after too many": (
        lambda one: [Frame(T.ENDED, alias=one.alias, seq=9, body=bodies.encode(bodies.Ending("OK")))],
        "ENDED after 9 replies from stranger: 1 objects were sent",
    ),
    "chunk of no reply": (
        lambda one: [Frame(T.CHUNK, alias=one.alias, body=CHUNK.pack(0, 0, 0) + b"x")],
        "CHUNK for object 0",
    ),
}


@hubs
@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_receivers_offence_loses_it_the_stream_and_the_link(transport: str, answer: str) -> None:
    await offend_as_receiver(transport, *ANSWERS[answer])


@hubs
async def test_a_reply_that_comes_twice_counts_once(transport: str) -> None:
    async with besieged(transport) as fed, RawPeer.dial(address(fed)) as peer:
        await peer.greet()
        await until(lambda: "stranger" in fed.server.sites())
        producer = Numbers(3, timeout=30)

        async def answer() -> None:
            for _ in range(3):
                one = await peer.receive(T.OBJECT)
                envelope = encoded(n=one.seq).envelope
                reply = Frame(T.REPLY, alias=one.alias, seq=one.seq, body=PAYLOAD.pack(0, 0, 0, 0) + envelope)
                peer.send(reply, reply, reply)
            end = await peer.receive(T.END)
            peer.send(Frame(T.ENDED, alias=end.alias, seq=3, body=bodies.encode(bodies.Ending("OK"))))

        async with anyio.create_task_group() as tg:
            tg.start_soon(answer)
            result = await fed.stream(producer, ["site-1", "stranger"])
        assert [replies["stranger"]["n"] for replies in producer.replies] == [0, 1, 2]
        assert result.complete
        await expect_life(peer)
