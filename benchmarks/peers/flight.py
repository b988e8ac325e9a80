"""Arrow Flight: a server at the opener, and one ``do_exchange`` for each site; an object is a record batch.

Settings: one column of uint8 that shares the object's memory, so nothing is copied before gRPC; larger objects are
batches of 8 MiB, of which the site makes one array, since a single one takes twice as long; a reply is a batch of
metadata alone. Flight has no asyncio interface: at the opener one thread for each site writes and one reads, and a site
has one thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.flight

from . import MIB, Assembly, Gather, Opener, Work

LOOP: Final = "asyncio"

SCHEMA: Final = pa.schema([("data", pa.uint8())])


def batch_of(data: bytes) -> Any:
    """A record batch that shares the memory of *data*."""
    return pa.record_batch([pa.array(np.frombuffer(data, np.uint8))], schema=SCHEMA)


class Exchange:
    """One piece of work, done by threads."""

    def __init__(self, work: Work, pieces: list[bytes]) -> None:
        self.work = work
        self.batches = [batch_of(piece) for piece in pieces]
        self._complete = 0
        self._changed = threading.Condition()
        self._gather = Gather(work.sites, work.window, self._completed)

    def _completed(self) -> None:
        self._complete += 1
        self._changed.notify_all()

    def replied(self, site: int) -> None:
        """Count one reply of a site."""
        with self._changed:
            self._gather.replied(site)

    def wait(self, complete: int) -> None:
        """Wait until so many objects are complete."""
        with self._changed:
            while self._complete < complete:
                self._changed.wait()


class FlightOpener(Opener, pa.flight.FlightServerBase):
    """A server; each site's exchange runs in a thread of it."""

    piece = 8 * MIB

    def __init__(self, sites: int) -> None:
        pa.flight.FlightServerBase.__init__(self, "grpc://127.0.0.1:0")
        self.address = f"grpc://127.0.0.1:{self.port}"
        self._orders: dict[int, queue.SimpleQueue[Exchange | None]] = {}
        self._replies: dict[int, queue.SimpleQueue[Exchange | None]] = {}
        self._joined = threading.Semaphore(0)
        self._expected = sites

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Serve one site."""
        index = int(descriptor.command)
        orders = self._orders[index] = queue.SimpleQueue()
        replies = self._replies[index] = queue.SimpleQueue()

        def gather() -> None:
            while (exchange := replies.get()) is not None:
                for _ in range(exchange.work.count):
                    reader.read_chunk()
                    exchange.replied(index)

        gathering = threading.Thread(target=gather)
        gathering.start()
        writer.begin(SCHEMA)
        self._joined.release()
        while (exchange := orders.get()) is not None:
            replies.put(exchange)
            for number in range(exchange.work.count):
                exchange.wait(number + 1 - exchange.work.window)
                for batch in exchange.batches:
                    writer.write_batch(batch)
        replies.put(None)
        gathering.join()

    async def wait_for_sites(self) -> None:
        for _ in range(self._expected):
            self._joined.acquire()

    async def run(self, work: Work) -> None:
        exchange = Exchange(work, self.pieces(work))
        for index in range(work.sites):
            self._orders[index].put(exchange)
        exchange.wait(work.count)

    def close(self) -> None:
        """End the exchanges, and then the server."""
        for orders in self._orders.values():
            orders.put(None)
        self.shutdown()


@asynccontextmanager
async def opener(sites: int, transport: str) -> AsyncIterator[Opener]:
    """Serve."""
    server = FlightOpener(sites)
    try:
        yield server
    finally:
        server.close()


@asynccontextmanager
async def site(address: str, index: int) -> AsyncIterator[None]:
    """Exchange: answer every batch, in a thread."""
    with pa.flight.connect(address) as client:
        writer, reader = client.do_exchange(pa.flight.FlightDescriptor.for_command(str(index)))

        assembly = Assembly()

        def answer() -> None:
            try:
                while True:
                    if assembly.take(memoryview(reader.read_chunk().data.column(0).to_numpy())):
                        writer.write_metadata(b"k")
            except (StopIteration, pa.flight.FlightCancelledError):
                with suppress(pa.flight.FlightCancelledError):
                    writer.close()

        writer.begin(SCHEMA)
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            reader.cancel()
            thread.join()
