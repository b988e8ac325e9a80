"""What one object costs, counted: tasks, timers, system calls, copies, allocations, frames. Seconds are for benchmarks.

Counts hold on a busy machine where seconds do not. Each bound stands between what is counted today and what one more of
the kind for each object would make of it; where the two are far apart, nearer to today's.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from types import FrameType as PythonFrame
from typing import Any, TypeVar

import anyio
import numpy as np
import pytest

from fanstream import (
    ConsumerFactory,
    EngineSettings,
    FLContext,
    Limits,
    ObjectConsumer,
    ObjectProducer,
    Shareable,
    StreamContext,
    StreamOptions,
)
from fanstream.codec import Codec
from fanstream.codec.memory import Memory
from fanstream.deadlines import Deadlines
from fanstream.link import Link
from fanstream.options import KIB, MIB
from fanstream.protocol.frames import FrameType
from fanstream.testing import FaultyNetwork, Frame, LinkControl
from tests.federation import Federation, federation

pytestmark = pytest.mark.asyncio
anywhere = pytest.mark.parametrize("transport", ["memory", "tcp"])

_Made = TypeVar("_Made", bound=Callable[..., Any])

SENDING = ("send", "sendall", "sendmsg", "sendto")
RECEIVING = ("recv", "recv_into", "recvmsg", "recvmsg_into")


class Objects(ObjectProducer):
    """Produces *number* objects after *warm* others; calls *begin* and *end* where the counting begins and ends."""

    def __init__(
        self,
        make: Callable[[int], Shareable],
        number: int,
        *,
        warm: int = 128,
        begin: Callable[[], object] = lambda: None,
        end: Callable[[], object] = lambda: None,
    ) -> None:
        self._make = make
        self._total = warm + number
        self._warm = warm
        self._begin, self._end = begin, end
        self.made = 0
        self.judged = 0

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, float]:
        if self.made == self._total:
            return None, 0
        self.made += 1
        return self._make(self.made), 60.0

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        self.judged += 1
        if self.judged == self._warm:
            self._begin()
        if self.judged == self._total:
            self._end()


class Consumer(ConsumerFactory, ObjectConsumer):
    """Answers OK, after it has shown each object to *look*."""

    def __init__(self, look: Callable[[Shareable], object] = lambda shareable: None) -> None:
        self._look = look

    async def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        return self

    async def consume(self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[bool, None]:
        self._look(shareable)
        return True, None


class Counts:
    """Counts calls while it is ``on``; ``count`` wraps what is to be counted.

    Attributes:
        of: how often each was called.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.of: Counter[str] = Counter()
        self.on = False

    def begin(self) -> None:
        self.of.clear()
        self.on = True

    def end(self) -> None:
        self.on = False

    def count(self, owner: Any, name: str, *, see: Callable[..., object] = lambda *args, **kwargs: None) -> None:
        """Count the calls of a method or function from here on, and show *see* the arguments."""
        original = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            if self.on:
                self.of[name] += 1
                see(*args, **kwargs)
            return original(*args, **kwargs)

        self._patch.setattr(owner, name, counting)

    def count_loop(self) -> None:
        """Count the tasks and the timers that are made on the running loop."""
        loop = asyncio.get_running_loop()

        def make(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
            if self.on:
                self.of["tasks"] += 1
            return asyncio.Task(coro, loop=loop, **kwargs)

        loop.set_task_factory(make)
        self.count(loop, "call_at")  # call_later goes through it

    def total(self, names: Iterable[str]) -> int:
        return sum(self.of[name] for name in names)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    return Counts(monkeypatch)


async def run(fed: Federation, producer: Objects, *, window: int, look: Callable[[Shareable], object] = id) -> None:
    """Stream to all sites, each of which shows its objects to *look*."""
    for site in fed.sites.values():
        site.register_stream_processing("models", "weights", Consumer(look))
    assert await fed.stream(producer, options=StreamOptions(window=window))


def small(number: int) -> Shareable:
    return Shareable({"n": number, "payload": b"x" * 100})


# --- small objects ---


@anywhere
@pytest.mark.parametrize("window", [1, 64])
async def test_a_small_object_makes_no_task_no_timer_and_no_deadline(
    transport: str, window: int, counts: Counts
) -> None:
    number, sites = 1000, 3
    counts.count_loop()
    counts.count(Deadlines, "at")
    async with federation(transport, sites) as fed:
        await run(fed, Objects(small, number, begin=counts.begin, end=counts.end), window=window)
    # None; but a heartbeat of each link may fall into it, every few seconds.
    assert counts.of["tasks"] <= number // 100
    assert counts.of["call_at"] <= number // 100
    assert counts.of["at"] <= number // 100


@anywhere
async def test_a_stream_has_one_deadline_however_many_objects(transport: str, counts: Counts) -> None:
    seen: list[int] = []
    async with federation(transport, 1) as fed:
        before = len(fed.server.deadlines)
        producer = Objects(small, 500, warm=1, end=lambda: seen.append(len(fed.server.deadlines) - before))
        await run(fed, producer, window=64)
    assert seen == [1]


async def test_small_objects_share_their_system_calls(counts: Counts) -> None:
    number, window = 2048, 64
    for name in (*SENDING, *RECEIVING):
        counts.count(socket.socket, name)
    async with federation("tcp", 1) as fed:
        await run(fed, Objects(small, number, begin=counts.begin, end=counts.end), window=window)
    sent, received = counts.total(SENDING), counts.total(RECEIVING)
    assert min(sent, received) >= number / window, "they go by other calls now: count those"
    # A window is one write with its objects, and one with its replies; a read for each, and one that finds no more.
    assert sent <= number / 16
    assert received <= number / 16


async def test_in_lock_step_an_object_is_two_writes_and_two_reads(counts: Counts) -> None:
    number = 300
    for name in (*SENDING, *RECEIVING):
        counts.count(socket.socket, name)
    async with federation("tcp", 1) as fed:
        await run(fed, Objects(small, number, begin=counts.begin, end=counts.end), window=1)
    assert number <= counts.total(SENDING) // 2 <= 1.1 * number
    assert number <= counts.total(RECEIVING) // 2 <= 1.1 * number


@pytest.mark.interpreted
@anywhere
async def test_the_calls_of_python_for_a_small_object_stay_few(transport: str) -> None:
    number, sites = 1000, 3
    calls = Counter[str]()

    def profile(frame: PythonFrame, event: str, arg: object) -> None:
        calls[event] += 1

    async with federation(transport, sites) as fed:
        producer = Objects(small, number, begin=lambda: sys.setprofile(profile), end=lambda: sys.setprofile(None))
        await run(fed, producer, window=64)
    each = calls["call"] / (number * sites)
    # 43 when last looked at: out, in, consume, reply, gather, and a third of producing and judging. Few things that
    # are done for each object take less than six calls: not an Event of anyio, not a scope.
    assert 5 < each <= 48


@anywhere
async def test_memory_is_flat_over_many_small_objects(transport: str) -> None:
    number = 20_000
    blocks: list[int] = []

    def look() -> None:
        gc.collect()
        blocks.append(sys.getallocatedblocks())

    async with federation(transport, 1) as fed:
        await run(fed, Objects(small, number, warm=1000, begin=look, end=look), window=64)
    # Less than the one block for each object that the least of leaks would be.
    assert blocks[1] - blocks[0] < number / 4


@anywhere
async def test_an_object_in_flight_holds_little_beside_itself(transport: str) -> None:
    number = 512
    arrived = anyio.Event()

    class Holding(Consumer):
        async def consume(self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
            if shareable["n"] == 1:
                arrived.set()
                await go.wait()
            return True, None

    def measure() -> tuple[int, int]:
        gc.collect()
        return sys.getallocatedblocks(), tracemalloc.get_traced_memory()[0]

    async with federation(transport, 1) as fed:
        (site,) = fed.sites.values()
        site.register_stream_processing("models", "weights", Holding())
        go = anyio.Event()
        tracemalloc.start()
        try:
            idle = measure()
            async with anyio.create_task_group() as tg:
                options = StreamOptions(window=number)
                producer = Objects(small, number, warm=0)
                tg.start_soon(lambda: fed.stream(producer, options=options))
                await arrived.wait()
                while producer.made < number:
                    await anyio.lowlevel.checkpoint()
                for _ in range(100):  # until all have arrived
                    await anyio.lowlevel.checkpoint()
                full = measure()
                go.set()
        finally:
            tracemalloc.stop()
    # At both ends, in this one process: the object as it was decoded, what waits for it, and what has to be sent again.
    assert 3 < (full[0] - idle[0]) / number <= 60
    assert 100 < (full[1] - idle[1]) / number <= 6 * KIB


# --- large objects ---


def array_of(shareable: Shareable) -> np.ndarray[Any, np.dtype[np.uint8]]:
    found: np.ndarray[Any, np.dtype[np.uint8]] = shareable["data"]
    return found


def as_bytes(buffer: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(buffer, np.uint8)


@pytest.mark.interpreted
@anywhere
async def test_an_object_is_encoded_once_and_its_own_memory_is_what_every_site_is_sent(
    transport: str, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, sites, size = 16, 3, 2 * MIB
    data = np.arange(size, dtype=np.uint8)
    own = other = 0

    def see(buffers: Iterable[Any]) -> None:
        nonlocal own, other
        for buffer in buffers:
            if len(buffer) >= 32 * KIB:
                if np.shares_memory(as_bytes(buffer), data):
                    own += len(buffer)
                else:
                    other += len(buffer)

    encoded: list[Codec] = []
    counts.count(Codec, "encode", see=lambda codec, *args, **kwargs: encoded.append(codec))
    handed_out = Link.next_output

    def next_output(link: Link, limit: int) -> Any:
        out = handed_out(link, limit)
        see(out)
        return out

    monkeypatch.setattr(Link, "next_output", next_output)
    async with federation(transport, sites) as fed:
        counts.begin()
        await run(fed, Objects(lambda n: Shareable({"data": data}), number, warm=0), window=4)
        assert encoded.count(fed.server.codec) == number
    assert own == number * sites * size
    assert other == 0


async def test_what_the_socket_is_given_is_the_object_and_few_calls_carry_it(counts: Counts) -> None:
    number, size = 32, 4 * MIB
    data = np.arange(size, dtype=np.uint8)
    given = Counter[bool]()

    def see(_sock: socket.socket, buffers: Any, *args: Any) -> None:
        for buffer in buffers if isinstance(buffers, (list, tuple)) else [buffers]:
            if len(buffer) >= 32 * KIB:
                given[np.shares_memory(as_bytes(buffer), data)] += len(buffer)

    for name in SENDING:
        counts.count(socket.socket, name, see=see)
    for name in RECEIVING:
        counts.count(socket.socket, name)
    async with federation("tcp", 1) as fed:
        producer = Objects(lambda n: Shareable({"data": data}), number, warm=4, begin=counts.begin, end=counts.end)
        await run(fed, producer, window=4)
    assert given[True] >= (number - 4) * size
    assert given[False] == 0
    megabytes = number * size / MIB
    # How much the kernel takes and gives at a time is its own business; a call for each 64 KiB would be 16.
    assert counts.total(SENDING) / megabytes <= 8
    assert counts.total(RECEIVING) / megabytes <= 12


async def test_arrays_are_read_into_where_they_stay(counts: Counts) -> None:
    """From the socket straight into the memory of the array that the consumer gets."""
    number, size = 32, 4 * MIB
    data = np.arange(size, dtype=np.uint8)
    targets: list[tuple[int, int]] = []  # address and room of each place that bulk data was read to
    staged: list[int] = []  # bytes of each object before the first that was read to its place

    def see(_sock: socket.socket, buffers: Any, *args: Any) -> None:
        large = [as_bytes(buffer) for buffer in (buffers if isinstance(buffers, list) else [buffers])]
        targets.extend((array.ctypes.data, len(array)) for array in large if len(array) >= 32 * KIB)

    def look(shareable: Shareable) -> None:
        start = array_of(shareable).ctypes.data
        within = [address - start for address, room in targets if start <= address and address + room <= start + size]
        staged.append(min(within, default=size))
        targets.clear()

    for name in ("recv_into", "recvmsg_into"):
        counts.count(socket.socket, name, see=see)
    async with federation("tcp", 1) as fed:
        producer = Objects(lambda n: Shareable({"data": data}), number, warm=2, begin=counts.begin, end=counts.end)
        await run(fed, producer, window=1, look=look)
    # A chunk's first bytes may come with what was read before it; the rest is read to where it belongs.
    assert max(staged[-number + 1 :]) <= 64 * KIB


@anywhere
async def test_memory_of_arrays_is_used_again(transport: str, counts: Counts) -> None:
    number, window, size = 64, 4, MIB
    data = np.zeros(size, np.uint8)
    fresh: list[int] = []
    taken: list[int] = []
    counts.count(np, "empty", see=lambda shape, *args, **kwargs: fresh.append(int(np.prod(shape))))
    counts.count(Memory, "take", see=lambda memory, size: taken.append(size))
    async with federation(transport, 1) as fed:
        counts.begin()
        await run(fed, Objects(lambda n: Shareable({"data": data}), number, warm=0), window=window)
    assert taken.count(size) == len(taken) == number  # one destination for each object
    assert 1 <= fresh.count(size) <= window  # as many blocks as objects are there at once


@anywhere
async def test_bulk_data_takes_no_memory_but_its_destinations(transport: str) -> None:
    number, window, size = 48, 4, 2 * MIB
    data = np.zeros(size, np.uint8)
    async with federation(transport, 1) as fed:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            await run(fed, Objects(lambda n: Shareable({"data": data}), number, warm=0), window=window)
            growth = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
    # The sender's is the caller's own array; at the site, one destination for each object that is there at once. A copy
    # of a chunk, of 1 MiB, is too much.
    assert window * size // 2 <= growth <= window * size + 512 * KIB


# --- frames ---


class Frames:
    """Counts the frames of every link that a ``FaultyNetwork`` makes, by type and by way."""

    def __init__(self) -> None:
        self.of: Counter[int] = Counter()

    def watch(self, link: LinkControl) -> None:
        link.up.rewrite = link.down.rewrite = self._see

    def _see(self, frame: Frame) -> list[Frame]:
        self.of[frame.kind] += 1
        return [frame]


def watched(
    frames: Frames, settings: EngineSettings | None = None
) -> tuple[FaultyNetwork, AbstractAsyncContextManager[Federation]]:
    return FaultyNetwork(frames.watch), federation("memory", 1, settings=settings)


async def test_a_small_object_is_one_frame_out_and_one_back() -> None:
    frames, number = Frames(), 500
    network, federated = watched(frames)
    with network:
        async with federated as fed:
            await run(fed, Objects(small, number, warm=0), window=64)
    assert frames.of[FrameType.OBJECT] == frames.of[FrameType.REPLY] == number
    assert frames.of[FrameType.GRANT] == frames.of[FrameType.CHUNK] == 0
    assert sum(frames.of.values()) - 2 * number <= 20  # greeting, OPEN, END, ENDED, and what little CREDIT there is


async def test_a_large_object_costs_one_grant_and_credit_comes_by_half_windows() -> None:
    frames, number, size = Frames(), 32, MIB
    data = np.zeros(size, np.uint8)
    limits = Limits(window=4 * MIB, frame=64 * KIB)
    network, federated = watched(frames, EngineSettings(limits=limits))
    with network:
        async with federated as fed:
            await run(fed, Objects(lambda n: Shareable({"data": data}), number, warm=0), window=4)
    assert frames.of[FrameType.OBJECT] == frames.of[FrameType.REPLY] == number
    assert frames.of[FrameType.GRANT] <= number
    # 32 MiB, and a CREDIT for each half of 4 MiB; a few more for the heads and the frame by which a half is overshot.
    assert number * size / (limits.window / 2) - 1 <= frames.of[FrameType.CREDIT] <= number * size / limits.window * 2.5
    # Chunks as large as they may be, but for the last of each write, which what the link can hold cuts short.
    assert number * size / limits.frame <= frames.of[FrameType.CHUNK] <= 2 * number * size / limits.frame
