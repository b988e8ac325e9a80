"""Who is dialled, and which link a stream takes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from fanstream import FLContext, Shareable, StreamContext, StreamEngine
from fanstream.protocol import bodies
from fanstream.protocol.frames import Flag, FrameType
from fanstream.testing import Frame, RawPeer
from fanstream.testing.peer import hello
from fanstream.transports import Wire
from fanstream.transports.memory import MemoryListener
from tests.federation import until


async def both_dial_at_once() -> None:
    async with StreamEngine("a") as a, StreamEngine("b") as b:
        for engine in (a, b):

            @engine.consumer("models", "weights")
            async def take(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Shareable:
                return Shareable({"n": shareable["n"]})

        replies: list[dict[str, Shareable]] = []

        async def send(engine: StreamEngine, other: str) -> None:
            async with engine.open_stream("models", "weights", [other]) as stream:
                for n in range(20):
                    replies.append(await stream.send(Shareable({"n": n})))
                    await anyio.lowlevel.checkpoint()
            assert stream.result is not None
            assert stream.result.complete, stream.result

        async with anyio.create_task_group() as tg:
            tg.start_soon(send, a, "b")
            tg.start_soon(send, b, "a")
        assert sum(reply["n"] for answers in replies for reply in answers.values()) == 2 * sum(range(20))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_engines_that_dial_each_other_at_once_lose_nothing(backend: str) -> None:
    anyio.run(both_dial_at_once, backend=backend)


@asynccontextmanager
async def dialled(engine: StreamEngine, name: str, *, hub: bool) -> AsyncIterator[RawPeer]:
    """Be what an engine dials at ``memory://above``, and greet it."""
    accepted: list[Wire] = []
    listener = MemoryListener("above", accepted.append)
    try:
        async with engine:
            await until(lambda: bool(accepted))
            async with RawPeer.over(accepted[0]) as peer:
                await peer.receive(FrameType.HELLO)
                peer.send(hello(name, hub=hub))
                await engine.wait_for_sites([name])
                yield peer
    finally:
        listener.close()


@pytest.mark.anyio
@pytest.mark.parametrize(("hub", "known"), [(True, {"above", "site-9"}), (False, {"above"})])
async def test_only_a_hub_is_believed_about_other_sites(hub: bool, known: set[str]) -> None:
    engine = StreamEngine("site-1", connect="memory://above")
    async with dialled(engine, "above", hub=hub) as peer:
        peer.send(
            Frame(FrameType.PRESENCE, body=bodies.encode(bodies.Presence(True, ["site-9", "site-1"], []))),
            Frame(FrameType.PING),
        )
        await peer.receive(FrameType.PONG)
        assert engine.sites() == known


@pytest.mark.anyio
async def test_a_stream_goes_through_one_hub_and_not_through_two() -> None:
    middle = StreamEngine("middle", listen="memory://middle", connect="memory://above")
    async with dialled(middle, "above", hub=True) as peer, StreamEngine("leaf", connect="memory://middle"):
        await middle.wait_for_sites(["leaf"])
        opening = bodies.Opening(b"s" * 16, "far", ["leaf"], "models", "weights", 2)
        peer.send(Frame(FrameType.OPEN, 2, body=bodies.join_opening(opening, b""), flags=Flag.CRITICAL))
        refused = bodies.decode(bodies.Cause, (await peer.receive(FrameType.REFUSED)).body)
        assert (refused.rc, refused.reason) == ("COMMUNICATION_ERROR", "middle knows no way to leaf")


@pytest.mark.anyio
async def test_what_a_hub_leads_to_is_forgotten_with_it() -> None:
    engine = StreamEngine("site-1", connect="memory://above")
    async with dialled(engine, "above", hub=True) as peer:
        peer.send(Frame(FrameType.PRESENCE, body=bodies.encode(bodies.Presence(True, ["site-9"], []))))
        await engine.wait_for_sites(["site-9"])
        peer.close()
        await until(lambda: not engine.sites())
        assert engine._links._sites.beyond == {}
