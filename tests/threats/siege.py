"""Hostile peers against a hub that has honest work to do: what the modules of this package share."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import numpy as np

from fanstream import EngineSettings, Shareable
from fanstream.protocol import bodies
from fanstream.protocol.frames import CHUNK, HEADER, PAYLOAD, PAYLOAD_SIZE, FrameType
from fanstream.testing import Frame, RawPeer
from fanstream.testing.frames import FrameCutter
from fanstream.testing.peer import hello
from fanstream.transports import parse_all
from tests.federation import (
    Federation,
    Keeper,
    Numbers,
    federation,
    until,
)
from tests.protocol.linked import CODEC, Side, encoded

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
        for engine in fed.engines:  # peers that are gone may come back for so long, and would hear what they missed
            engine._links._resuming.clear()


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
        known, rest = bodies.split_opening(frame.body, max_routing=4096, max_body=4096)
        changed = msgspec.structs.replace(known, **fields)
        return [frame._replace(body=bodies.join_opening(changed, rest))]

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


class Answering(Keeper):
    """A keeper that blocks on objects that ask for it."""

    def __init__(self) -> None:
        super().__init__()
        self.do = self._answer

    async def _answer(self, n: int) -> None:
        if self.blocking:
            await self.block()

    blocking = False


class Arrays(Numbers):
    """Numbers, each with 800 kB of array."""

    async def produce(self, stream_ctx: Any, fl_ctx: Any) -> Any:
        obj, timeout = await super().produce(stream_ctx, fl_ctx)
        if obj is not None:
            obj["w"] = np.full(100_000, obj["n"], dtype=np.float64)
        return obj, timeout


def dial_unread(fed: Federation) -> socket.socket:
    """Connect a plain socket to the hub, which accepts it later."""
    (where,) = parse_all(address(fed), "address")
    sock = socket.socket(socket.AF_UNIX if where.scheme == "unix" else socket.AF_INET)
    sock.connect(where.path if where.scheme == "unix" else (where.host, where.port))
    return sock


Offence = tuple[Callable[[Forger], Bytes], str]
"""What a peer sends, and what the engine says of it."""


async def offend(transport: str, make: Callable[[Forger], Bytes], reason: str, *, block: bool = False) -> None:
    """An offence ends its link, by name, and nothing else."""
    async with besieged(transport) as fed:
        keeper = Answering()
        keeper.blocking = block
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


async def offend_as_receiver(transport: str, make: Callable[[Frame], Bytes], reason: str) -> None:
    """The same by a site that was sent an object."""
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
