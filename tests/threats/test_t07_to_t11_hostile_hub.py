"""T7 to T11: a hub that forwards sealed streams and lies may lose them, and is believed in nothing else.

What a lying member can do is tried without engines, in ``tests/security/sealed``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import anyio
import numpy as np
import pytest

from fanstream import ReturnCode, Shareable, StreamEngine, StreamOptions, StreamResult
from fanstream.errors import SecurityError
from fanstream.protocol import bodies
from fanstream.protocol.frames import Flag, FrameType
from fanstream.testing import FaultyNetwork, Frame, asyncio_backend
from tests.federation import Federation, Keeper, Numbers, on_memory
from tests.security.kits import identities
from tests.security.test_secure_streams import SETTINGS, secured

pytestmark = pytest.mark.anyio
# One backend is enough for what differs in frames alone.
on_asyncio = pytest.mark.parametrize(
    ("anyio_backend", "transport"),
    [pytest.param(asyncio_backend(), "memory", id="asyncio-memory")],
    indirect=["anyio_backend"],
    scope="module",
)

OBJECTS = 6
Rewrite = Callable[[Frame], Iterable[Frame]]


class Bulky(Numbers):
    """The same numbers, each with an array of some sealed chunks beside it."""

    async def produce(self, stream_ctx: Any, fl_ctx: Any) -> tuple[Shareable | None, Any]:
        obj, timeout = await super().produce(stream_ctx, fl_ctx)
        if obj is not None:
            obj["w"] = np.full(3000, obj["n"])
        return obj, timeout


async def through_liar(
    transport: str,
    *,
    to_site: Rewrite | None = None,
    to_opener: Rewrite | None = None,
) -> tuple[StreamResult, Keeper, Numbers]:
    """Stream from site-1 to site-2 through a hub whose frames to either are rewritten, once pre-keys were exchanged."""
    with FaultyNetwork() as network:
        async with secured(transport, 2, settings=SETTINGS) as fed:
            keeper = Keeper().register(fed.sites["site-2"])
            producer = Bulky(OBJECTS, timeout=5.0)
            network.link("site-2").down.rewrite = to_site
            network.link("site-1").down.rewrite = to_opener
            options = StreamOptions(window=2, end_timeout=2.0)
            result = await fed.stream(producer, ["site-2"], opener=fed.sites["site-1"], secure=True, options=options)
            await settled(fed, network)
    return result, keeper, producer


async def settled(fed: Federation, network: FaultyNetwork) -> None:
    """Stop lying, and break the links: what a lie has left at the hub alone goes with them."""
    for engine in fed.engines:
        for stream in list(engine._incoming):
            stream.stop(ReturnCode.TASK_ABORTED, "the test ends")
    for link in network.links:
        link.up.rewrite = link.down.rewrite = None
        link.cut()
    await anyio.sleep(120)


def check_honest(result: StreamResult, keeper: Keeper, producer: Numbers) -> None:
    """What was consumed was sent, in its order, once; what is told as a reply was one."""
    assert keeper.seen == list(range(len(keeper.seen)))
    for seq, replies in enumerate(producer.replies):
        reply = replies.get("site-2")
        if reply is not None and reply.get_return_code() == ReturnCode.OK:
            assert (reply["n"], seq < len(keeper.seen)) == (seq, True)
    if ReturnCode.OK in keeper.rcs:
        assert len(keeper.seen) == OBJECTS


def of_stream(frame: Frame) -> bool:
    return frame.kind >= FrameType.OPEN and frame.kind not in (FrameType.CREDIT, FrameType.GRANT, FrameType.ALLOW)


class Lie:
    """Changes the n-th frame of what goes one way, credit aside; what the pre-keys are asked with comes first."""

    def __init__(self, number: int, change: Callable[[Frame], list[Frame]]) -> None:
        self._left = number
        self._change = change
        self.told = False

    def __call__(self, frame: Frame) -> list[Frame]:
        if self.told or not of_stream(frame):
            return [frame]
        self._left -= 1
        if self._left >= 0:
            return [frame]
        self.told = True
        return self._change(frame)


def flipped(at: float) -> Callable[[Frame], list[Frame]]:
    def flip(frame: Frame) -> list[Frame]:
        body = bytearray(frame.body)
        if body:
            body[int(at * (len(body) - 1))] ^= 0x10
        return [frame._replace(body=bytes(body))]

    return flip


def dropped(frame: Frame) -> list[Frame]:
    return []


def doubled(frame: Frame) -> list[Frame]:
    return [frame, frame]


def final(frame: Frame) -> list[Frame]:
    return [frame._replace(flags=frame.flags ^ Flag.FINAL)]


def instead(kind: FrameType, body: bytes, seq: int = 0, flags: int = 0) -> Callable[[Frame], list[Frame]]:
    return lambda frame: [frame._replace(kind=kind, body=body, seq=seq, flags=flags)]


CAUSE = bodies.encode(bodies.Cause(ReturnCode.OK, "site-1", "forged"))
CHANGES: dict[str, Callable[[Frame], list[Frame]]] = {
    "flip first": flipped(0.0),
    "flip middle": flipped(0.5),
    "flip last": flipped(1.0),
    "drop": dropped,
    "double": doubled,
    "final": final,
}
TO_SITE = {
    **CHANGES,
    "end early": instead(FrameType.END, b"", 2),
    "withdraw": instead(FrameType.END, b"", 2, Flag.WITHDRAW),
    "abort": instead(FrameType.ABORT, CAUSE),
    "lost": instead(FrameType.LOST, CAUSE),
    "suspended": instead(FrameType.SUSPENDED, CAUSE),
    "done": instead(FrameType.DONE, b""),
}
TO_OPENER = {
    **CHANGES,
    "ended": instead(FrameType.ENDED, bodies.encode(bodies.Ending(ReturnCode.OK)), 2),
    "ending": instead(FrameType.ENDING, b""),
    "refused": instead(FrameType.REFUSED, CAUSE),
    "skipped": instead(FrameType.REFUSED, bodies.encode(bodies.Cause(ReturnCode.TOPIC_UNKNOWN, "site-2", ""))),
    "lost": instead(FrameType.LOST, CAUSE),
    "suspended": instead(FrameType.SUSPENDED, CAUSE),
}


@on_asyncio
@pytest.mark.parametrize("number", [0, 1, 3, 4, 6, 9])
@pytest.mark.parametrize("change", TO_SITE)
async def test_frames_to_a_site_that_are_changed(transport: str, change: str, number: int) -> None:
    lie = Lie(number, TO_SITE[change])
    try:
        outcome = await through_liar(transport, to_site=lie)
    except SecurityError:
        assert lie.told  # the pre-key was changed, and nothing was sent
    else:
        assert lie.told
        check_honest(*outcome)


@on_asyncio
@pytest.mark.parametrize("number", [0, 1, 3, 4, 6, 8])
@pytest.mark.parametrize("change", TO_OPENER)
async def test_frames_to_an_opener_that_are_changed(transport: str, change: str, number: int) -> None:
    lie = Lie(number, TO_OPENER[change])
    try:
        outcome = await through_liar(transport, to_opener=lie)
    except SecurityError:
        assert lie.told
    else:
        assert lie.told
        check_honest(*outcome)


def at_object(seq: int, change: Callable[[Frame], list[Frame]]) -> Rewrite:
    """Put something in place of an object of the sealed stream; the pre-key's own has object 0 alone."""
    return lambda frame: change(frame) if (frame.kind, frame.seq) == (FrameType.OBJECT, seq) else [frame]


def at_reply(seq: int, change: Callable[[Frame], list[Frame]]) -> Rewrite:
    return lambda frame: change(frame) if (frame.kind, frame.seq) == (FrameType.REPLY, seq) else [frame]


@on_memory
@pytest.mark.parametrize("lie", ["abort", "withdraw", "end early", "flip last"])
async def test_a_site_takes_a_lie_for_the_loss_of_the_stream(transport: str, lie: str) -> None:
    result, keeper, _ = await through_liar(transport, to_site=at_object(2, TO_SITE[lie]))
    assert keeper.seen == [0, 1]
    assert keeper.rcs == [ReturnCode.COMMUNICATION_ERROR]
    assert result.sites["site-2"].rc == ReturnCode.COMMUNICATION_ERROR


@on_memory
@pytest.mark.parametrize("lie", ["ended", "refused", "skipped", "flip last"])
async def test_an_opener_takes_a_lie_for_the_loss_of_the_site(transport: str, lie: str) -> None:
    result, _, producer = await through_liar(transport, to_opener=at_reply(2, TO_OPENER[lie]))
    assert result.sites["site-2"].rc == ReturnCode.COMMUNICATION_ERROR
    assert producer.rcs("site-2")[:3] == [ReturnCode.OK, ReturnCode.OK, ReturnCode.COMMUNICATION_ERROR]
    assert result.outcomes["replied"] == 2


@on_memory
async def test_two_streams_cannot_be_spliced(transport: str) -> None:
    """Objects of two streams of one opener to one site change places: neither is taken for the other's."""
    kept: list[Frame] = []

    def swap(frame: Frame) -> list[Frame]:
        if frame.kind != FrameType.OBJECT or frame.seq != 1:
            return [frame]
        kept.append(frame)
        if len(kept) != 2:
            return [] if len(kept) == 1 else [frame]
        one, two = kept
        return [one._replace(body=two.body), two._replace(body=one.body)]

    with FaultyNetwork() as network:
        async with secured(transport, 2, settings=SETTINGS) as fed:
            keeper = Keeper().register(fed.sites["site-2"])
            network.link("site-2").down.rewrite = swap
            async with anyio.create_task_group() as tg:
                for _ in range(2):
                    tg.start_soon(partial(fed.stream, opener=fed.sites["site-1"], secure=True), Numbers(3), ["site-2"])
            await settled(fed, network)
    assert keeper.seen == [0, 0]
    assert keeper.rcs == [ReturnCode.COMMUNICATION_ERROR] * 2


@on_memory
@pytest.mark.parametrize("restarted", [False, True], ids=["same life", "restarted"])
async def test_a_recorded_stream_is_refused(transport: str, restarted: bool) -> None:
    """The hub keeps a whole stream, and plays it in place of the next one."""
    recorded: list[Frame] = []
    playing = False

    def tape(frame: Frame) -> list[Frame]:
        if not of_stream(frame):
            return [frame]
        if not playing:
            recorded.append(frame)
            return [frame]
        sealed = [old for old in recorded if old.alias == recorded[-1].alias]
        if frame.kind != FrameType.OPEN or not opens_sealed(frame):
            return [frame]
        return [old._replace(alias=frame.alias) for old in sealed]

    identity = identities()
    with FaultyNetwork() as network:
        async with secured(transport, 1, identity=identity) as fed, AsyncExitStack() as life:
            opener = fed.sites["site-1"]

            async def begin() -> Keeper:
                site = StreamEngine(
                    "site-2", connect=fed.server.addresses, settings=SETTINGS, identity=identity("site-2")
                )
                keeper = Keeper().register(await life.enter_async_context(site))
                await opener.wait_for_sites(["site-2"])
                network.link("site-2").down.rewrite = tape
                return keeper

            keeper = await begin()
            first = await fed.stream(Numbers(2), ["site-2"], opener=opener, secure=True)
            assert (first.complete, keeper.seen) == (True, [0, 1])
            if restarted:
                await life.aclose()
                keeper = await begin()
            playing = True
            seen = list(keeper.seen)
            again = await fed.stream(Numbers(2), ["site-2"], opener=opener, secure=True)
            assert again.sites["site-2"].rc == ReturnCode.COMMUNICATION_ERROR
            assert keeper.seen == seen
            await settled(fed, network)


def opens_sealed(frame: Frame) -> bool:
    opening, _ = bodies.split_opening(frame.body, max_routing=1 << 16, max_body=1 << 20)
    return opening.sealed
