"""T1: before a peer has greeted, nothing but the greeting is taken: 64 KiB, 10 s, 128 at a time."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import anyio
import pytest

from fanstream import EngineSettings, Limits, StreamEngine
from fanstream.errors import RemoteProtocolError
from fanstream.protocol import bodies
from fanstream.protocol.frames import HEADER, FrameType, pack
from fanstream.protocol.session import SessionState
from fanstream.testing import Frame, RawPeer
from fanstream.testing.peer import hello
from tests.federation import (
    hubs,
    on_memory,
    over_sockets,
    until,
)
from tests.protocol.linked import Side
from tests.threats.siege import (
    KIB,
    T,
    address,
    besieged,
    longer,
)

pytestmark = pytest.mark.anyio

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])

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
    "long hello": (longer(T.HELLO, 64 * KIB), "frame of type 1 with 65537 bytes, limit 65536"),
}


@hubs
@pytest.mark.parametrize("greeting", GREETINGS)
async def test_a_greeting_that_is_none_is_answered_by_name(transport: str, greeting: str) -> None:
    said, reason = GREETINGS[greeting]
    async with besieged(transport) as fed, RawPeer.dial(address(fed)) as peer:
        peer.send(said)
        goodbye = bodies.decode(bodies.Goodbye, (await peer.receive(T.GOAWAY)).body)
        assert goodbye.code == "protocol"
        # A stranger is told no more than three times what it has said (T26).
        assert reason in goodbye.reason or (goodbye.reason and reason.startswith(goodbye.reason))
        await peer.closed()


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


# --- the same in the core: what is not the greeting is refused from its header alone ---

STATES = [SessionState.GREETING, SessionState.ADMITTING, SessionState.CLOSING]


def listener(state: SessionState) -> Side:
    side = Side("hub", dialler=False, hub=True)
    if state is not SessionState.GREETING:
        side.feed(hello("stranger").pack())
    if state is SessionState.CLOSING:
        side.core.session.leave("name-in-use")
    assert side.core.session.state is state
    return side


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
@pytest.mark.parametrize("kind", [*FrameType, 0, 6, 15, 32, 255])
def test_a_long_frame_is_refused_before_any_of_it_came(kind: int, state: SessionState) -> None:
    taken = [T.GOAWAY, *([T.HELLO] if state is SessionState.GREETING else [])]
    if state is SessionState.CLOSING:
        taken += [T.PING, T.PONG, T.PRESENCE]  # whose meaning has gone
    header = HEADER.pack(2000, kind, 0, 0, 0, 0, 0, 0) + bytes(16)
    side = listener(state)
    if kind in taken:
        side.feed(header)
        return
    with pytest.raises(RemoteProtocolError, match=rf"(frame of type {kind}|CHUNK)"):
        side.feed(header)


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
@pytest.mark.parametrize("kind", [kind for kind in FrameType if kind >= T.OPEN])
def test_no_frame_of_a_stream_is_parsed(kind: FrameType, state: SessionState) -> None:
    side = listener(state)
    with pytest.raises(RemoteProtocolError, match=f"while the link is {state.name}|CHUNK"):
        side.feed(pack(kind, 1, body=b"\xc1" * 40))
    assert side.core.legs == {}


@pytest.mark.parametrize("over", [0, 1])
def test_a_hello_has_64_kib(over: int) -> None:
    room = 64 * KIB + over - len(hello("stranger", capabilities=["", ""]).body) - 4  # of the longer lengths
    long = hello("stranger", capabilities=["x" * 1000, "y" * (room - 1000)])
    assert len(long.body) == 64 * KIB + over
    side = Side("hub", dialler=False)
    if over:
        with pytest.raises(RemoteProtocolError, match="type 1 with 65537 bytes, limit 65536"):
            side.feed(long.pack()[: HEADER.size])
    else:
        side.feed(long.pack(), step=1000)
        assert side.core.session.state is SessionState.ADMITTING


def test_what_an_unfinished_greeting_takes_is_bounded() -> None:
    sides = [Side("hub", dialler=False) for _ in range(8)]
    data = HEADER.pack(64 * KIB, T.HELLO, 0x80, 0, 0, 0, 0, 0) + bytes(64 * KIB - 1)
    tracemalloc.start()
    try:
        for side in sides:
            side.feed(data, step=4096)
        assert tracemalloc.get_traced_memory()[0] < 8 * 80 * KIB
    finally:
        tracemalloc.stop()


# --- Unix sockets ---


@on_asyncio
@pytest.mark.parametrize("umask", [0, 0o022, 0o177])
async def test_a_unix_socket_is_for_its_user_alone(umask: int, tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    before = os.umask(umask)
    try:
        async with StreamEngine("server", listen=f"unix://{path}"):
            assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
