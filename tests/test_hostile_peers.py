"""Peers that break the rules, or keep to them as slowly as they can, against a hub that has honest work to do."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest

from fanstream import EngineSettings, Limits, ReturnCode, Shareable, StreamEngine, StreamOptions
from fanstream.errors import ClosedError
from fanstream.protocol import bodies
from fanstream.protocol.frames import CHUNK, HEADER, PAYLOAD, PAYLOAD_SIZE, Flag, FrameType
from fanstream.testing import FaultyNetwork, Frame, RawPeer
from fanstream.testing.conformance import Accepted
from fanstream.testing.frames import FrameCutter
from fanstream.testing.peer import hello
from fanstream.transports import parse_all
from fanstream.transports.memory import MemoryListener
from tests.federation import (
    QUICK,
    Federation,
    Keeper,
    Numbers,
    check_account,
    delayed,
    federation,
    hubs,
    is_real,
    on_memory,
    over_sockets,
    until,
)
from tests.protocol.linked import CODEC, Side, encoded

pytestmark = pytest.mark.anyio

T = FrameType
Bytes = Iterable[Frame | bytes]


class Forger:
    """Makes the frames of an honest opener, to be bent: a link core that speaks as *name* and never hears.

    Args:
        name: the site that it speaks as.
        backlog: the backlog that its streams announce.
    """

    def __init__(self, name: str = "stranger", backlog: int = 8) -> None:
        self._side = Side(name, dialler=True)
        self._name = name
        self._backlog = backlog
        self._side.output()
        self._side.feed(hello("server", hub=True, window=2**40, relay_window=2**40).pack())

    def _said(self) -> list[Frame]:
        return FrameCutter().feed(self._side.output())

    def stream(
        self, *payloads: dict[str, Any], target: str = "server", opener: str | None = None, stream: bytes | None = None
    ) -> list[Frame]:
        """OPEN, and all of some objects."""
        opening = bodies.Opening(
            stream or os.urandom(16), opener or self._name, [target], "models", "weights", self._backlog
        )
        body = CODEC.encode_value({"stream_ctx": {}, "props": {}, "job": ""}, limit=4096)
        leg = self._side.core.open(opening, 0, body)
        for seq, payload in enumerate(payloads):
            leg.send(seq, encoded(**payload), 5000)
        return self._said()


def small(count: int) -> list[dict[str, Any]]:
    return [{"n": number} for number in range(count)]


LARGE = {"n": 0, "w": np.arange(2000.0)}  # 16 kB: out of band, and small enough to need no grant
HEADER_OF_TRAILER = HEADER.pack(8, T.PING, 0, 0, 0, 0, 0, 8) + bytes(8)


@asynccontextmanager
async def besieged(
    transport: str, sites: int = 1, *, settings: EngineSettings | None = None
) -> AsyncIterator[Federation]:
    """A hub and honest sites, with a stream between them that runs on whatever happens; nothing may be left of it."""
    async with federation(transport, sites, settings=settings) as fed:
        for site in fed.sites.values():
            Keeper().register(site)
        honest = fed.server.open_stream("models", "weights", list(fed.sites))
        async with honest as stream:
            await stream.send(Shareable({"n": 0}), timeout=300)
            yield fed
            replies = await stream.send(Shareable({"n": 1}), timeout=5)
            assert {reply.get_return_code() for reply in replies.values()} == {"OK"}
        assert stream.result is not None
        assert stream.result.complete, "other links are untouched"
        await until(lambda: fed.server.sites() == set(fed.sites))
        assert (await fed.stream(Numbers(2))).complete


async def expect_goodbye(peer: RawPeer, reason: str) -> None:
    """The engine names the offence, and closes."""
    goodbye = bodies.decode(bodies.Goodbye, (await peer.receive(T.GOAWAY)).body)
    assert goodbye.code == "protocol"
    assert reason in goodbye.reason
    await peer.closed()


async def expect_life(peer: RawPeer) -> None:
    """The engine still answers."""
    peer.send(Frame(T.PING))
    await peer.receive(T.PONG)


def address(fed: Federation) -> str:
    return fed.server.addresses[0]


# --- offences that end the link ---


def chunk(frame: Frame, *, buffer: int = 0, zero: int = 0, offset: int = 0, data: bytes | None = None) -> Frame:
    rest = frame.body[CHUNK.size :] if data is None else data
    return frame._replace(body=CHUNK.pack(buffer, zero, offset) + rest)


def bent_payload(frame: Frame, *, buffers: int | None = None, total: int | None = None) -> Frame:
    head = list(PAYLOAD.unpack_from(frame.body))
    if buffers is not None:
        head[1] = buffers
    if total is not None:
        head[2] = total
    return frame._replace(body=PAYLOAD.pack(*head) + frame.body[PAYLOAD_SIZE:])


def large(bend: Callable[[Frame], Frame]) -> Callable[[Forger], Bytes]:
    """OPEN and the head of a large object, with its first chunk bent."""

    def make(forger: Forger) -> Bytes:
        opened, head, data = forger.stream(LARGE)
        return [opened, head, bend(data)]

    return make


def first(bend: Callable[[Frame], Frame]) -> Callable[[Forger], Bytes]:
    """OPEN bent."""
    return lambda forger: [bend(forger.stream()[0])]


def opening(**fields: Any) -> Callable[[Forger], Bytes]:
    """OPEN with fields of its routing part replaced."""

    def make(forger: Forger) -> Bytes:
        (frame,) = forger.stream()
        known, rest = bodies.split_opening(memoryview(frame.body), max_routing=4096, max_body=4096)
        changed = msgspec.structs.replace(known, **fields)
        return [frame._replace(body=bodies.join_opening(changed, bytes(rest)))]

    return make


def second_object(bend: Callable[[Frame], Frame]) -> Callable[[Forger], Bytes]:
    """OPEN and two small objects, the second bent."""

    def make(forger: Forger) -> Bytes:
        opened, one, two = forger.stream(*small(2))
        return [opened, one, bend(two)]

    return make


def after_object(kind: FrameType, **fields: Any) -> Callable[[Forger], Bytes]:
    """OPEN, a small object, and a frame of some kind of the same stream."""

    def make(forger: Forger) -> Bytes:
        opened, one = forger.stream(*small(1))
        return [opened, one, Frame(kind, alias=opened.alias, **fields)]

    return make


def just(*things: Frame | bytes) -> Callable[[Forger], Bytes]:
    return lambda forger: things


def longer(kind: int, limit: int) -> bytes:
    """A header alone that announces a body of one byte over the limit."""
    return HEADER.pack(limit + 1, kind, 0, 0, 0, 0, 0, 0)


KIB = 1024
OFFENCES: dict[str, tuple[Callable[[Forger], Bytes], str]] = {
    "gap": (second_object(lambda two: two._replace(seq=2)), "object 2 from stranger skips 1"),
    "far gap": (second_object(lambda two: two._replace(seq=2**64 - 1)), "skips 1"),
    "object after the end": (
        lambda forger: [*forger.stream(*small(1)), Frame(T.END, alias=1, seq=1), Frame(T.OBJECT, alias=1, seq=1)],
        "object 1 from stranger after the end at 1",
    ),
    "end before what was sent": (after_object(T.END, seq=0), "END after 0 objects from stranger, which has sent 1"),
    "end after another end": (
        lambda forger: [*forger.stream(*small(1)), Frame(T.END, alias=1, seq=3), Frame(T.END, alias=1, seq=2)],
        "END after 2 objects",
    ),
    "backlog": (
        lambda forger: Forger(backlog=2).stream(*({"n": number, "block": True} for number in range(3))),
        "object 2 from stranger: 2 unanswered, limit 2",
    ),
    "chunk at a later offset": (large(lambda data: chunk(data, offset=1)), "CHUNK at buffer 0, offset 1; expected"),
    "chunk at a far offset": (large(lambda data: chunk(data, offset=2**64 - 1)), "CHUNK at buffer 0, offset"),
    "chunk of another buffer": (large(lambda data: chunk(data, buffer=1)), "CHUNK at buffer 1, offset 0"),
    "chunk too long": (large(lambda data: chunk(data, data=bytes(16_001))), "CHUNK of 16001 bytes, 16000 left"),
    "chunk of nothing": (large(lambda data: chunk(data, data=b"")), "CHUNK of 0 bytes"),
    "chunk with a reserved field": (large(lambda data: chunk(data, zero=7)), "CHUNK with 7 in its reserved field"),
    "chunk of no object": (large(lambda data: data._replace(seq=7)), "CHUNK for object 7"),
    "chunk of a stranger's stream": (large(lambda data: data._replace(alias=99)), "stream 99, which was never opened"),
    "chunk of the engine's own": (large(lambda data: data._replace(alias=2)), "stream 2, which was never opened"),
    "object of a stranger's stream": (just(Frame(T.OBJECT, alias=41)), "stream 41, which was never opened"),
    "reply that nobody asked for": (just(Frame(T.REPLY, alias=2)), "stream 2, which was never opened"),
    "end of a stranger's stream": (just(Frame(T.END, alias=43)), "stream 43, which was never opened"),
    "grant on a stranger's stream": (just(Frame(T.GRANT, alias=4)), "stream 4, which was never opened"),
    "object of no stream": (just(Frame(T.OBJECT)), "stream 0, which was never opened"),
    "reply on a receiver's stream": (after_object(T.REPLY), "frame of type 19"),
    "ended on a receiver's stream": (after_object(T.ENDED), "frame of type 25"),
    "refused on a receiver's stream": (after_object(T.REFUSED), "frame of type 26"),
    "ending on a receiver's stream": (after_object(T.ENDING), "frame of type 24"),
    "suspended, which is reserved": (after_object(T.SUSPENDED), "frame of type 28"),
    "resume, which is reserved": (after_object(T.RESUME), "frame of type 29"),
    "open on an open stream": (after_object(T.OPEN), "frame of type 16"),
    "ping on a stream": (after_object(T.PING), "frame of type 2"),
    "abort of garbage": (after_object(T.ABORT, body=b"\xc1"), "Cause body of 1 bytes cannot be decoded"),
    "lost of garbage": (after_object(T.LOST, body=b"\x93"), "Cause body of 1 bytes cannot be decoded"),
    "spoofed opener": (lambda forger: forger.stream(opener="site-1"), "stranger opens a stream in the name of site-1"),
    "spoofed hub": (lambda forger: forger.stream(opener="server"), "stranger opens a stream in the name of server"),
    "open of stream 0": (first(lambda frame: frame._replace(alias=0)), "OPEN names stream 0"),
    "open with the engine's numbering": (first(lambda frame: frame._replace(alias=8)), "OPEN names stream 8"),
    "open of an older number": (
        lambda forger: [forger.stream()[0]._replace(alias=7), forger.stream()[0]],
        "OPEN names stream 3",
    ),
    "open of no target": (first(lambda frame: frame._replace(target=1)), "target 1 of 1"),
    "open with a short id": (opening(stream=b"short"), "an id of 5 bytes"),
    "open with no backlog": (opening(backlog=0), "a backlog of 0"),
    "open without targets": (opening(targets=[]), "target 0 of 0"),
    "open of garbage": (first(lambda frame: frame._replace(body=b"\4\0\0\0\xc1\xc1\xc1\xc1")), "cannot be decoded"),
    "open of nothing": (first(lambda frame: frame._replace(body=b"")), "OPEN of 0 bytes"),
    "open whose routing overruns": (first(lambda frame: frame._replace(body=b"\xff\xff\0\0")), "routing part of 65535"),
    "payload too short": (second_object(lambda two: two._replace(body=b"x" * 5)), "payload head of 5 bytes"),
    "payload of too many buffers": (second_object(partial(bent_payload, buffers=10**6)), "object of 1000000 buffers"),
    "payload of bytes in no buffer": (second_object(partial(bent_payload, total=9)), "without buffers announces 9"),
    "payload whose sum is wrong": (
        lambda forger: [(frames := forger.stream(LARGE))[0], bent_payload(frames[1], total=5)],
        "5 announced",
    ),
    "envelope of garbage": (
        second_object(lambda two: two._replace(body=two.body[:PAYLOAD_SIZE] + b"\xc1\xc1")),
        "object 1 from stranger",
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
    "long ping": (just(longer(T.PING, 16 * KIB)), "frame of type 2 with 16385 bytes, limit 16384"),
    "long abort": (just(longer(T.ABORT, 16 * KIB)), "limit 16384"),
    "long unknown": (just(longer(77, 16 * KIB)), "limit 16384"),
    "long open": (just(longer(T.OPEN, 4 + 320 * KIB)), f"limit {4 + 320 * KIB}"),
    "long object": (just(longer(T.OBJECT, PAYLOAD_SIZE + 160_000 + 256 * KIB)), "frame of type 17"),
    "long reply": (just(longer(T.REPLY, PAYLOAD_SIZE + 160_000 + 256 * KIB)), "frame of type 19"),
    "long ended": (just(longer(T.ENDED, 272 * KIB)), "frame of type 25"),
    "long presence": (just(longer(T.PRESENCE, 1024 * KIB)), "frame of type 4"),
    "long hello": (just(longer(T.HELLO, 64 * KIB)), "frame of type 1 with 65537 bytes, limit 65536"),
    "long chunk": (
        just(HEADER.pack(16 + 1024 * KIB + 1, T.CHUNK, 0, 0, 1, 0, 0, 0) + CHUNK.pack(0, 0, 0)),
        "CHUNK of 1048577",
    ),
    "longest length": (just(HEADER.pack(2**32 - 1, T.PING, 0, 0, 0, 0, 0, 0)), "with 4294967295 bytes"),
}


class Answering(Keeper):
    """A keeper that blocks on objects that ask for it."""

    def __init__(self) -> None:
        super().__init__()
        self.do = self._answer

    async def _answer(self, n: int) -> None:
        if self.blocking:
            await self.block()

    blocking = False


@hubs
@pytest.mark.parametrize("offence", OFFENCES)
async def test_an_offence_ends_its_link_by_name_and_no_other(transport: str, offence: str) -> None:
    make, reason = OFFENCES[offence]
    async with besieged(transport) as fed:
        keeper = Answering()
        keeper.blocking = offence == "backlog"
        keeper.register(fed.server)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            await until(lambda: "stranger" in fed.server.sites())
            peer.send(*make(Forger()))
            await expect_goodbye(peer, reason)
        await until(lambda: "stranger" not in fed.server.sites())
        # Streams on the link end by the contract, where one had begun to be consumed.
        await until(lambda: len(keeper.rcs) == keeper.log.count("get_consumer"))
        assert set(keeper.rcs) <= {"COMMUNICATION_ERROR", "OK"}


GREETINGS: dict[str, tuple[Frame | bytes, str]] = {
    "http": (b"GET / HTTP/1.1\r\nHost: example\r\n\r\n", "frame of type 47"),
    "zeroes": (bytes(64), "frame of type 0"),
    "ones": (b"\xff" * 64, "trailer of 65535 bytes"),
    "ping": (Frame(T.PING), "frame of type 2 while the link is GREETING"),
    "open": (Frame(T.OPEN, alias=1), "frame of type 16 while the link is GREETING"),
    "unknown": (Frame(99), "frame of type 99"),
    "garbage hello": (Frame(T.HELLO, body=b"\xc1\xc1"), "Hello body of 2 bytes cannot be decoded"),
    "empty hello": (Frame(T.HELLO), "Hello body of 0 bytes cannot be decoded"),
    "wrong magic": (hello("stranger", magic=b"SNAF"), "HELLO with magic b'SNAF'"),
    "future": (hello("stranger", low=9, high=12), "peer speaks versions 9 to 12, this side 1 to 1"),
    "past": (hello("stranger", low=0, high=0), "peer speaks versions 0 to 0"),
    "no name": (hello(""), "HELLO from '', which is no site's name"),
    "path for a name": (hello("../../etc"), "HELLO from '../../etc'"),
    "long name": (hello("x" * 64), "which is no site's name"),
    "short incarnation": (hello("stranger", incarnation=b"x"), "an incarnation of 1 bytes"),
    "small frame": (hello("stranger", frame=1), "frame 1"),
    "negative window": (hello("stranger", window=-1), "window -1"),
    "no backlog": (hello("stranger", backlog=0), "backlog 0"),
    "long hello": (longer(T.HELLO, 64 * KIB), "65537 bytes, limit 65536"),
}


@hubs
@pytest.mark.parametrize("greeting", GREETINGS)
async def test_a_greeting_that_is_none_is_answered_by_name(transport: str, greeting: str) -> None:
    said, reason = GREETINGS[greeting]
    async with besieged(transport) as fed, RawPeer.dial(address(fed)) as peer:
        peer.send(said)
        await expect_goodbye(peer, reason)


@hubs
async def test_the_name_of_the_hub_or_of_an_honest_site_cannot_be_had(transport: str) -> None:
    # An answer to the probe has to take some time: one that comes at the same moment is not seen.
    with FaultyNetwork(delayed(0.001)):
        async with besieged(transport) as fed:
            for name in ("server", "site-1"):
                async with RawPeer.dial(address(fed)) as peer:
                    peer.send(hello(name))
                    goodbye = bodies.decode(bodies.Goodbye, (await peer.receive(T.GOAWAY)).body)
                    assert goodbye.code == "name-in-use"
                    await peer.closed()


# --- oddities that the link outlives ---


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
            peer.send(one, two, Frame(T.CREDIT, alias=opened.alias, seq=9), Frame(T.ABORT, alias=opened.alias))
            await expect_life(peer)


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


@hubs
async def test_a_body_of_open_that_cannot_be_read_ends_its_stream_alone(transport: str) -> None:
    async with besieged(transport) as fed:
        keeper = Keeper().register(fed.server)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            opened, one = Forger().stream(*small(1))
            known, _rest = bodies.split_opening(memoryview(opened.body), max_routing=4096, max_body=4096)
            peer.send(opened._replace(body=bodies.join_opening(known, b"\xc1\xc1")), one)
            ended = await peer.receive(T.ENDED)
            assert bodies.decode(bodies.Ending, ended.body).rc == ReturnCode.BAD_REQUEST_DATA
            await expect_life(peer)
        assert keeper.log == []


@hubs
async def test_a_flood_of_pings_is_answered(transport: str) -> None:
    async with besieged(transport) as fed, RawPeer.dial(address(fed)) as peer:
        await peer.greet()
        for _ in range(20):
            peer.send(Frame(T.PING).pack() * 1000)
        await peer.receive(T.PONG)  # one may answer many
        await expect_life(peer)


# --- a receiver that breaks the rules ---

ANSWERS: dict[str, tuple[Callable[[Frame], Bytes], str]] = {
    "reply to what was not sent": (lambda one: [Frame(T.REPLY, alias=one.alias, seq=5)], "REPLY 5 from stranger"),
    "ended after too many": (
        lambda one: [Frame(T.ENDED, alias=one.alias, seq=9, body=bodies.encode(bodies.Ending("OK")))],
        "ENDED after 9 replies from stranger: 1 objects were sent",
    ),
    "ended of garbage": (lambda one: [Frame(T.ENDED, alias=one.alias, body=b"\xc1")], "Ending body of 1 bytes"),
    "refused of garbage": (lambda one: [Frame(T.REFUSED, alias=one.alias, body=b"")], "Cause body of 0 bytes"),
    "reply of garbage": (lambda one: [Frame(T.REPLY, alias=one.alias, body=b"x")], "payload head of 1 bytes"),
    "chunk of no reply": (
        lambda one: [Frame(T.CHUNK, alias=one.alias, body=CHUNK.pack(0, 0, 0) + b"x")],
        "CHUNK for object 0",
    ),
    "object from a receiver": (lambda one: [Frame(T.OBJECT, alias=one.alias)], "frame of type 17"),
    "end from a receiver": (lambda one: [Frame(T.END, alias=one.alias)], "frame of type 22"),
    "abort from a receiver": (lambda one: [Frame(T.ABORT, alias=one.alias)], "frame of type 23"),
}


@hubs
@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_receivers_offence_loses_it_the_stream_and_the_link(transport: str, answer: str) -> None:
    make, reason = ANSWERS[answer]
    async with besieged(transport) as fed, RawPeer.dial(address(fed)) as peer:
        await peer.greet()
        await until(lambda: "stranger" in fed.server.sites())
        producer = Numbers(2, timeout=30)
        async with anyio.create_task_group() as tg:

            async def attack() -> None:
                one = await peer.receive(T.OBJECT)
                peer.send(*make(one))
                await expect_goodbye(peer, reason)

            tg.start_soon(attack)
            result = await fed.stream(producer, ["site-1", "stranger"])
        assert producer.rcs("site-1") == ["OK", "OK"]
        assert producer.rcs("stranger") == ["COMMUNICATION_ERROR"] * 2
        assert result.sites["stranger"].outcomes == {"lost": 1, "unreachable": 1}


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


class Arrays(Numbers):
    """Numbers, each with 800 kB of array."""

    async def produce(self, stream_ctx: Any, fl_ctx: Any) -> Any:
        obj, timeout = await super().produce(stream_ctx, fl_ctx)
        if obj is not None:
            obj["w"] = np.full(100_000, obj["n"], dtype=np.float64)
        return obj, timeout


@hubs
@pytest.mark.parametrize("grants", [False, True], ids=["never grants", "grants and never credits"])
async def test_a_receiver_that_holds_everything_up_delays_itself_alone(transport: str, grants: bool) -> None:
    real = is_real(transport)
    timeout, end_timeout = (0.2, 0.2) if real else (30, 10)
    async with besieged(transport) as fed, RawPeer.dial(address(fed)) as peer:
        await peer.greet(frame=4096, window=4096, relay_window=4096)
        await until(lambda: "stranger" in fed.server.sites())
        producer = Arrays(3, timeout=timeout)
        received = 0

        async def read() -> None:
            nonlocal received
            while True:
                frame = await peer.receive()
                if frame.kind == T.OBJECT and grants:
                    peer.send(Frame(T.GRANT, alias=frame.alias, seq=frame.seq))
                if frame.kind == T.CHUNK:
                    received += len(frame.body)
                if frame.kind == T.PING:
                    peer.send(Frame(T.PONG))

        async with anyio.create_task_group() as tg:
            tg.start_soon(read)
            began = anyio.current_time()
            options = StreamOptions(max_lag=3, end_timeout=end_timeout)
            result = await fed.stream(producer, ["site-1", "stranger"], options=options)
            took = anyio.current_time() - began
            tg.cancel_scope.cancel()
        assert producer.rcs("site-1") == ["OK"] * 3
        assert producer.rcs("stranger") == ["TIMEOUT"] * 3
        assert result.sites["stranger"].outcomes == {"timed_out": 3}
        assert received <= 2 * 4096 + 100, "the window, and one frame"
        if not real:
            assert took == pytest.approx(3 * timeout + end_timeout, abs=0.01)


@on_memory
async def test_a_peer_that_never_reads_delays_itself_alone(transport: str) -> None:
    with FaultyNetwork() as network:
        async with besieged(transport) as fed, RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            await until(lambda: "stranger" in fed.server.sites())
            network.link("stranger").down.stall()

            async def breathe() -> None:
                while True:
                    peer.send(Frame(T.PING))
                    await anyio.sleep(5)

            async with anyio.create_task_group() as tg:
                tg.start_soon(breathe)
                producer = Arrays(4, timeout=20)
                result = await fed.stream(producer, ["site-1", "stranger"], options=StreamOptions(max_lag=4))
                tg.cancel_scope.cancel()
            assert producer.rcs("site-1") == ["OK"] * 4
            assert result.sites["stranger"].outcomes == {"timed_out": 4}


@over_sockets
async def test_a_peer_that_never_reads_a_socket_delays_itself_alone(transport: str) -> None:
    async with besieged(transport) as fed:
        wire = dial_unread(fed)
        try:
            wire.send(hello("stranger").pack())
            await until(lambda: "stranger" in fed.server.sites())
            producer = Arrays(4, timeout=0.2)
            options = StreamOptions(max_lag=4, end_timeout=0.2)
            result = await fed.stream(producer, ["site-1", "stranger"], options=options)
            assert producer.rcs("site-1") == ["OK"] * 4
            assert result.sites["stranger"].outcomes == {"timed_out": 4}
        finally:
            wire.close()


def dial_unread(fed: Federation) -> socket.socket:
    """Connect a plain socket to the hub, which accepts it later."""
    (where,) = parse_all(address(fed), "address")
    sock = socket.socket(socket.AF_UNIX if where.scheme == "unix" else socket.AF_INET)
    sock.connect(where.path if where.scheme == "unix" else (where.host, where.port))
    return sock


# --- slowness ---


@on_memory
@pytest.mark.parametrize("said", ["nothing", "a byte each second", "half and then nothing"])
async def test_a_greeting_has_ten_seconds(transport: str, said: str) -> None:
    async with besieged(transport) as fed, RawPeer.dial(address(fed)) as peer:
        began = anyio.current_time()
        whole = hello("stranger").pack()
        if said == "half and then nothing":
            peer.send(whole[:40])
        elif said == "a byte each second":
            async with anyio.create_task_group() as tg:

                async def drip() -> None:
                    for at in range(len(whole)):
                        peer.send(whole[at : at + 1])
                        await anyio.sleep(1)

                tg.start_soon(drip)
                await peer.closed()
                tg.cancel_scope.cancel()
        await peer.closed()
        assert anyio.current_time() - began == pytest.approx(10, abs=0.01)


@over_sockets
async def test_a_greeting_has_its_time_on_a_socket_too(transport: str) -> None:
    settings = EngineSettings(limits=Limits(hello_timeout=0.2))
    async with besieged(transport, settings=settings) as fed, RawPeer.dial(address(fed)) as peer:
        peer.send(hello("stranger").pack()[:40])
        began = anyio.current_time()
        await peer.closed()
        assert 0.15 < anyio.current_time() - began < 2


@hubs
async def test_those_who_have_not_greeted_are_bounded(transport: str) -> None:
    settings = EngineSettings(limits=Limits(half_open=4))
    async with besieged(transport, settings=settings) as fed:
        async with anyio.create_task_group() as tg:
            ended = 0
            enough = anyio.Event()

            async def linger() -> None:
                nonlocal ended
                async with RawPeer.dial(address(fed)) as peer:
                    await peer.closed()
                    ended += 1
                    if ended == 6:
                        enough.set()
                    await anyio.sleep_forever()

            for _ in range(10):
                tg.start_soon(linger)
            with anyio.fail_after(5):
                await enough.wait()
            assert ended == 6, "those beyond four are turned away at once"
            tg.cancel_scope.cancel()
        await until(lambda: len(fed.server._links) == 1)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()


@on_memory
async def test_half_a_frame_and_then_silence_ends_the_link_as_any_silence(transport: str) -> None:
    async with besieged(transport) as fed:
        keeper = Keeper().register(fed.server)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            opened, one, data = Forger().stream(LARGE)
            peer.send(opened, one, data.pack()[:5000])
            began = anyio.current_time()
            await peer.closed()
            assert anyio.current_time() - began == pytest.approx(15, abs=0.01)
        assert keeper.log == []


@on_memory
async def test_a_started_frame_finishes_in_thirty_seconds(transport: str) -> None:
    async with besieged(transport) as fed, RawPeer.dial(address(fed)) as peer:
        await peer.greet()
        whole = Frame(T.PRESENCE, body=bytes(1000)).pack()
        began = anyio.current_time()
        async with anyio.create_task_group() as tg:

            async def drip() -> None:
                for at in range(40):
                    peer.send(whole[at : at + 1])
                    await anyio.sleep(5)
                tg.cancel_scope.cancel()

            tg.start_soon(drip)
            await peer.closed()
            tg.cancel_scope.cancel()
        assert anyio.current_time() - began < 40


# --- floods by those who do not read ---

FLOODS: dict[str, Callable[[Frame, Frame], Iterable[Frame]]] = {
    "pings": lambda opened, one: [Frame(T.PING)] * 150_000,
    "openings": lambda opened, one: (opened._replace(alias=alias) for alias in range(3, 100_000, 2)),
    "duplicates": lambda opened, one: [one] * 2000,
}
"""What a peer goes on to send that has opened a stream and sent an object on it."""


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


# --- a hub, or what pretends to be one ---


@hubs
async def test_an_offence_through_a_hub_ends_that_stream_alone(transport: str) -> None:
    async with besieged(transport, 2) as fed:
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet()
            opened, one, two = Forger().stream(*small(2), target="site-2")
            peer.send(opened, one, two._replace(seq=5))
            refused = await peer.receive(T.REFUSED)
            cause = bodies.decode(bodies.Cause, refused.body)
            assert (cause.rc, cause.who) == ("BAD_REQUEST_DATA", "site-2")
            assert "object 5 from stranger skips 1" in cause.reason
            await expect_life(peer)
        assert len(fed.sites["site-2"]._links) == 1, "the link between hub and site lives"


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
