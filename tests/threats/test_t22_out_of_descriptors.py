"""T22: out of file descriptors, accepting pauses and goes on later; what runs keeps running."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from fanstream.transports.addresses import parse
from fanstream.transports.sockets import SocketListener
from tests.federation import until

pytestmark = pytest.mark.anyio

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])

STARVED = """
import asyncio, errno, logging, os, resource, socket, sys
from fanstream import EngineSettings, Shareable, StreamEngine
from fanstream.errors import ConnectError
from fanstream.transports.addresses import parse

lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger().addHandler(handler)
logging.getLogger().setLevel(logging.DEBUG)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def starve():
    held = []
    while True:
        try:
            held.append(os.dup(0))
        except OSError as exc:
            assert exc.errno == errno.EMFILE
            return held


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def main(listen):
    async with StreamEngine("server", listen=listen) as server:
        (address,) = server.addresses
        where = parse(address, "address")
        family = socket.AF_UNIX if where.scheme == "unix" else socket.AF_INET
        async with StreamEngine("site-1", connect=address) as site:

            @site.consumer("c", "t")
            async def consume(shareable, stream_ctx, fl_ctx):
                return Shareable({"n": shareable["n"]})

            await server.wait_for_sites(["site-1"])
            clients = [socket.socket(family) for _ in range(5)]
            settings = EngineSettings(retry_max=0.1)
            async with server.open_stream("c", "t", ["site-1"]) as stream:
                await stream.send(Shareable({"n": 0}), timeout=5)  # so that all modules have been imported
                held = starve()
                for client in clients:
                    client.connect(where.path or (where.host, where.port))
                async with StreamEngine("late", connect=address, settings=settings) as late:
                    for number in range(20):
                        replies = await stream.send(Shareable({"n": number}), timeout=5)
                        assert replies["site-1"]["n"] == number
                        await asyncio.sleep(0.06)  # longer than two pauses in all
                    assert server._links._half_open == 0 and server.sites() == {"site-1"}
                    try:
                        async with StreamEngine("second", listen=listen.replace("hub", "other")):
                            raise AssertionError("listened without a descriptor")
                    except ConnectError as exc:
                        assert "Too many open files" in str(exc)
                    for descriptor in held:
                        os.close(descriptor)
                    await until(lambda: server._links._half_open == 5)
                    await late.wait_for_sites(["server", "site-1"])
                    for client in clients:
                        client.close()
                    await until(lambda: server._links._half_open == 0)
            assert stream.result.complete
    pauses = [line for line in lines if "accepting pauses" in line]
    assert len(pauses) == 1, pauses
    assert len([line for line in lines if "Too many open files" in line]) <= 3, lines
    print("done")


asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of resources")
@pytest.mark.parametrize("scheme", ["tcp", "unix"])
def test_a_starved_engine_goes_on_and_accepts_again(scheme: str, tmp_path: Path) -> None:
    listen = "tcp://127.0.0.1:0" if scheme == "tcp" else f"unix://{tmp_path}/hub"
    done = subprocess.run(
        [sys.executable, "-c", STARVED, listen], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.stdout == "done\n", done.stderr


class Reluctant:
    """A listening socket whose first accepts fail."""

    def __init__(self, sock: socket.socket, codes: list[int]) -> None:
        self._sock = sock
        self._codes = codes

    def accept(self) -> Any:
        if self._codes:
            code = self._codes.pop(0)
            raise OSError(code, os.strerror(code))
        return self._sock.accept()

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()


@on_asyncio
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    "code",
    [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM, errno.EPROTO, errno.ENETDOWN],
    ids=errno.errorcode.get,
)
async def test_what_keeps_a_listener_from_accepting_passes(
    code: int, times: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = parse(f"tcp://127.0.0.1:{sock.getsockname()[1]}", "address")
        listener = SocketListener(sock, address, accepted.append)
        listener._sock = Reluctant(sock, [code] * times)  # type: ignore[assignment]  # as far as a listener uses one
        loop = asyncio.get_running_loop()
        pauses: list[float] = []
        call_later = loop.call_later

        def hurry(delay: float, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
            if args[0] == listener._resume:
                pauses.append(delay)
                delay = 0
            return call_later(delay, *args, **kwargs)

        monkeypatch.setattr(loop, "call_later", hurry)
        with caplog.at_level(logging.DEBUG), socket.create_connection(sock.getsockname()):
            await until(lambda: accepted)
        listener.close()
        accepted[0].close()
    assert pauses == [0.5] * times, "not at once, or it would spin"
    assert [record.getMessage() for record in caplog.records if record.name.startswith("fanstream")] == [
        f"{address}: {os.strerror(code)}; accepting pauses until it can go on"
    ], "told once, however long it takes"


@on_asyncio
async def test_a_connection_that_is_gone_before_it_was_accepted_pauses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = parse(f"tcp://127.0.0.1:{sock.getsockname()[1]}", "address")
        listener = SocketListener(sock, address, accepted.append)
        listener._sock = Reluctant(sock, [errno.ECONNABORTED, errno.EINTR])  # type: ignore[assignment]  # as above
        with socket.create_connection(sock.getsockname()):
            await until(lambda: accepted)
            assert listener._pause is None
        listener.close()
        accepted[0].close()


@on_asyncio
async def test_a_listener_that_pauses_can_be_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = parse(f"tcp://127.0.0.1:{sock.getsockname()[1]}", "address")
        listener = SocketListener(sock, address, lambda _: None)
        listener._sock = Reluctant(sock, [errno.EMFILE])  # type: ignore[assignment]  # as above
        with socket.create_connection(sock.getsockname()):
            await until(lambda: listener._pause is not None)
            listener.close()
            listener.close()
            await anyio.lowlevel.checkpoint()
