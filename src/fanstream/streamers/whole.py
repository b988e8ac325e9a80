"""A whole in parts: what all streamers do to send one, and with replies; and what makes their consumers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..arguments import check_timeout
from ..context import FLContext, StreamContext
from ..engine import StreamEngine
from ..options import StreamOptions
from ..shareable import ReturnCode, Shareable
from ..streaming import ConsumerFactory, ObjectConsumer, ObjectProducer, StreamResult, Timeout


class WholeProducer(ObjectProducer):
    """Sends a whole, each part as one object, and keeps what the sites replied.

    Args:
        timeout: how long a site may take to answer one object.
        withdraw: end the stream as soon as the last gather is complete, without waiting for sites outside a quorum.

    Attributes:
        replies: site name to its reply to the last object, or, where there is none, to its latest reply that was not
            OK: a site that refuses a part takes no further ones.

    Raises:
        TypeError, ValueError: *timeout* is no positive and finite time.
    """

    def __init__(self, timeout: Timeout, *, withdraw: bool) -> None:
        self._timeout = check_timeout(timeout)
        self._withdraw = withdraw
        self._over = False
        self._open = 0  # objects whose replies have not been judged
        self.replies: dict[str, Shareable] = {}

    @abstractmethod
    async def part(self) -> tuple[Mapping[str, Any], bool]:
        """Return what the next object holds, and whether it is the last."""

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, Timeout]:
        if self._over:
            return None, 0
        part, self._over = await self.part()
        self._open += 1
        return Shareable(part), self._timeout

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        self._open -= 1
        fine = {site for site, reply in replies.items() if reply.get_return_code() == ReturnCode.OK}
        last = self._over and not self._open
        self.replies.update((site, reply) for site, reply in replies.items() if last or site not in fine)
        # Not before a site has taken it: a value that is not None would call a stream that nobody took OK.
        return True if last and self._withdraw and fine else None


async def send_whole(
    engine: StreamEngine,
    channel: str,
    topic: str,
    stream_ctx: StreamContext | None,
    targets: Sequence[str],
    producer: WholeProducer,
    fl_ctx: FLContext,
    optional: bool,
    secure: bool,
    options: StreamOptions,
) -> tuple[StreamResult, dict[str, Shareable]]:
    """Send a whole; return how the stream ended, and the replies that its producer has kept."""
    context = {} if stream_ctx is None else stream_ctx
    result = await engine.stream_objects(
        channel, topic, context, targets, producer, fl_ctx, optional, secure, options=options
    )
    return result, producer.replies


class WholeFactory(ConsumerFactory):
    """Makes a consumer for each stream.

    Args:
        make: makes one.
    """

    def __init__(self, make: Callable[[], ObjectConsumer]) -> None:
        self._make = make

    async def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        return self._make()
