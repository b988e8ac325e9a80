"""Runs a producer: what it makes is sent, and what the sites reply is given back to it, in order."""

from __future__ import annotations

from typing import Any, Final

import anyio

from ..adapters import watches_replies
from ..arguments import check_timeout
from ..context import StreamContext
from ..shareable import Shareable
from ..streaming import ObjectProducer
from .stream import OutgoingStream

_UNWAITED: Final = 256
# Gathers judged in a row without waiting, after which the loop gets its turn: more than a usual window, so that it
# costs nothing there, yet a producer whose sites are all gone cannot starve the rest.


class ProducerRun:
    """One producer at work on one stream.

    With a window of 1 one task does everything in turn. With a larger one, one task produces ahead while another
    judges; the first failure of either ends both.

    Args:
        stream: an open stream.
        producer: async in all its methods.
        stream_ctx: passed to the producer.
        window: the stream's.
    """

    def __init__(
        self, stream: OutgoingStream, producer: ObjectProducer, stream_ctx: StreamContext, window: int
    ) -> None:
        self._stream = stream
        self._producer = producer
        self._stream_ctx = stream_ctx
        self._fl_ctx = stream.fl_ctx
        self._window = window
        self._news = stream.wakeup()
        self._judged = stream.gathering.first  # the next object whose replies are to be judged
        self._unwaited = 0
        self._exhausted = False
        self._value: Any = None
        self._error: BaseException | None = None
        stream.on_news = self._news.set
        stream.keep_offers = watches_replies(producer)

    async def seek(self) -> None:
        """Have the producer begin where an earlier life has ended."""
        producer: Any = self._producer
        await producer.seek(self._judged, self._stream_ctx, self._fl_ctx)

    async def run(self) -> Any:
        """Run until the producer ends the stream, or no site is left.

        Returns:
            What ``process_replies`` returned to end the stream, or None.
        """
        if self._window == 1:
            while await self._produce_one() and await self._judge_one():
                pass
        else:
            await self._run_ahead()
        return self._value

    async def _run_ahead(self) -> None:
        async with anyio.create_task_group() as tg:

            async def produce() -> None:
                try:
                    while await self._produce_one():
                        pass
                    self._exhausted = True
                    self._news.set()
                except BaseException as exc:  # passed on to the caller as itself, a KeyboardInterrupt too
                    if isinstance(exc, anyio.get_cancelled_exc_class()):
                        raise
                    self._error = exc
                    tg.cancel_scope.cancel()

            tg.start_soon(produce, name=f"produce for stream {self._stream.stream_id}")
            try:
                while await self._judge_one():
                    pass
            except Exception as exc:  # noqa: BLE001 - passed on to the caller as itself
                self._error = exc
            tg.cancel_scope.cancel()
        if self._error is not None:
            raise self._error

    async def _produce_one(self) -> bool:
        """Produce and send one object; False when there is none, or nobody wants it."""
        stream = self._stream
        if not stream.has_room and not await stream.room():
            return False
        if self._value is not None:  # the replies have ended the stream while there was no room
            return False
        produced = await self._producer.produce(self._stream_ctx, self._fl_ctx)
        if not isinstance(produced, tuple) or len(produced) != 2:
            raise TypeError(
                f"produce returned {type(produced).__name__}, expected a tuple (Shareable or None, timeout)"
            )
        obj, timeout = produced
        if obj is None:
            return False
        if not isinstance(obj, Shareable):
            raise TypeError(f"produce returned an object of type {type(obj).__name__}, expected Shareable or None")
        if stream.aborted:
            await stream.stand_aborted()
        seconds = check_timeout(timeout, "timeout of produce")
        stream.dispatch(await stream.seal(obj) if stream.sealed else obj, seconds)
        return True

    async def _judge_one(self) -> bool:
        """Wait for the next object's gather and have it judged; False once the stream is to end."""
        stream = self._stream
        while True:
            if stream.offers:
                await self.show_offers()
            flight = stream.gathering.flights.get(self._judged)
            if flight is not None and flight.complete:
                break
            if self._exhausted and self._judged == stream.gathering.objects:
                return False
            await self._news.wait()
            self._unwaited = 0
        self._unwaited += 1
        if self._unwaited > _UNWAITED:
            self._unwaited = 0
            await anyio.lowlevel.checkpoint()
        value = await self._producer.process_replies(flight.replies, self._stream_ctx, self._fl_ctx)
        if value is not None:
            self._value = value
            return False  # and no room is made: nothing may be produced any more
        self._judged += 1
        stream.judged(flight)
        return True

    async def show_offers(self) -> None:
        """Show the producer the replies that have come; again after the end, for those that came meanwhile."""
        producer, offers = self._producer, self._stream.offers
        while offers:
            offer = offers.popleft()
            show = producer.process_late_reply if offer.late else producer.process_reply
            await show(offer.site, offer.seq, offer.reply, self._stream_ctx, self._fl_ctx)
