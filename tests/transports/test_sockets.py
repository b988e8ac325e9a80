"""What sockets alone can do to a wire."""

from __future__ import annotations

import select
import socket
import struct
from importlib.util import find_spec
from typing import Any

import anyio
import pytest

from fanstream.errors import BrokenError
from fanstream.transports import listen
from fanstream.transports.addresses import parse
from fanstream.transports.base import Wire

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(
        "anyio_backend",
        [
            pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
            pytest.param(
                ("asyncio", {"use_uvloop": True}),
                id="uvloop",
                marks=pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed"),
            ),
        ],
    ),
]


class Sink:
    """Reads, and has nothing to say."""

    def __init__(self) -> None:
        self._room = bytearray(64)
        self.count = 0

    def get_buffers(self) -> list[memoryview]:
        return [memoryview(self._room)]

    def received(self, count: int) -> None:
        self.count += count

    def next_output(self, limit: int) -> tuple[()]:
        return ()


async def test_a_reset_that_comes_along_with_data_ends_the_wire(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    wires: list[Wire] = []
    accepted = anyio.Event()

    def accept(wire: Wire) -> None:
        wires.append(wire)
        accepted.set()

    listener = await listen(parse("tcp://127.0.0.1:0", "address"), accept, allow_plain=True)
    sink = Sink()
    ended: list[Exception | None] = []
    with socket.create_connection(("127.0.0.1", parse(listener.address, "address").port)) as peer, anyio.fail_after(10):
        await accepted.wait()
        [wire] = wires

        async def run() -> None:
            ended.append(await wire.run(sink))

        async with anyio.create_task_group() as tg:
            tg.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.send(b"data")
            peer.close()
            watch = select.poll()  # the loop stands still until both are there
            watch.register(wire._fd, select.POLLERR)  # type: ignore[attr-defined]  # a SocketWire
            assert watch.poll(5000)
    listener.close()
    assert isinstance(ended[0], BrokenError)
