"""Links: what garbage, death, stolen names and restarts do to them, over real sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest

from fanstream import EngineSettings, FLContext, Shareable, StreamContext, StreamEngine, make_reply
from fanstream.errors import ConnectError, NameInUseError
from fanstream.protocol.frames import HEADER

pytestmark = pytest.mark.asyncio


async def ones(count: int) -> AsyncGenerator[tuple[Shareable, float], dict[str, Shareable]]:
    for number in range(count):
        yield Shareable({"n": number}), 5.0


def answer(engine: StreamEngine) -> None:
    @engine.consumer("c", "t")
    async def consume(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Shareable:
        reply = make_reply("OK")
        reply["n"] = shareable["n"]
        return reply


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: example\r\n\r\n",
        b"\x00" * 64,
        b"\xff" * 64,
        HEADER.pack(4, 1, 0, 0, 0, 0, 0, 0) + b"\xc1\xc1\xc1\xc1",
        HEADER.pack(0, 17, 0, 0, 1, 0, 0, 0),
        os.urandom(4096),
    ],
)
async def test_garbage_ends_its_own_link_alone(garbage: bytes) -> None:
    with anyio.fail_after(10):
        async with StreamEngine("server", listen="tcp://127.0.0.1:0") as server:
            url = urlsplit(server.addresses[0])
            async with StreamEngine("site-1", connect=server.addresses[0]) as site:
                answer(site)
                await server.wait_for_sites(["site-1"])
                with socket.create_connection((url.hostname or "", url.port or 0)) as stranger:
                    stranger.setblocking(False)
                    await anyio.wait_writable(stranger)
                    stranger.sendall(garbage)
                    while True:
                        await anyio.wait_readable(stranger)
                        try:
                            if not stranger.recv(4096):
                                break
                        except ConnectionResetError:
                            break
                result = await server.stream_objects("c", "t", {}, ["site-1"], ones(3), server.new_context())
                assert result.complete


async def test_a_site_that_leaves_is_lost_to_what_runs_and_unreachable_afterwards() -> None:
    with anyio.fail_after(10):
        async with StreamEngine("server", listen="tcp://127.0.0.1:0") as server:
            consuming = anyio.Event()
            async with StreamEngine("site-1", connect=server.addresses[0]) as site, anyio.create_task_group() as tg:

                @site.consumer("c", "t")
                async def consume(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
                    consuming.set()
                    await anyio.sleep_forever()

                await server.wait_for_sites(["site-1"])
                codes = []

                async def open_and_send() -> None:
                    async with server.open_stream("c", "t", ["site-1"]) as stream:
                        for _ in range(2):
                            replies = await stream.send(Shareable(), timeout=30)
                            codes.append(replies["site-1"].get_return_code())
                    assert stream.result is not None
                    codes.append(stream.result.rc)

                tg.start_soon(open_and_send)
                await consuming.wait()
                for link in list(server._links):
                    link.drop(ConnectError("cut by the test"))
            assert codes == ["COMMUNICATION_ERROR"] * 3


async def test_a_name_belongs_to_the_engine_that_answers() -> None:
    with anyio.fail_after(10):
        async with (
            StreamEngine("server", listen="tcp://127.0.0.1:0") as server,
            StreamEngine("site-1", connect=server.addresses[0]) as first,
        ):
            answer(first)
            await server.wait_for_sites(["site-1"])
            async with StreamEngine("site-1", connect=server.addresses[0]) as second:
                with pytest.raises(NameInUseError, match="site-1"):
                    await second.wait_for_sites(["server"])
            result = await server.stream_objects("c", "t", {}, ["site-1"], ones(1), server.new_context())
            assert result.complete


async def test_a_site_dials_again_when_its_hub_comes_back(tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/hub.sock"
    with anyio.fail_after(10):
        async with StreamEngine("site-1", connect=url) as site:
            answer(site)
            for _ in range(2):
                async with StreamEngine("server", listen=url) as server:
                    await server.wait_for_sites(["site-1"])
                    result = await server.stream_objects("c", "t", {}, ["site-1"], ones(2), server.new_context())
                    assert result.complete
    assert not (tmp_path / "hub.sock").exists()


async def test_a_socket_left_behind_is_replaced_and_belongs_to_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with StreamEngine("server", listen=f"unix://{path}"):
        assert path.stat().st_mode & 0o777 == 0o600


async def test_plain_tcp_beyond_loopback_is_refused_unless_asked_for() -> None:
    with pytest.raises(ConnectError, match="not loopback"):
        async with StreamEngine("server", listen="tcp://0.0.0.0:0"):
            pass
    async with StreamEngine(
        "server", listen="tcp://0.0.0.0:0", settings=EngineSettings(allow_plain_tcp=True)
    ) as engine:
        assert engine.addresses


async def test_a_silent_peer_is_noticed() -> None:
    settings = EngineSettings(heartbeat=0.05, silence=0.2)
    with anyio.fail_after(10):
        async with (
            StreamEngine("server", listen="tcp://127.0.0.1:0", settings=settings) as server,
            StreamEngine("site-1", connect=server.addresses[0]) as site,
        ):
            await server.wait_for_sites(["site-1"])
            (link,) = site._links
            link.core.next_output = lambda limit, now: []  # type: ignore[method-assign]  # it falls silent
            while server.sites():
                await server._links._sites.changed()


async def test_errors_of_the_body_leave_as_themselves() -> None:
    with pytest.raises(LookupError, match="of the body"):
        async with StreamEngine("server", listen="tcp://127.0.0.1:0"):
            raise LookupError("of the body")


async def test_a_cancelled_engine_ends_its_streams_at_once() -> None:
    with anyio.fail_after(10):
        async with StreamEngine("server") as server, anyio.create_task_group() as tg:
            consuming = anyio.Event()
            doomed = anyio.CancelScope()

            async def site() -> None:
                with doomed:
                    async with StreamEngine("site-1") as engine:

                        @engine.consumer("c", "t")
                        async def consume(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
                            consuming.set()
                            await anyio.sleep_forever()

                        await anyio.sleep_forever()

            async def kill() -> None:
                await consuming.wait()
                doomed.cancel()

            tg.start_soon(site)
            tg.start_soon(kill)
            await server.wait_for_sites(["site-1"])
            result = await server.stream_objects("c", "t", {}, ["site-1"], ones(2), server.new_context())
            assert not result.complete


async def test_a_library_that_a_site_lacks_ends_the_stream_there_and_not_the_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from fanstream.codec import decode, tags
    from fanstream.codec.faults import Fault

    def missing(tag: int) -> decode.Handler:
        raise Fault("pyarrow cannot be imported here", unknown=True)

    with anyio.fail_after(10):
        async with (
            StreamEngine("server", listen="tcp://127.0.0.1:0") as server,
            StreamEngine("site-1", connect=server.addresses[0]) as site,
        ):
            answer(site)
            await server.wait_for_sites(["site-1"])
            monkeypatch.delitem(decode._HANDLERS, tags.TABLE, raising=False)
            monkeypatch.setattr(decode, "_foreign", missing)

            async def tables() -> AsyncGenerator[Shareable, dict[str, Shareable]]:
                yield Shareable({"n": 0, "table": pyarrow.table({"a": [1, 2]})})

            result = await server.stream_objects("c", "t", {}, ["site-1"], tables(), server.new_context())
            assert result.rc == result.sites["site-1"].rc == "BAD_REQUEST_DATA"
            assert server.sites() == {"site-1"}
