"""T4: a reply from a site that was not asked, or to an object that was not sent, is counted and never delivered."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from fanstream.errors import RemoteProtocolError
from fanstream.protocol import bodies
from fanstream.protocol.events import Lost, ReplyArrived
from fanstream.protocol.frames import CHUNK, PAYLOAD, pack
from fanstream.testing import Frame, RawPeer
from tests.federation import (
    Numbers,
    hubs,
    until,
)
from tests.protocol.linked import Hub, encoded, linked, pump, stream
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


# --- in the core ---


def reply_of(seq: int, alias: int = 1) -> bytes:
    return pack(T.REPLY, alias, seq, body=PAYLOAD.pack(0, 0, 0, 0) + encoded(n=seq).envelope)


@pytest.mark.parametrize("seq", [1, 2, 5, 2**32, 2**64 - 1])
@pytest.mark.parametrize("sent", [0, 1])
def test_a_reply_to_what_was_not_sent_is_counted_and_not_delivered(seq: int, sent: int) -> None:
    pair = left, _ = linked()
    sender, _ = stream(pair)
    for number in range(sent):
        sender.send(number, encoded(), 0)
    with pytest.raises(RemoteProtocolError, match=f"REPLY {seq} from site-1: 0 was next, {sent} objects were sent"):
        left.feed(reply_of(seq))
    assert (left.core.stray, left.events) == (1, [])


@pytest.mark.parametrize("times", [1, 5])
def test_a_reply_that_was_had_before_is_counted_and_not_delivered(times: int) -> None:
    pair = left, _ = linked()
    sender, _ = stream(pair)
    sender.send(0, encoded(), 0)
    left.feed(reply_of(0))
    left.take(ReplyArrived)
    left.feed(reply_of(0) * times)
    assert (left.core.duplicates, left.events) == (times, [])


@pytest.mark.parametrize("how", ["closed", "lost", "ended", "refused"])
def test_a_reply_on_a_stream_that_is_over_is_counted_and_not_delivered(how: str) -> None:
    pair = left, _ = linked()
    sender, receiver = stream(pair)
    sender.send(0, encoded(), 0)
    if how == "closed":
        sender.close()
    elif how == "lost":
        sender.lost("gone")
    elif how == "ended":
        receiver.ended("OK", "", b"")
    else:
        receiver.refuse("ERROR", "")
    pump(pair)
    left.core.take_events()
    left.events.clear()
    before = left.core.stray
    left.feed(reply_of(0))
    assert (left.core.stray, left.events) == (before + 1, [])


def test_a_reply_after_an_abort_is_dropped() -> None:
    pair = left, _ = linked()
    sender, _ = stream(pair)
    sender.send(0, encoded(), 0)
    sender.abort("TASK_ABORTED", "server", "")
    left.feed(reply_of(0))
    assert left.events == []


@pytest.mark.parametrize("seq", [0, 1, 7])
def test_through_a_hub_it_costs_the_stream_and_no_link(seq: int) -> None:
    hub = Hub()
    sender, receiver = hub.stream()
    hub.site.core.scheduler.control(reply_of(seq, receiver.alias))
    hub.pump()
    assert f"REPLY {seq} from site-1" in hub.server.take(Lost).reason
    assert sender.closed
    assert hub.server.core.stray == 1
    assert hub.server.core.session.accepts_streams
    assert hub.near.core.session.accepts_streams
