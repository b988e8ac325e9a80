"""grpc.aio: one bidirectional stream for each site, which calls; an object is a message out, a reply a message back.

Settings: bytes as they are, so nothing is serialized; no compression, no limit on a message's size, frames of up to 16
MiB and look-ahead windows of 64 MiB, so that flow control never waits for a round trip; tuned for throughput. Objects
beyond 1 MiB go in pieces of 1 MiB, since one message of 64 MiB takes five times as long as so many pieces. A task for
each site that writes, and one that reads. On uvloop, which is faster for it than the standard loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import grpc.aio

from . import MIB, Assembly, Opener, Window, Work

LOOP: Final = "uvloop"

SERVICE, METHOD = "bench", "stream"
SETTINGS: Final = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.http2.max_frame_size", 16 * MIB - 1),
    ("grpc.http2.lookahead_bytes", 64 * MIB),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.optimization_target", "throughput"),
]


class GrpcOpener(Opener):
    """Holds the calls of the sites."""

    piece = MIB

    def __init__(self, sites: int) -> None:
        self._calls: dict[int, Any] = {}
        self._expected = sites
        self._complete = asyncio.Event()
        self._closing = asyncio.Event()

    async def serve(self, _requests: Any, context: Any) -> None:
        """Keep one call until the end."""
        self._calls[int(await context.read())] = context
        if len(self._calls) == self._expected:
            self._complete.set()
        await self._closing.wait()

    def close(self) -> None:
        """Let the calls end."""
        self._closing.set()

    async def wait_for_sites(self) -> None:
        await self._complete.wait()

    async def run(self, work: Work) -> None:
        window = Window(work)
        pieces = self.pieces(work)

        async def send(call: Any) -> None:
            async for _ in window.turns():
                for piece in pieces:
                    await call.write(piece)

        async def gather(index: int, call: Any) -> None:
            for _ in range(work.count):
                if await call.read() is grpc.aio.EOF:
                    raise RuntimeError(f"site {index} has ended its call")
                window.gather.replied(index)

        async with asyncio.TaskGroup() as tg:
            for index in range(work.sites):
                tg.create_task(send(self._calls[index]))
                tg.create_task(gather(index, self._calls[index]))


@asynccontextmanager
async def opener(sites: int, transport: str) -> AsyncIterator[Opener]:
    """Serve."""
    made = GrpcOpener(sites)
    server = grpc.aio.server(options=SETTINGS)
    handlers = {METHOD: grpc.stream_stream_rpc_method_handler(made.serve)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    made.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield made
    finally:
        made.close()
        await server.stop(1.0)


@asynccontextmanager
async def site(address: str, index: int) -> AsyncIterator[None]:
    """Call, and answer every message."""
    async with grpc.aio.insecure_channel(address, options=SETTINGS) as channel, asyncio.TaskGroup() as tg:
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")()
        assembly = Assembly()

        async def answer() -> None:
            while (message := await call.read()) is not grpc.aio.EOF:
                if assembly.take(message):
                    await call.write(b"k")

        await call.write(str(index).encode())
        task = tg.create_task(answer())
        yield
        task.cancel()
