"""NATS: nats-py at the opener and the sites, with a nats-server of its own between them.

Settings: an object is published once, on a subject that all the sites in question subscribe to, so that the server fans
it out; all sites publish their replies on one subject. No limits on what is pending at the subscribers, payloads of up
to 8 MiB; larger objects in pieces of 1 MiB, which are faster than those of 4 or 8. On uvloop. The server's CPU time and
memory count as a helper's.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import nats

from . import MIB, Assembly, Opener, Window, Work

LOOP: Final = "uvloop"

MOST_SITES: Final = 64
CONFIG: Final = {
    "host": "127.0.0.1",
    "port": -1,  # any that is free
    "max_payload": 8 * MIB,
    "max_pending": 256 * MIB,
}


@contextmanager
def running_server() -> Iterator[tuple[str, int]]:
    """Run a server; gives its address, and its process's id."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = shutil.which("nats-server", path=beside)
    if command is None:
        raise RuntimeError("nats-server is neither beside this Python nor on PATH")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "server.conf"
        config.write_text(json.dumps(CONFIG), encoding="utf-8")
        process = subprocess.Popen([command, "-c", str(config)], stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            port = None
            for line in process.stderr:
                if found := re.search(r"Listening for client connections on [\d.]+:(\d+)", line):
                    port = int(found[1])
                if "Server is ready" in line:
                    break
            if port is None:
                raise RuntimeError(f"nats-server ended with {process.wait()} before it was ready")
            yield f"nats://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            process.communicate()


class NatsOpener(Opener):
    """Publishes objects and counts replies."""

    piece = MIB

    def __init__(self, client: Any, address: str, server: int, sites: int) -> None:
        self.address = address
        self.helpers = (server,)
        self._client = client
        self._missing = set(range(sites))
        self._complete = asyncio.Event()
        self._window: Window | None = None

    async def joined(self, message: Any) -> None:
        """A site has subscribed."""
        self._missing.discard(int(message.data))
        if not self._missing:
            self._complete.set()

    async def replied(self, message: Any) -> None:
        """A site has answered an object."""
        if self._window is not None:
            self._window.gather.replied(int(message.data))

    async def wait_for_sites(self) -> None:
        await self._complete.wait()

    async def run(self, work: Work) -> None:
        self._window = Window(work)
        pieces = self.pieces(work)
        subject = f"objects.{work.sites}"
        async for _ in self._window.turns():
            for piece in pieces:
                await self._client.publish(subject, piece)


@asynccontextmanager
async def opener(sites: int, transport: str) -> AsyncIterator[Opener]:
    """Run a server, and a client of it."""
    with running_server() as (address, pid):
        client = await nats.connect(address)
        try:
            made = NatsOpener(client, address, pid, sites)
            await client.subscribe("joined", cb=made.joined)
            await client.subscribe("replies", cb=made.replied)
            await client.flush()
            yield made
        finally:
            await client.close()


@asynccontextmanager
async def site(address: str, index: int) -> AsyncIterator[None]:
    """Subscribe to all that goes to more sites than *index*, and answer it."""
    client = await nats.connect(address)
    reply = str(index).encode()
    assembly = Assembly()

    async def answer(message: Any) -> None:
        if assembly.take(message.data):
            await client.publish("replies", reply)

    try:
        for sites in range(index + 1, MOST_SITES + 1):
            subject = f"objects.{sites}"
            await client.subscribe(subject, cb=answer, pending_msgs_limit=-1, pending_bytes_limit=-1)
        await client.flush()
        await client.publish("joined", reply)
        yield
    finally:
        await client.close()
