"""The suite for transports is shown to catch the mistakes that it is there for: each planted one turns a test red."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from fanstream.errors import ConnectError
from fanstream.testing import asyncio_backend
from fanstream.testing.conformance import Transport, TransportConformance
from fanstream.transports import Listener, OnConnect, Pump, Wire

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(
        "anyio_backend", [pytest.param(asyncio_backend(), id="asyncio")], indirect=True, scope="module"
    ),
]


class BentPump:
    """A pump between a wire and its own, that may bend what passes."""

    def __init__(self, pump: Pump) -> None:
        self.pump = pump

    def get_buffers(self) -> list[memoryview]:
        return self.pump.get_buffers()

    def received(self, count: int) -> None:
        self.pump.received(count)

    def next_output(self, limit: int) -> Sequence[bytes | memoryview]:
        return self.pump.next_output(limit)


class BentWire(Wire):
    """A good wire around which mistakes are planted."""

    Between: type[BentPump] = BentPump

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    @property
    def name(self) -> str:
        return self.wire.name

    async def run(self, pump: Pump) -> Exception | None:
        return await self.wire.run(self.Between(pump))

    def wake(self) -> None:
        self.wire.wake()

    def close(self, reason: Exception | None = None, *, flush: bool = False) -> None:
        self.wire.close(reason, flush=flush)


class AsksTooSoon(BentWire):
    """Asks for more before the last of it is written."""

    class Between(BentPump):
        def next_output(self, limit: int) -> Sequence[bytes | memoryview]:
            return [*self.pump.next_output(limit), *self.pump.next_output(limit)]


class AsksForEachWakeUp(BentWire):
    """Asks the pump at once whenever it is woken."""

    async def run(self, pump: Pump) -> Exception | None:
        self.pump = pump
        return await super().run(pump)

    def wake(self) -> None:
        if hasattr(self, "pump"):
            self.pump.next_output(1)
        super().wake()


class LosesWakeUps(BentWire):
    """Forgets that it was woken."""

    def wake(self) -> None:
        """Nothing."""


class Hoards(BentWire):
    """Takes all that there is to say, whether it can be written or not."""

    async def run(self, pump: Pump) -> Exception | None:
        held: list[bytes] = []
        while out := pump.next_output(1 << 20):
            held += [bytes(piece) for piece in out]

        class Holding(BentPump):
            def next_output(self, limit: int) -> Sequence[bytes | memoryview]:
                return [held.pop(0)] if held else self.pump.next_output(limit)

        return await self.wire.run(Holding(pump))


class ForgetsTheSecondBuffer(BentWire):
    """Reads into the first buffer alone, and counts what would have gone into the second."""

    class Between(BentPump):
        def get_buffers(self) -> list[memoryview]:
            first, *others = self.pump.get_buffers()
            return [first, *(memoryview(bytearray(len(other))) for other in others)]


class LosesTheReason(BentWire):
    async def run(self, pump: Pump) -> Exception | None:
        await super().run(pump)
        return None


class NeverFlushes(BentWire):
    def close(self, reason: Exception | None = None, *, flush: bool = False) -> None:
        super().close(reason)


class FlushesAlways(BentWire):
    def close(self, reason: Exception | None = None, *, flush: bool = False) -> None:
        super().close(reason, flush=True)


class Bent(Transport):
    """The memory transport with planted mistakes."""

    def __init__(self, wire: type[BentWire]) -> None:
        super().__init__("memory://bent")
        self._wire = wire

    async def listen(self, address: str, on_connect: OnConnect) -> Listener:
        return await super().listen(address, lambda wire: on_connect(self._wire(wire)))

    async def dial(self, address: str) -> Wire:
        return self._wire(await super().dial(address))


class Mute(Bent):
    """Refuses without saying what."""

    async def dial(self, address: str) -> Wire:
        try:
            return await super().dial(address)
        except ConnectError:
            raise ConnectError("nobody listens") from None


class Leaky(Bent):
    """Keeps an address that was given up."""

    async def listen(self, address: str, on_connect: OnConnect) -> Listener:
        listener = await super().listen(address, on_connect)
        listener.close = lambda: None  # type: ignore[method-assign]
        return listener


SUITE = TransportConformance()
PLANTED: list[tuple[Callable[[], Transport], Callable[..., Awaitable[Any]]]] = [
    (lambda: Bent(AsksTooSoon), SUITE.test_being_asked_again_means_that_all_was_written),
    (lambda: Bent(AsksForEachWakeUp), SUITE.test_wake_ups_of_one_turn_count_as_one),
    (lambda: Bent(LosesWakeUps), SUITE.test_what_is_said_later_is_sent_on_a_wake_up),
    (lambda: Bent(Hoards), SUITE.test_a_sender_waits_for_its_receiver),
    (lambda: Bent(ForgetsTheSecondBuffer), SUITE.test_reads_that_fill_the_first_buffer_go_on_in_the_second),
    (lambda: Bent(LosesTheReason), SUITE.test_the_reason_for_closing_comes_back),
    (lambda: Bent(NeverFlushes), SUITE.test_closing_with_flush_before_the_other_end_runs_loses_nothing),
    (lambda: Bent(FlushesAlways), SUITE.test_closing_ends_a_flush_that_does_not_get_on),
    (lambda: Mute(BentWire), SUITE.test_a_dial_that_nobody_answers_names_the_address),
    (lambda: Leaky(BentWire), SUITE.test_closing_a_listener_frees_its_address_and_leaves_its_connections),
]


@pytest.mark.parametrize(("make", "test"), PLANTED, ids=[test.__name__ for _, test in PLANTED])
async def test_a_planted_mistake_turns_it_red(
    make: Callable[[], Transport], test: Callable[..., Awaitable[Any]]
) -> None:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - an assertion, a time out or a group of them
        await test(make())
    assert isinstance(caught.value, (AssertionError, TimeoutError, ConnectError, ExceptionGroup)), caught.value


@pytest.mark.parametrize("test", [test for _, test in PLANTED], ids=[test.__name__ for _, test in PLANTED])
async def test_without_a_mistake_it_stays_green(test: Callable[..., Awaitable[Any]]) -> None:
    await test(Bent(BentWire))
