"""Peers that break the rules of the wire, against a hub with honest work to do; `threats/` has those that mean harm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest

from fanstream import ReturnCode, StreamEngine
from fanstream.errors import ClosedError
from fanstream.protocol import bodies
from fanstream.protocol.frames import HEADER, Flag
from fanstream.testing import Frame, RawPeer
from fanstream.testing.conformance import Accepted
from fanstream.testing.peer import hello
from fanstream.transports.memory import MemoryListener
from tests.federation import (
    Keeper,
    Numbers,
    check_account,
    hubs,
    on_memory,
)
from tests.threats.siege import (
    LARGE,
    Bytes,
    Forger,
    Offence,
    T,
    address,
    after_object,
    bent_payload,
    besieged,
    chunk,
    expect_goodbye,
    expect_life,
    first,
    just,
    large,
    offend,
    offend_as_receiver,
    opening,
    second_object,
    small,
)

pytestmark = pytest.mark.anyio

HEADER_OF_TRAILER = HEADER.pack(8, T.PING, 0, 0, 0, 0, 0, 8) + bytes(8)


OFFENCES: dict[str, Offence] = {
    "backlog": (
        lambda forger: Forger(backlog=2).stream(*({"n": number, "block": True} for number in range(3))),
        "object 2 from stranger: 2 unanswered, limit 2",
    ),
    "chunk of nothing": (large(lambda data: chunk(data, data=b"")), "CHUNK of 0 bytes"),
    "chunk with a reserved field": (large(lambda data: chunk(data, zero=7)), "CHUNK with 7 in its reserved field"),
    "ended on a receiver's stream": (after_object(T.ENDED), "frame of type 25"),
    "refused on a receiver's stream": (after_object(T.REFUSED), "frame of type 26"),
    "ending on a receiver's stream": (after_object(T.ENDING), "frame of type 24"),
    "suspended by the other end itself": (after_object(T.SUSPENDED), "SUSPENDED from stranger"),
    "resume on an open stream": (after_object(T.RESUME), "frame of type 29"),
    "done before the end": (after_object(T.DONE), "frame of type 31"),
    "ping on a stream": (after_object(T.PING), "frame of type 2"),
    "abort of garbage": (after_object(T.ABORT, body=b"\xc1"), "Cause body of 1 bytes cannot be decoded"),
    "lost of garbage": (after_object(T.LOST, body=b"\x93"), "Cause body of 1 bytes cannot be decoded"),
    "open of stream 0": (first(lambda frame: frame._replace(alias=0)), "OPEN names stream 0"),
    "open of no target": (first(lambda frame: frame._replace(target=1)), "target 1 of 1"),
    "open with a short id": (opening(stream=b"short"), "an id of 5 bytes"),
    "open with no backlog": (opening(backlog=0), "a backlog of 0"),
    "open without targets": (opening(targets=[]), "target 0 of 0"),
    "open of garbage": (first(lambda frame: frame._replace(body=b"\4\0\0\0\xc1\xc1\xc1\xc1")), "cannot be decoded"),
    "open of nothing": (first(lambda frame: frame._replace(body=b"")), "OPEN of 0 bytes"),
    "payload too short": (second_object(lambda two: two._replace(body=b"x" * 5)), "payload head of 5 bytes"),
    "payload of bytes in no buffer": (second_object(partial(bent_payload, total=9)), "without buffers announces 9"),
    "payload whose sum is wrong": (
        lambda forger: [(frames := forger.stream(LARGE))[0], bent_payload(frames[1], total=5)],
        "5 announced",
    ),
    "second hello": (just(hello("stranger")), "frame of type 1 while the link is OPEN"),
    "unknown critical type": (just(Frame(60, flags=Flag.CRITICAL)), "frame of type 60"),
    "unknown critical type of the link": (just(Frame(9, flags=Flag.CRITICAL)), "frame of type 9"),
    "trailer": (just(HEADER_OF_TRAILER), "trailer of 8 bytes"),
    "ping of a stream that is none": (just(Frame(T.PING, alias=5)), "names stream 5, expected none"),
    "presence of garbage": (just(Frame(T.PRESENCE, body=b"\xc1")), "Presence body of 1 bytes cannot be decoded"),
    "presence of no name": (
        just(Frame(T.PRESENCE, body=bodies.encode(bodies.Presence(True, ["../x"], [])))),
        "'../x', which is no site's",
    ),
    "goodbye of garbage": (just(Frame(T.GOAWAY, body=b"\xc1")), "Goodbye body of 1 bytes cannot be decoded"),
}


@hubs
@pytest.mark.parametrize("offence", OFFENCES)
async def test_an_offence_ends_its_link_by_name_and_no_other(transport: str, offence: str) -> None:
    await offend(transport, *OFFENCES[offence], block=offence == "backlog")


ANSWERS: dict[str, tuple[Callable[[Frame], Bytes], str]] = {
    "ended of garbage": (lambda one: [Frame(T.ENDED, alias=one.alias, body=b"\xc1")], "Ending body of 1 bytes"),
    "refused of garbage": (lambda one: [Frame(T.REFUSED, alias=one.alias, body=b"")], "Cause body of 0 bytes"),
    "reply of garbage": (lambda one: [Frame(T.REPLY, alias=one.alias, body=b"x")], "payload head of 1 bytes"),
    "object from a receiver": (lambda one: [Frame(T.OBJECT, alias=one.alias)], "frame of type 17"),
    "end from a receiver": (lambda one: [Frame(T.END, alias=one.alias)], "frame of type 22"),
    "abort from a receiver": (lambda one: [Frame(T.ABORT, alias=one.alias)], "frame of type 23"),
}


@hubs
@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_receivers_offence_loses_it_the_stream_and_the_link(transport: str, answer: str) -> None:
    await offend_as_receiver(transport, *ANSWERS[answer])


@hubs
async def test_what_is_unknown_and_not_critical_is_skipped(transport: str) -> None:
    async with besieged(transport) as fed:
        Keeper().register(fed.server)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            opened, one = Forger().stream(*small(1))
            peer.send(Frame(12, body=b"later"), opened, Frame(99, alias=opened.alias, body=b"later"), one)
            peer.send(Frame(T.GRANT, alias=opened.alias, seq=5))
            await peer.receive(T.REPLY)
            await expect_life(peer)


@hubs
async def test_a_body_of_open_that_cannot_be_read_ends_its_stream_alone(transport: str) -> None:
    async with besieged(transport) as fed:
        keeper = Keeper().register(fed.server)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            opened, one = Forger().stream(*small(1))
            known, _rest = bodies.split_opening(opened.body, max_routing=4096, max_body=4096)
            peer.send(opened._replace(body=bodies.join_opening(known, b"\xc1\xc1")), one)
            ended = await peer.receive(T.ENDED)
            assert bodies.decode(bodies.Ending, ended.body).rc == ReturnCode.BAD_REQUEST_DATA
            await expect_life(peer)
        assert keeper.log == []


@on_memory
async def test_a_site_outlives_a_hub_that_talks_nonsense(transport: str) -> None:
    nonsense: list[Frame | bytes] = [
        b"\xff" * 64,
        Frame(T.PING),
        hello("hub", magic=b"NOPE"),
    ]
    with anyio.fail_after(600):
        accepted = Accepted()
        listener = MemoryListener("hostile-hub", accepted)
        async with StreamEngine("site-1", connect="memory://hostile-hub") as site:
            Keeper().register(site)
            for thing in nonsense:
                async with RawPeer.over(await accepted.next()) as hub:
                    await hub.receive(T.HELLO)
                    hub.send(thing)
                    await expect_goodbye(hub, "")
            listener.close()
            accepted.close()
            async with StreamEngine("hub", listen="memory://hostile-hub") as honest:
                await honest.wait_for_sites(["site-1"])
                context = honest.new_context()
                result = await honest.stream_objects("models", "weights", {}, ["site-1"], Numbers(2), context)
                assert result.complete
                check_account(result)


async def test_a_raw_peer_tells_that_its_connection_ended(anyio_backend: Any) -> None:
    async with StreamEngine("server", listen="memory://short") as server, RawPeer.dial("memory://short") as peer:
        peer.send(b"\xff" * 64)
        await peer.receive(T.GOAWAY)
        with pytest.raises(ClosedError, match="the connection ended"):
            await peer.receive()
        assert server.sites() == set()
