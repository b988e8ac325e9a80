"""The suite that every transport has to pass: what a ``Wire`` and a ``Listener`` promise to the link above them.

Subclass ``TransportConformance`` in a test module, and give it the fixture ``transport``, which says what is tested::

    class TestMine(TransportConformance):
        @pytest.fixture
        def transport(self) -> Transport:
            return Transport("mine://127.0.0.1:0")

It needs pytest with anyio's plugin. The backends are those of the fixture ``anyio_backend``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import anyio
import pytest

from .. import transports
from ..errors import BrokenError, ConnectError
from ..transports.addresses import parse
from ..transports.base import Listener, OnConnect, Wire
from ..wakeup import current_face

_PATIENCE: Final = 20.0  # seconds for a whole test, of which each takes a small part
_AT_ONCE: Final = 1.0  # seconds for what waits for nobody, on a busy machine
_BULK: Final = 48 * 1024 * 1024  # more than any transport holds between its two ends
_HELD: Final = 24 * 1024 * 1024  # bytes that it may hold
_TURNS: Final = 200  # of the loop, in which everything that can happen without the other end has happened


class Transport:
    """What the suite tests; a subclass may listen and dial in its own way.

    Args:
        address: an address to listen at that nobody else uses, as a URL.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    async def listen(self, address: str, on_connect: OnConnect) -> Listener:
        """Listen at an address.

        Raises:
            ConnectError: it is in use.
        """
        return await transports.listen(parse(address, "address"), on_connect, allow_plain=False)

    async def dial(self, address: str) -> Wire:
        """Connect to an address.

        Raises:
            ConnectError: nobody listens there.
        """
        return await transports.dial(parse(address, "address"), "dialler", allow_plain=False)


class ScriptedPump:
    """A pump that says what it is given, and keeps what it hears.

    Args:
        says: what it has to say; more may be added by ``say``.
        buffers: the sizes of the buffers that it reads into.

    Attributes:
        heard: all bytes received.
        asked: how often it was asked for output.
        said: bytes handed out.
        on_heard: called after each read.
    """

    def __init__(self, says: bytes = b"", buffers: Sequence[int] = (64 * 1024,)) -> None:
        self._says = memoryview(says)
        self._stages = [bytearray(size) for size in buffers]
        self._lent = bytearray()
        self._news = current_face().wakeup()
        self.heard = bytearray()
        self.asked = 0
        self.said = 0
        self.on_heard: Callable[[], object] = lambda: None

    def get_buffers(self) -> list[memoryview]:
        """Return where the next bytes are to be read."""
        return [memoryview(stage) for stage in self._stages]

    def received(self, count: int) -> None:
        """Take the bytes out of the buffers, in order."""
        assert 0 < count <= sum(len(stage) for stage in self._stages)
        for stage in self._stages:
            piece = min(count, len(stage))
            self.heard += stage[:piece]
            count -= piece
        self._news.set()
        self.on_heard()

    def next_output(self, limit: int) -> Sequence[bytes | memoryview]:
        """Hand out the next bytes in memory that is spoilt once it is asked again, as all was written then."""
        assert limit > 0
        self.asked += 1
        self._lent[:] = bytes(len(self._lent))
        piece, self._says = self._says[:limit], self._says[limit:]
        self.said += len(piece)
        self._lent = bytearray(piece)
        self._news.set()
        middle = len(piece) // 3
        view = memoryview(self._lent)
        return [part for part in (view[:middle], view[middle:]) if part]

    def say(self, data: bytes) -> None:
        """Have more to say; the wire is to be woken."""
        self._says = memoryview(bytes(self._says) + data)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition* holds; it is looked at whenever this pump was asked or has heard something."""
        while not condition():
            await self._news.wait()


class Connection:
    """Both ends of one connection, which nobody runs yet."""

    def __init__(self, near: Wire, far: Wire, listener: Listener) -> None:
        self.near = near
        self.far = far
        self.listener = listener

    async def exchange(self, near: ScriptedPump, far: ScriptedPump) -> None:
        """Run both ends until each has heard all that the other had to say."""
        to_far, to_near = len(near._says), len(far._says)
        async with anyio.create_task_group() as tg:
            tg.start_soon(self.near.run, near)
            tg.start_soon(self.far.run, far)
            await far.until(lambda: len(far.heard) >= to_far)
            await near.until(lambda: len(near.heard) >= to_near)
            tg.cancel_scope.cancel()


class Ending:
    """Runs a wire in a task, and tells how it ended."""

    def __init__(self, wire: Wire, pump: ScriptedPump) -> None:
        self._wire = wire
        self._pump = pump
        self._done = anyio.Event()
        self.scope = anyio.CancelScope()
        self.reason: Exception | None = None

    async def run(self) -> None:
        """Run the wire."""
        with self.scope:
            self.reason = await self._wire.run(self._pump)
        self._done.set()

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return self._done.is_set()

    async def wait(self) -> Exception | None:
        """Wait for the end; return the reason."""
        await self._done.wait()
        return self.reason


@asynccontextmanager
async def connected(transport: Transport) -> AsyncIterator[Connection]:
    """Listen, dial, and yield both ends; whatever is open afterwards is closed."""
    accepted = Accepted()
    with anyio.fail_after(_PATIENCE):
        listener = await transport.listen(transport.address, accepted)
        try:
            near = await transport.dial(listener.address)
            far = await accepted.next()
            try:
                yield Connection(near, far, listener)
            finally:
                near.close()
                far.close()
        finally:
            listener.close()
            accepted.close()


class Accepted:
    """Keeps the connections that a listener has accepted."""

    def __init__(self) -> None:
        self._news = current_face().wakeup()
        self._wires: list[Wire] = []

    def __call__(self, wire: Wire) -> None:
        self._wires.append(wire)
        self._news.set()

    async def next(self) -> Wire:
        while not self._wires:
            await self._news.wait()
        return self._wires.pop(0)

    def close(self) -> None:
        for wire in self._wires:
            wire.close()


async def _turns(count: int = _TURNS) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


def pattern(size: int) -> bytes:
    """Make bytes that repeat with a period that no buffer size has, so that a piece out of place is seen."""
    period = bytes(range(251))
    return (period * (size // 251 + 1))[:size]


@pytest.mark.anyio
class TransportConformance:
    """The suite; see the module's docstring for how to take it."""

    # --- bytes ---

    @pytest.mark.parametrize(
        "buffers",
        [(1,), (7,), (3, 5), (4096,), (100_000, 40), (64 * 1024,)],
        ids=lambda sizes: "+".join(map(str, sizes)),
    )
    async def test_bytes_arrive_whole_and_in_order_however_buffers_are_cut(
        self, transport: Transport, buffers: tuple[int, ...]
    ) -> None:
        size = min(2_000_000, sum(buffers) * 5_003)
        async with connected(transport) as connection:
            near, far = ScriptedPump(pattern(size)), ScriptedPump(pattern(size // 2), buffers)
            await connection.exchange(near, far)
            assert far.heard == pattern(size)
            assert near.heard == pattern(size // 2)

    async def test_reads_that_fill_the_first_buffer_go_on_in_the_second(self, transport: Transport) -> None:
        async with connected(transport) as connection:
            near, far = ScriptedPump(pattern(8_000_000)), ScriptedPump(buffers=(1_000_000, 40))
            await connection.exchange(near, far)
            assert far.heard == pattern(8_000_000)

    async def test_both_ways_at_once(self, transport: Transport) -> None:
        async with connected(transport) as connection:
            near, far = ScriptedPump(pattern(8_000_000)), ScriptedPump(pattern(7_000_000))
            await connection.exchange(near, far)
            assert far.heard == pattern(8_000_000)
            assert near.heard == pattern(7_000_000)

    async def test_being_asked_again_means_that_all_was_written(self, transport: Transport) -> None:
        """A pump spoils what it handed out as soon as it is asked again, as the owner of an object's buffers may."""
        async with connected(transport) as connection:
            near, far = ScriptedPump(pattern(_BULK)), ScriptedPump(buffers=(1_000_000, 40))
            await connection.exchange(near, far)
            assert far.heard == pattern(_BULK)

    async def test_a_sender_waits_for_its_receiver(self, transport: Transport) -> None:
        async with connected(transport) as connection, anyio.create_task_group() as tg:
            near, far = ScriptedPump(pattern(_BULK)), ScriptedPump(buffers=(1_000_000,))
            tg.start_soon(connection.near.run, near)
            await _turns()
            assert near.said <= _HELD, "the transport must not hold what nobody reads"
            tg.start_soon(connection.far.run, far)
            await far.until(lambda: len(far.heard) == _BULK)
            assert far.heard == pattern(_BULK)
            tg.cancel_scope.cancel()

    # --- waking ---

    async def test_what_is_said_later_is_sent_on_a_wake_up(self, transport: Transport) -> None:
        async with connected(transport) as connection, anyio.create_task_group() as tg:
            near, far = ScriptedPump(), ScriptedPump()
            tg.start_soon(connection.near.run, near)
            tg.start_soon(connection.far.run, far)
            for number in range(1, 20):
                await _turns(3)
                near.say(b"x" * number)
                connection.near.wake()
                await far.until(lambda number=number: len(far.heard) == number * (number + 1) // 2)  # type: ignore[misc]
            tg.cancel_scope.cancel()

    async def test_wake_ups_of_one_turn_count_as_one(self, transport: Transport) -> None:
        async with connected(transport) as connection, anyio.create_task_group() as tg:
            near, far = ScriptedPump(), ScriptedPump()
            tg.start_soon(connection.near.run, near)
            tg.start_soon(connection.far.run, far)
            await _turns(20)
            before = near.asked
            near.say(b"hello")
            for _ in range(1000):
                connection.near.wake()
            await far.until(lambda: far.heard == b"hello")
            await _turns(20)
            assert near.asked - before <= 4
            tg.cancel_scope.cancel()

    async def test_a_wake_up_before_the_run_is_not_lost_and_one_after_the_end_does_nothing(
        self, transport: Transport
    ) -> None:
        async with connected(transport) as connection:
            connection.near.wake()
            await connection.exchange(ScriptedPump(b"early"), ScriptedPump())
            connection.near.wake()
            connection.far.wake()
            await _turns(5)

    # --- the end ---

    async def test_closing_ends_this_side_quietly_and_wakes_the_other(self, transport: Transport) -> None:
        async with connected(transport) as connection, anyio.create_task_group() as tg:
            near, far = Ending(connection.near, ScriptedPump()), Ending(connection.far, ScriptedPump())
            tg.start_soon(near.run)
            tg.start_soon(far.run)
            await _turns(5)
            connection.near.close()
            assert await near.wait() is None
            assert isinstance(await far.wait(), BrokenError)

    async def test_the_reason_for_closing_comes_back(self, transport: Transport) -> None:
        async with connected(transport) as connection, anyio.create_task_group() as tg:
            near, reason = Ending(connection.near, ScriptedPump()), LookupError("enough")
            tg.start_soon(near.run)
            await _turns(5)
            connection.near.close(reason)
            connection.near.close(ValueError("a second one does not count"))
            assert await near.wait() is reason

    @pytest.mark.parametrize("size", [5, 6_000_000])
    async def test_closing_with_flush_sends_what_is_left_to_say(self, transport: Transport, size: int) -> None:
        async with connected(transport) as connection, anyio.create_task_group() as tg:
            pump = ScriptedPump(buffers=(1_000_000,))
            near, far = Ending(connection.near, ScriptedPump(pattern(size))), Ending(connection.far, pump)
            tg.start_soon(near.run)
            tg.start_soon(far.run)
            await _turns(5)
            connection.near.close(flush=True)
            assert await near.wait() is None
            assert isinstance(await far.wait(), BrokenError)
            assert pump.heard == pattern(size)

    async def test_closing_with_flush_before_the_other_end_runs_loses_nothing(self, transport: Transport) -> None:
        async with connected(transport) as connection, anyio.create_task_group() as tg:
            pump = ScriptedPump()
            near, far = Ending(connection.near, ScriptedPump(b"last words")), Ending(connection.far, pump)
            tg.start_soon(near.run)
            await _turns(5)
            connection.near.close(flush=True)
            await _turns(5)
            tg.start_soon(far.run)
            assert await near.wait() is None
            assert isinstance(await far.wait(), BrokenError)
            assert pump.heard == b"last words"

    async def test_closing_ends_a_flush_that_does_not_get_on(self, transport: Transport) -> None:
        async with connected(transport) as connection, anyio.create_task_group() as tg:
            near = Ending(connection.near, ScriptedPump(pattern(_BULK)))
            tg.start_soon(near.run)
            await _turns()
            connection.near.close(flush=True)
            await _turns(5)
            assert not near.ended
            connection.near.close()
            with anyio.fail_after(_AT_ONCE):
                await near.wait()

    async def test_closing_again_does_nothing(self, transport: Transport) -> None:
        async with connected(transport) as connection, anyio.create_task_group() as tg:
            near = Ending(connection.near, ScriptedPump())
            tg.start_soon(near.run)
            await _turns(5)
            for flush in (False, True, False):
                connection.near.close(flush=flush)
            await near.wait()
            connection.near.close()

    async def test_a_wire_closed_before_its_run_does_not_run(self, transport: Transport) -> None:
        async with connected(transport) as connection, anyio.create_task_group() as tg:
            reason = LookupError("never wanted")
            pump, far = ScriptedPump(b"unsaid"), Ending(connection.far, ScriptedPump())
            connection.near.close(reason)
            assert await connection.near.run(pump) is reason
            assert pump.asked == 0
            tg.start_soon(far.run)
            assert isinstance(await far.wait(), BrokenError)

    async def test_a_wire_closed_and_never_run_wakes_the_other_end(self, transport: Transport) -> None:
        async with connected(transport) as connection, anyio.create_task_group() as tg:
            far = Ending(connection.far, ScriptedPump())
            tg.start_soon(far.run)
            await _turns(5)
            connection.near.close()
            with anyio.fail_after(_AT_ONCE):
                assert isinstance(await far.wait(), BrokenError)

    async def test_a_pump_may_close_its_wire_when_it_hears_something(self, transport: Transport) -> None:
        async with connected(transport) as connection, anyio.create_task_group() as tg:
            pump = ScriptedPump(buffers=(10,))
            pump.on_heard = connection.far.close
            near, far = Ending(connection.near, ScriptedPump(b"x" * 1000)), Ending(connection.far, pump)
            tg.start_soon(near.run)
            tg.start_soon(far.run)
            assert await far.wait() is None
            assert pump.heard == b"x" * 10, "nothing is read once it is closed"
            assert isinstance(await near.wait(), BrokenError)

    async def test_cancelling_a_run_ends_it_at_once(self, transport: Transport) -> None:
        async with connected(transport) as connection, anyio.create_task_group() as tg:
            near = Ending(connection.near, ScriptedPump(pattern(_BULK)))
            far = Ending(connection.far, ScriptedPump())
            tg.start_soon(near.run)
            await _turns()  # it has much to say and cannot get on
            near.scope.cancel()
            with anyio.fail_after(_AT_ONCE):
                await near.wait()
            assert near.scope.cancelled_caught
            tg.start_soon(far.run)
            assert isinstance(await far.wait(), BrokenError)

    async def test_a_connection_that_ends_half_way_ends_both_sides(self, transport: Transport) -> None:
        async with connected(transport) as connection, anyio.create_task_group() as tg:
            pump = ScriptedPump(buffers=(100_000,))
            pump.on_heard = lambda: connection.far.close() if len(pump.heard) > 5_000_000 else None
            near, far = Ending(connection.near, ScriptedPump(pattern(_BULK))), Ending(connection.far, pump)
            tg.start_soon(near.run)
            tg.start_soon(far.run)
            assert await far.wait() is None
            assert isinstance(await near.wait(), BrokenError)
            assert pump.heard == pattern(len(pump.heard)), "what came before the end is what was sent"

    # --- addresses ---

    async def test_the_address_says_what_was_bound(self, transport: Transport) -> None:
        async with connected(transport) as connection:
            address = parse(connection.listener.address, "address")
            asked = parse(transport.address, "address")
            assert (address.scheme, address.host, address.path) == (asked.scheme, asked.host, asked.path)
            assert (address.port == 0) == (address.scheme in ("memory", "unix"))
            assert connection.listener.address in connection.near.name
            assert connection.far.name

    async def test_a_dial_that_nobody_answers_names_the_address(self, transport: Transport) -> None:
        async with connected(transport) as connection:
            address = connection.listener.address
        with pytest.raises(ConnectError) as caught, anyio.fail_after(_PATIENCE):
            await transport.dial(address)
        assert address in str(caught.value)

    async def test_an_address_in_use_is_refused_by_name(self, transport: Transport) -> None:
        async with connected(transport) as connection:
            address = connection.listener.address
            with pytest.raises(ConnectError) as caught:
                await transport.listen(address, Accepted())
            assert address in str(caught.value)
            await connection.exchange(ScriptedPump(b"still"), ScriptedPump(b"there"))

    async def test_closing_a_listener_frees_its_address_and_leaves_its_connections(self, transport: Transport) -> None:
        async with connected(transport) as connection:
            address = connection.listener.address
            connection.listener.close()
            connection.listener.close()
            accepted = Accepted()
            second = await transport.listen(address, accepted)
            try:
                assert second.address == address
                near = await transport.dial(address)
                far = await accepted.next()
                await Connection(near, far, second).exchange(ScriptedPump(b"new"), ScriptedPump())
            finally:
                second.close()
            await connection.exchange(ScriptedPump(b"old"), ScriptedPump())

    # --- many ---

    async def test_many_connections_at_once_keep_their_bytes_apart(self, transport: Transport) -> None:
        count = 100
        heard: dict[int, bytes] = {}

        async def serve(wire: Wire) -> None:
            pump = ScriptedPump()
            async with anyio.create_task_group() as tg:
                tg.start_soon(wire.run, pump)
                await pump.until(lambda: len(pump.heard) == 1000)
                pump.say(bytes(reversed(pump.heard)))
                wire.wake()
                await pump.until(lambda: pump.said == 1000)
                wire.close(flush=True)

        async def call(number: int, address: str) -> None:
            said = bytes([number]) * 500 + bytes([number + 1]) * 500
            wire, pump = await transport.dial(address), ScriptedPump(said)
            await wire.run(pump)
            heard[number] = bytes(pump.heard)

        with anyio.fail_after(_PATIENCE):
            accepted = Accepted()
            listener = await transport.listen(transport.address, accepted)
            try:
                async with anyio.create_task_group() as tg:
                    for number in range(count):
                        tg.start_soon(call, number, listener.address)
                    for _ in range(count):
                        tg.start_soon(serve, await accepted.next())
            finally:
                listener.close()
                accepted.close()
        assert heard == {number: bytes([number + 1]) * 500 + bytes([number]) * 500 for number in range(count)}
