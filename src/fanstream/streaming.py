"""The interface: what an application implements, and what an engine offers, by NVIDIA FLARE's names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from .context import FLContext, StreamContext
from .shareable import ReturnCode, Shareable

if TYPE_CHECKING:
    from .options import StreamOptions

Timeout = float | int | timedelta
"""How long a site may take to answer one object; positive and finite, in seconds or as a timedelta."""


class ObjectProducer(ABC):
    """Makes the objects of one stream and judges the replies; at the opener.

    Its methods may be plain functions: they then run in a worker thread, one at a time.
    """

    @abstractmethod
    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, Timeout]:
        """Make the next object.

        Returns:
            The object and how long each site may take to answer it; ``(None, 0)`` ends the stream.
        """

    @abstractmethod
    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        """Judge the replies to one object; called in order, once for each object, when its gather is complete.

        Args:
            replies: site name to reply. A site that did not answer in time has ``TIMEOUT``, one that cannot be reached
                ``COMMUNICATION_ERROR``; a site that has finished the stream early is absent.
            stream_ctx: the stream's context.
            fl_ctx: the opener's context.

        Returns:
            None to go on; anything else ends the stream at once and becomes ``StreamResult.value``.
        """

    async def process_reply(
        self, site: str, seq: int, reply: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> None:
        """Look at one reply as it arrives, before its gather is complete or after it; does nothing by default.

        Where it is overridden, it is awaited for each reply in the order of arrival, one at a time: also for those that
        come when ``process_replies`` has had enough of them, up to the end of the stream.
        """

    async def process_late_reply(
        self, site: str, seq: int, reply: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> None:
        """Look at a reply that came after its object's deadline; does nothing by default."""


class SeekableProducer(ObjectProducer):
    """A producer that can begin anywhere: what a durable stream needs.

    A class of its own, since a ``seek`` that every producer had would have to lie for most. Any producer with a method
    of that name and shape counts as one, and it may be a plain function too.
    """

    @abstractmethod
    async def seek(self, seq: int, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        """Have the next ``produce`` make object *seq*; called once, before the first ``produce`` of a resumed stream.

        Objects from there on may have been made by an earlier life, and consumed: they have to be equal to those.
        ``process_replies`` gets the replies to object *seq* next, whether or not the earlier life has seen them.
        """


class ObjectConsumer(ABC):
    """Takes the objects of one stream; at a receiving site. A plain ``consume`` runs in a worker thread."""

    @abstractmethod
    async def consume(
        self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> tuple[bool, Shareable | None]:
        """Take one object; called in order, one at a time.

        Returns:
            Whether this site wants more of the stream, and the reply; None for OK.
        """

    async def finalize(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        """Clean up: called exactly once, whatever ended the stream; ``stream_ctx["__RC__"]`` tells what did."""


class ConsumerFactory(ABC):
    """Makes an ObjectConsumer for each incoming stream."""

    @abstractmethod
    async def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        """Make the consumer of one new stream; called once, with its first object. May be a plain function."""

    async def return_consumer(self, consumer: ObjectConsumer, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        """Take a consumer back after its stream has ended; does nothing by default. Called by keyword."""


class StreamDoneCallback(Protocol):
    """The ``stream_done_cb`` of a registration, sync or async; what it returns reaches the opener as ``end_result``."""

    def __call__(self, stream_ctx: StreamContext, fl_ctx: FLContext, **kwargs: Any) -> Any:
        """Handle the end of one incoming stream."""


class ConsumedCallback(Protocol):
    """The ``consumed_cb`` of a registration, sync or async: called after each ``consume`` with what it returned."""

    def __call__(
        self, consumed: tuple[bool, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext, **kwargs: Any
    ) -> Any:
        """Handle one consumed object."""


def stream_done_cb_signature(stream_ctx: StreamContext, fl_ctx: FLContext, **kwargs: Any) -> Any:
    """Show the signature of a ``stream_done_cb``; :class:`StreamDoneCallback` is the same as a type."""


@dataclass(frozen=True, slots=True)
class SiteResult:
    """How a stream ended at one site.

    Attributes:
        rc: the return code of the end, or of what kept the site from ending well.
        end_result: what the site's ``stream_done_cb`` returned.
        outcomes: kind of outcome to number of objects; only kinds that occurred.
        late: replies that came after their object's deadline.
        resumed: how often the way to the site was broken and came back.
        reason: what the site, or the engine, said about an end that is not OK.
    """

    rc: str
    end_result: Any = field(default=None, repr=False)  # threat T24: no content in reprs
    outcomes: Mapping[str, int] = field(default_factory=dict)
    late: int = 0
    reason: str = ""
    resumed: int = 0


@dataclass(frozen=True, slots=True)
class UnfinishedStream:
    """A durable stream that an earlier life of an engine has left: what ``stream_objects`` is to be called with.

    Attributes:
        stream_id: what to give as ``resume``.
        channel, topic: its address.
        targets: names of the sites, in their order.
        first: the number of the first object that is not settled.
    """

    stream_id: str
    channel: str
    topic: str
    targets: tuple[str, ...]
    first: int


@dataclass(frozen=True, slots=True)
class StreamResult:
    """How a stream ended.

    Attributes:
        rc: OK only if nothing was lost; see the contract.
        value: what ``process_replies`` returned, or None.
        complete: every object was answered by every site, and every end was OK.
        sites: site name to :class:`SiteResult`.
        objects: how many objects were produced, by this life of the engine.
        bytes: size of the objects, each counted once, in bytes.
        seconds: from the call to the end.
        stream_id: the stream's 128-bit id, as 32 hexadecimal digits.
        first: the number of the first object that this result accounts for: 0, or, of a stream that was resumed, the
            first that an earlier life of the engine had not settled.
    """

    rc: str
    value: Any = field(repr=False)
    complete: bool
    sites: Mapping[str, SiteResult]
    objects: int
    bytes: int
    seconds: float
    stream_id: str
    first: int = 0

    def __bool__(self) -> bool:
        """Whether ``rc`` is OK."""
        return self.rc == ReturnCode.OK

    @property
    def outcomes(self) -> dict[str, int]:
        """Kind of outcome to number of (object, site) pairs, over all sites."""
        total: dict[str, int] = {}
        for site in self.sites.values():
            for kind, number in site.outcomes.items():
                total[kind] = total.get(kind, 0) + number
        return total


class Registration(Protocol):
    """What ``register_stream_processing`` returns."""

    def unregister(self) -> None:
        """Take the registration back; running streams go on. Does nothing if it was replaced or taken back before."""


class StreamableEngine(ABC):
    """What a streaming-capable engine offers."""

    @abstractmethod
    async def stream_objects(
        self,
        channel: str,
        topic: str,
        stream_ctx: StreamContext,
        targets: Sequence[str],
        producer: ObjectProducer | Any,
        fl_ctx: FLContext,
        optional: bool = False,
        secure: bool = False,
        *,
        options: StreamOptions | None = None,
        resume: str | None = None,
    ) -> StreamResult:
        """Send a stream of Shareables to sites and gather their replies; see ``StreamEngine.stream_objects``."""

    @abstractmethod
    def register_stream_processing(
        self,
        channel: str,
        topic: str,
        factory: ConsumerFactory,
        stream_done_cb: Callable[..., Any] | None = None,
        consumed_cb: Callable[..., Any] | None = None,
        **cb_kwargs: Any,
    ) -> Registration:
        """Have incoming streams of a channel and topic consumed; see ``StreamEngine.register_stream_processing``."""

    @abstractmethod
    def shutdown_streamer(self) -> Awaitable[None]:
        """End all streams and refuse new ones."""
