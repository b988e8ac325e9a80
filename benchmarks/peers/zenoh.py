"""Zenoh: the opener publishes on a key that the sites in question subscribe to; each site publishes its replies.

Settings: the sites connect straight to the opener, without scouting or a router; reliable and blocking congestion
control, so nothing is dropped; express messages, which are not held back to fill a batch, where the window is 1. A site
takes its object as bytes; larger ones go in pieces of 1 MiB, through shared memory of 256 KiB. Shared memory is
switched off, so that bytes go by TCP as everybody's do; ``zenoh_shared_memory`` has it on. Zenoh has no asyncio
interface: callbacks run in threads of its own.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import zenoh

from . import MIB, Assembly, Gather, Opener, Work

LOOP: Final = "asyncio"

MOST_SITES: Final = 64


def settings(*, shared_memory: bool, **endpoints: Any) -> Any:
    """The configuration of one session."""
    config = zenoh.Config()
    for key, value in {
        "mode": "peer",
        "scouting/multicast/enabled": False,
        "scouting/gossip/enabled": False,
        "transport/shared_memory/enabled": shared_memory,
        **{key.replace("_", "/"): value for key, value in endpoints.items()},
    }.items():
        config.insert_json5(key, json.dumps(value))
    return config


class ZenohOpener(Opener):
    """Publishes objects and counts replies."""

    def __init__(self, session: Any, address: str, sites: int) -> None:
        self.address = address
        self._session = session
        self._expected = sites
        self._joined: set[int] = set()
        self._changed = threading.Condition()
        self._gather: Gather | None = None
        self._complete = 0

    def joined(self, sample: Any) -> None:
        """A site has subscribed."""
        with self._changed:
            self._joined.add(int(sample.payload.to_string()))
            self._changed.notify_all()

    def replied(self, sample: Any) -> None:
        """A site has answered an object."""
        with self._changed:
            assert self._gather is not None
            self._gather.replied(int(sample.payload.to_string()))

    def _completed(self) -> None:
        self._complete += 1
        self._changed.notify_all()

    async def wait_for_sites(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._joined) == self._expected)

    async def run(self, work: Work) -> None:
        self._complete = 0
        self._gather = Gather(work.sites, work.window, self._completed)
        pieces = [zenoh.ZBytes(piece) for piece in self.pieces(work)]
        publisher = self._session.declare_publisher(
            f"objects/{work.sites}",
            congestion_control=zenoh.CongestionControl.BLOCK,
            reliability=zenoh.Reliability.RELIABLE,
            express=work.window == 1,
        )
        for number in range(work.count + work.window):
            with self._changed:
                while self._complete < number + 1 - work.window:
                    self._changed.wait()
            if number < work.count:
                for piece in pieces:
                    publisher.put(piece)
        publisher.undeclare()


@asynccontextmanager
async def opener(sites: int, transport: str, *, shared_memory: bool = False) -> AsyncIterator[Opener]:
    """Listen."""
    # Zenoh does not tell which port it was given, so one that is free is looked for first.
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tcp/127.0.0.1:{free.getsockname()[1]}"
    with zenoh.open(settings(shared_memory=shared_memory, listen_endpoints=[address])) as session:
        made = ZenohOpener(session, address, sites)
        made.piece = MIB // 4 if shared_memory else MIB
        session.declare_subscriber("joined", made.joined)
        session.declare_subscriber("replies", made.replied)
        yield made


@asynccontextmanager
async def site(address: str, index: int, *, shared_memory: bool = False) -> AsyncIterator[None]:
    """Subscribe to all that goes to more sites than *index*, and answer it."""
    config = settings(shared_memory=shared_memory, connect_endpoints=[address], listen_endpoints=[])
    with zenoh.open(config) as session:
        own = str(index)
        assembly = Assembly()
        replies = session.declare_publisher(
            "replies", congestion_control=zenoh.CongestionControl.BLOCK, reliability=zenoh.Reliability.RELIABLE
        )

        def answer(sample: Any) -> None:
            if assembly.take(sample.payload.to_bytes()):
                replies.put(own)

        for sites in range(index + 1, MOST_SITES + 1):
            session.declare_subscriber(f"objects/{sites}", answer)
        session.put("joined", own)
        yield
