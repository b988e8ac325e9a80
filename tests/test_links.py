"""Links: what garbage, death, stolen names and restarts do to them, over real sockets; and what is about time, not."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest

from fanstream import EngineSettings, FLContext, Shareable, StreamContext, StreamEngine, StreamOptions, make_reply
from fanstream.errors import ConnectError, NameInUseError, SecurityError
from fanstream.protocol.frames import HEADER, FrameType
from fanstream.testing import FaultyNetwork, Frame, LinkControl, asyncio_backend, trio_backend
from tests.federation import Keeper, Numbers, delayed, federation, until

AT_ONCE = StreamOptions(resume_window=0)

on_sockets = pytest.mark.asyncio


async def ones(count: int) -> AsyncGenerator[tuple[Shareable, float], dict[str, Shareable]]:
    for number in range(count):
        yield Shareable({"n": number}), 5.0


def answer(engine: StreamEngine) -> None:
    @engine.consumer("c", "t")
    async def consume(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Shareable:
        reply = make_reply("OK")
        reply["n"] = shareable["n"]
        return reply


@on_sockets
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


@on_sockets
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
                    async with server.open_stream("c", "t", ["site-1"], options=AT_ONCE) as stream:
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


@on_sockets
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


@on_sockets
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


@on_sockets
async def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with StreamEngine("server", listen=f"unix://{path}") as server:
        assert server.addresses == [f"unix://{path}"]


@on_sockets
async def test_what_is_no_socket_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    path.write_text("precious")
    with pytest.raises(ConnectError, match=r"hub\.sock: Address already in use"):
        async with StreamEngine("server", listen=f"unix://{path}"):
            pass
    assert path.read_text() == "precious"


@on_sockets
async def test_plain_tcp_beyond_loopback_is_refused_unless_asked_for() -> None:
    with pytest.raises(SecurityError, match="not loopback"):
        async with StreamEngine("server", listen="tcp://0.0.0.0:0"):
            pass
    async with StreamEngine("site-1", connect="tcp://192.0.2.1:9") as engine:  # TEST-NET-1: nobody has it
        with anyio.fail_after(5), pytest.raises(SecurityError, match=r"leads to 192\.0\.2\.1, which is not loopback"):
            await engine.wait_for_sites(["server"])
    async with StreamEngine(
        "server", listen="tcp://0.0.0.0:0", settings=EngineSettings(allow_plain_tcp=True)
    ) as engine:
        assert engine.addresses


@pytest.mark.interpreted
@on_sockets
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


@on_sockets
async def test_errors_of_the_body_leave_as_themselves() -> None:
    with pytest.raises(LookupError, match="of the body"):
        async with StreamEngine("server", listen="tcp://127.0.0.1:0"):
            raise LookupError("of the body")


@on_sockets
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


@pytest.mark.interpreted
@on_sockets
async def test_a_library_that_a_site_lacks_ends_the_stream_there_and_not_the_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from fanstream.codec import decode, tags
    from fanstream.codec.faults import Fault

    def missing(tag: int, imports: bool) -> decode.Handler:
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


# --- on virtual time ---


@pytest.mark.anyio
class TestOnVirtualTime:
    """What is about time, on links within the process that fail as told."""

    pytestmark = pytest.mark.parametrize(
        "anyio_backend",
        [pytest.param(asyncio_backend(), id="asyncio"), pytest.param(trio_backend(), id="trio")],
        indirect=True,
        scope="module",
    )

    async def test_heartbeats_keep_a_quiet_link_for_an_hour(self) -> None:
        with FaultyNetwork(delayed(0.2)) as network:
            async with federation("memory", 2, seconds=4000) as fed:
                await anyio.sleep(3600)
                assert fed.server.sites() == {"site-1", "site-2"}
                assert [link.alive for link in network.links] == [True, True]

    @pytest.mark.parametrize("way", ["up", "down", "both"])
    async def test_a_link_that_falls_silent_is_closed_after_fifteen_seconds(self, way: str) -> None:
        with FaultyNetwork() as network:
            async with federation("memory", 1, seconds=400) as fed:
                await anyio.sleep(100)
                network.refused.add("site-1")
                link = network.link("site-1")
                for direction in ("up", "down") if way == "both" else (way,):
                    getattr(link, direction).stall()
                stalled = anyio.current_time()
                await until(lambda: not link.alive, 60)
                # Heartbeats come every seven seconds, the first up to a sixteenth of that earlier.
                assert 15 - 2 - 7 / 16 - 0.02 < anyio.current_time() - stalled < 15 - 2 + 0.02
                link.resume()
                await until(lambda: not fed.server.sites() and not fed.sites["site-1"].sites(), 60)
                network.refused.clear()
                await fed.server.wait_for_sites(["site-1"])

    async def test_a_name_passes_on_once_its_old_link_has_not_answered_a_probe(self) -> None:
        with FaultyNetwork(delayed(0.01)) as network:
            async with federation("memory", 1, seconds=400) as fed:
                network.refused.add("site-1")
                network.link("site-1").stall()
                network.refused.clear()
                began = anyio.current_time()
                async with StreamEngine("site-1", connect=fed.server.addresses) as second:
                    Keeper().register(second)
                    await second.wait_for_sites(["server"])
                    assert anyio.current_time() - began == pytest.approx(2 + 0.02, abs=0.02)
                    network.refused.add("site-1")  # the first one may not come back
                    assert (await fed.stream(Numbers(1), ["site-1"])).complete

    async def test_pauses_between_dials_grow_until_a_greeting(self) -> None:
        def cut(link: LinkControl) -> None:
            link.up.cut_after(0)

        with FaultyNetwork(cut) as network, anyio.fail_after(1000):
            async with (
                StreamEngine("server", listen="memory://refusing-all"),
                StreamEngine("site-1", connect="memory://refusing-all"),
            ):
                await anyio.sleep(60)
                # 0.05 s, doubled each time up to 15 s, and at least half of that.
                assert 8 <= len(network.links) <= 20

    async def test_a_refused_site_dials_again_and_again(self) -> None:
        with FaultyNetwork() as network:
            async with federation("memory", 1, seconds=400) as fed:
                network.refused.add("site-1")
                network.link("site-1").cut()
                await anyio.sleep(100)
                assert fed.server.sites() == set()
                network.refused.clear()
                began = anyio.current_time()
                await fed.server.wait_for_sites(["site-1"])
                assert anyio.current_time() - began <= 15
                await fed.sites["site-1"].wait_for_sites(["server"])
                network.link("site-1").cut()
                began = anyio.current_time()
                await until(lambda: not fed.server.sites())
                await fed.server.wait_for_sites(["site-1"])
                assert anyio.current_time() - began <= 0.06, "at once after a link that was good"

    async def test_a_stream_cancelled_while_it_dials_does_not_harm_the_next(self) -> None:
        with FaultyNetwork(delayed(1)):
            async with federation("local", 1, seconds=400) as fed:
                Keeper().register(fed.sites["site-1"])
                with anyio.move_on_after(0.5) as impatient:
                    await fed.stream(Numbers(1))
                assert impatient.cancelled_caught
                assert (await fed.stream(Numbers(2, timeout=30))).complete

    async def test_a_link_that_ends_while_another_is_dialled_is_not_used(self) -> None:
        with FaultyNetwork() as network:
            async with federation("local", 2, seconds=400) as fed:
                for site in fed.sites.values():
                    Keeper().register(site)
                assert (await fed.stream(Numbers(1), ["site-1"])).complete
                (first,) = network.links
                network._on_link = delayed(1)
                producer = Numbers(1, timeout=30)

                async def cut() -> None:
                    await anyio.sleep(0.5)
                    first.cut()

                async with anyio.create_task_group() as tg:
                    tg.start_soon(cut)
                    result = await fed.stream(producer, ["site-1", "site-2"])
                assert producer.rcs("site-2") == ["OK"]
                # Dialled anew or given up, but never waited for in vain.
                assert producer.rcs("site-1") in (["OK"], ["COMMUNICATION_ERROR"])
                assert result.sites["site-1"].outcomes in ({"replied": 1}, {"unreachable": 1})

    async def test_a_cut_link_ends_its_streams_at_both_ends_at_that_moment(self) -> None:
        with FaultyNetwork(delayed(0.05)) as network:
            async with federation("memory", 2, seconds=400) as fed:
                keeper = Keeper()

                async def block(_n: int) -> None:
                    await keeper.block()

                keeper.do = block
                keeper.register(fed.sites["site-1"])
                Keeper().register(fed.sites["site-2"])
                producer = Numbers(2, timeout=30)
                moments: list[float] = []

                async def cut() -> None:
                    await keeper.blocked.wait()
                    moments.append(anyio.current_time())
                    network.link("site-1").cut()

                async with anyio.create_task_group() as tg:
                    tg.start_soon(cut)
                    await fed.stream(producer, options=AT_ONCE)
                assert producer.rcs("site-1")[0] == "COMMUNICATION_ERROR"
                assert producer.rcs("site-2") == ["OK"] * 2
                assert keeper.rcs == ["COMMUNICATION_ERROR"]
                assert keeper.ended_at == pytest.approx(moments[0], abs=1e-5)

    @pytest.mark.parametrize(("way", "kind"), [("down", FrameType.OBJECT), ("up", FrameType.REPLY)])
    async def test_a_flipped_bit_in_a_header_ends_the_link_and_its_streams_and_the_site_dials_anew(
        self, way: str, kind: FrameType
    ) -> None:
        with FaultyNetwork(delayed(0.005)) as network:
            async with federation("memory", 1, seconds=400) as fed:
                Keeper().register(fed.sites["site-1"])
                flips = 0

                def flip(frame: Frame) -> list[Frame]:
                    nonlocal flips
                    if frame.kind != kind or flips:
                        return [frame]
                    flips += 1
                    return [frame._replace(seq=frame.seq ^ 1 << 20)]

                getattr(network.link("site-1"), way).rewrite = flip
                result = await fed.stream(Numbers(3, timeout=300))
                assert flips == 1
                assert result.sites["site-1"].outcomes == {"lost": 1, "unreachable": 2}
                await fed.server.wait_for_sites(["site-1"])
                assert len(network.links) == 2
                assert (await fed.stream(Numbers(3, timeout=300))).complete
