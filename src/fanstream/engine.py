"""StreamEngine: its lifetime, and the streams that run on it."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import anyio
import anyio.to_thread

from .abort import AbortSignal
from .adapters import FunctionFactory, GeneratorProducer, as_producer
from .arguments import check_address, check_count, check_site, check_targets, check_type
from .codec import Codec
from .context import FLContext, StreamContext
from .deadlines import Deadline
from .errors import ClosedError, SecurityError
from .incoming.handles import IncomingStreams
from .incoming.registry import Handling, Registration, Registry
from .incoming.serving import Serving
from .observe import Audit, EventStream
from .outgoing.handle import OpenStream
from .outgoing.producing import ProducerRun
from .outgoing.request import Request
from .outgoing.running import Work, running
from .outgoing.stream import OutgoingStream
from .peers.authorization import Authorization
from .peers.connections import Connections
from .peers.membership import check_addresses
from .protocol.bodies import Opening
from .protocol.core import LinkCore
from .protocol.surroundings import Refusal
from .shareable import ReturnCode, Shareable
from .streaming import ConsumerFactory, StreamableEngine, StreamResult, UnfinishedStream
from .tasks import Tasks
from .transports.addresses import parse_all

if TYPE_CHECKING:
    from pathlib import Path

    from .journal import Journal
    from .options import EngineSettings, StreamOptions
    from .outgoing.ledger import Ledger
    from .sealing import Sealing
    from .security.kit import Kit
    from .store import Kept

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_MEMORY_KEPT: Final = 10.0  # seconds that idle memory outlives the last stream: rounds of training follow each other


class StreamEngine(StreamableEngine):
    """What one site runs: sends streams to other sites, and receives theirs. An async context manager.

    Args:
        site_name: this site's name: ``[A-Za-z0-9][A-Za-z0-9._-]{0,62}``.
        listen: addresses to be dialled at, as URLs, one or a list: the engine is a hub.
        connect: addresses of one hub, tried in order. With neither, engines of one event loop find each other by name.
        settings: how the engine runs.
        identity: this site's kit, which ``tls://`` addresses and sealed streams need. The engine looks after it as long
            as it runs.

    Raises:
        TypeError, ValueError: an argument is not what it should be.
        SecurityError: a ``tls://`` address has no kit, or one of another site or role.
        KitError: the policy's file is refused.
        JournalError: on entering, the journal cannot be used.
    """

    def __init__(
        self,
        site_name: str,
        *,
        listen: str | Sequence[str] | None = None,
        connect: str | Sequence[str] | None = None,
        settings: EngineSettings | None = None,
        identity: Kit | None = None,
    ) -> None:
        from .options import EngineSettings

        self.name = check_site(site_name, "site_name")
        self._listen = parse_all(listen, "listen")
        self._connect = parse_all(connect, "connect")
        self.settings = EngineSettings() if settings is None else settings
        check_type(self.settings, "settings", EngineSettings)
        self.identity = identity
        self._connect = check_addresses(self.name, self._listen, self._connect, identity)
        self.codec = Codec(self.settings.limits)
        self._sealing: Sealing | None = None
        self._audit = Audit(self.name)
        self._authorization: Authorization | None = None
        if self.settings.policy is not None:
            self._authorization = Authorization(self.settings.policy, self.name, self._role, self._audit)
        self.run_abort_signal = AbortSignal()
        self._registry = Registry()
        self._sticky: dict[str, Any] = {}
        self._outgoing: set[OutgoingStream] = set()
        self._sweep: Deadline | None = None
        self._journal: Journal | None = None
        self._ledger: Ledger | None = None
        self._state = "new"

    @classmethod
    def from_kit(cls, folder: str | Path, *, settings: EngineSettings | None = None) -> Self:
        """Make the engine that a kit describes; needs ``fanstream[security]``.

        Args:
            folder: the kit's.
            settings: in place of those in its ``kit.toml``.

        Raises:
            KitError: the kit is refused.
        """
        from .security import Kit

        kit = Kit.load(folder)
        told = kit.settings
        return cls(
            told.name,
            listen=told.listen or None,
            connect=told.connect or None,
            settings=settings or told.engine,
            identity=kit,
        )

    # --- lifetime ---

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise ClosedError(f"engine {self.name} was entered before; make a new one")
        self._state = "running"
        self._tasks = Tasks(self.name)
        self.face = self._tasks.face
        self.deadlines = self._tasks.deadlines
        self.limiter = anyio.CapacityLimiter(self.settings.workers)
        self._decoding = anyio.CapacityLimiter(os.cpu_count() or 1)
        self._idle = self.face.wakeup()
        if self.settings.journal is not None:
            from .journal import Journal
            from .outgoing.ledger import Ledger

            self._journal = Journal(self.settings.journal, self.name, self.face)
            self._ledger = Ledger(self._journal, self.face, self.deadlines)
        self._registered = anyio.Event()
        if self.identity is not None:
            from .sealing import CHANNEL, TOPIC, Sealing

            self._sealing = Sealing(self.identity, self.codec, self.settings.suite)
            prekeys = FunctionFactory(self._sealing.answer, self.limiter)
            self._registry.register(CHANNEL, TOPIC, Handling(prekeys))
        self._incoming = Serving(
            self, self._tasks, self.run_abort_signal, self._audit, self._journal, self._sealing, self._stream_ended
        )
        self._links = Connections(
            self.name,
            self.settings,
            self._listen,
            self._connect,
            self.identity,
            self.codec,
            self._tasks,
            self._admit,
            self._incoming.opened,
            self._authorization,
            self._audit,
            self._journal,
        )
        kept: list[Kept] = []
        if self._journal is not None and self._ledger is not None:
            kept = await self._journal.open(self._ledger.load)
            self._ledger.begin_leases()
        try:
            await self._tasks.start()
        except BaseException:
            if self._journal is not None:
                await self._journal.aclose()
            raise
        if self._authorization is not None:
            self._tasks.spawn(self._authorization.watch, name="policy")
        try:
            if self._journal is not None:
                self._tasks.spawn(self._journal.run, name="journal")
            self._incoming.restore(kept, self._links.restore)
            await self._links.start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        self._state = "stopping"
        with anyio.CancelScope(shield=True), anyio.move_on_after(self.settings.shutdown_timeout):
            self._links.refuse_further()
            await self.shutdown_streamer()
            await self._links.aclose()
            if self._journal is not None:
                await self._journal.flush()
        self._state = "closed"
        try:
            await self._tasks.stop()
        finally:  # also where the caller was cancelled
            if self._journal is not None:
                await self._journal.aclose()
            self.codec.memory.clear()
            self._audit.close()

    async def shutdown_streamer(self) -> None:
        """Refuse new streams, abort the outgoing ones, and end the incoming ones as TASK_ABORTED; idempotent."""
        if self._state == "running":
            self._state = "shut"
        for stream in list(self._outgoing):
            stream.signal.trigger("the engine shuts down")
        self._incoming.stop(ReturnCode.TASK_ABORTED, "the site shuts down")
        while self._outgoing or self._incoming:
            await self._idle.wait()

    def _stream_ended(self) -> None:
        self._idle.set()
        if self._sweep is None and not (self._outgoing or self._incoming) and self.codec.memory.held:
            self._sweep = self.deadlines.at(self.face.time() + _MEMORY_KEPT, self._sweep_memory)

    def _sweep_memory(self, now: float) -> None:
        self._sweep = None
        if not (self._outgoing or self._incoming):
            self.codec.memory.clear()

    # --- other sites ---

    @property
    def addresses(self) -> list[str]:
        """What was really bound, as URLs."""
        return self._links.addresses

    def sites(self) -> set[str]:
        """Return the names of the sites that can be reached now."""
        return self._links.names()

    async def wait_for_sites(self, sites: Iterable[str]) -> None:
        """Wait until all these sites can be reached; the caller's scope is the timeout.

        Raises:
            NameInUseError: the hub says that another engine has this site's name.
            SecurityError: the hub is not who it has to be, refuses this site, or cannot be reached safely.
        """
        self._check_running()
        if isinstance(sites, str):
            raise TypeError(f"sites is {sites!r}, a str; expected a list of site names")
        await self._links.wait_for([check_site(name, f"sites[{index}]") for index, name in enumerate(sites)])

    @property
    def life(self) -> bytes:
        """This engine's incarnation: 16 random bytes."""
        return self._links.life

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any, name: str) -> None:
        """Start a task that the engine waits for."""
        self._tasks.spawn(function, *args, name=name)

    async def aside(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call a function that would hold up the event loop on a thread; a call that has begun is waited for."""
        return await anyio.to_thread.run_sync(function, *args, limiter=self._decoding)

    async def reach(self, sites: Sequence[str], grace: float) -> Mapping[str, LinkCore]:
        """Return the links that lead to sites; those that cannot be reached within *grace* seconds are absent."""
        return await self._links.reach(sites, grace)

    def _role(self, name: str) -> str:
        """Return the role of a site: what its certificate says, or where there is none, who has dialled whom."""
        if name != self.name:
            return self._links.role(name)
        if self.identity is not None:
            return self.identity.identity.role
        return "hub" if self._listen else "site"

    def events(self, buffer: int = 1024) -> EventStream:
        """Iterate over what this engine does from now on: ``async for event in engine.events()``.

        Args:
            buffer: events that wait to be read, at most; beyond them the oldest are dropped, and counted.
        """
        return self._audit.listen(check_count(buffer, "buffer", least=1))

    # --- incoming streams ---

    def _admit(self, opening: Opening) -> Refusal | None:
        """Say whether this site takes a stream."""
        if self._state != "running":
            return Refusal(ReturnCode.SERVICE_UNAVAILABLE, f"{self.name} shuts down")
        return self._incoming.admit(opening)

    async def handling(self, channel: str, topic: str, grace: float) -> Handling | None:
        """Return what is registered, or will be within *grace* seconds."""
        found = self._registry.find(channel, topic)
        if found is None and grace > 0 and self._state == "running":
            with anyio.move_on_after(grace):
                while found is None:
                    await self._registered.wait()
                    found = self._registry.find(channel, topic)
        return found

    def receiver_context(self, opener: str, job_id: str, props: Mapping[str, Any], signal: AbortSignal) -> FLContext:
        """Make the context of an incoming stream."""
        peer = FLContext(opener, job_id)
        for key, value in props.items():
            peer.put(key, value, private=False, sticky=False)
        context = self.new_context(job_id, abort_signal=signal)
        context.set_peer_context(peer)
        return context

    def register_stream_processing(
        self,
        channel: str,
        topic: str,
        factory: ConsumerFactory,
        stream_done_cb: Callable[..., Any] | None = None,
        consumed_cb: Callable[..., Any] | None = None,
        **cb_kwargs: Any,
    ) -> Registration:
        """Have incoming streams of a channel and topic consumed; registering again replaces.

        Args:
            channel: the channel, or ``"*"``.
            topic: the topic, or ``"*"`` for all topics of the channel.
            factory: makes a consumer for each stream.
            stream_done_cb: called when a stream has ended; its value reaches the opener as ``end_result``.
            consumed_cb: called with what each ``consume`` returned.
            cb_kwargs: passed to both callbacks.

        Returns:
            A handle to unregister.

        Raises:
            TypeError, ValueError: an argument is not what it should be.
            SecurityError: the policy denies it.
        """
        check_address(channel, "channel", wildcard=True)
        check_address(topic, "topic", wildcard=True)
        if channel == "*" and topic != "*":
            raise ValueError(f"topic is {topic!r}: with channel '*' it can only be '*'")
        if self._authorization is not None:
            self._authorization.check_registration(channel, topic)
        if not callable(getattr(factory, "get_consumer", None)):
            raise TypeError(f"factory is of type {type(factory).__name__}, expected a ConsumerFactory")
        for name, callback in (("stream_done_cb", stream_done_cb), ("consumed_cb", consumed_cb)):
            if callback is not None and not callable(callback):
                raise TypeError(f"{name} is of type {type(callback).__name__}, expected a function or None")
        registration = self._registry.register(
            channel, topic, Handling(factory, stream_done_cb, consumed_cb, cb_kwargs)
        )
        if self._state == "running":
            event, self._registered = self._registered, anyio.Event()
            event.set()
        return registration

    def consumer(self, channel: str, topic: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Make the decorated function the consumer of a channel and topic.

        It is called with ``(shareable, stream_ctx, fl_ctx)``, and returns a reply, ``(go_on, reply)``, or None for OK.
        """

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            self._check_running()
            self.register_stream_processing(channel, topic, FunctionFactory(function, self.limiter))
            return function

        return register

    def incoming(self, channel: str, topic: str) -> IncomingStreams:
        """Iterate over incoming streams: ``async for stream in engine.incoming(...)``, ``async for obj in stream``."""
        self._check_running()
        streams = IncomingStreams()
        streams.registration = self.register_stream_processing(channel, topic, streams)
        return streams

    # --- outgoing streams ---

    def new_context(self, job_id: str = "", *, abort_signal: AbortSignal | None = None) -> FLContext:
        """Make a context of this engine.

        Args:
            job_id: the job that the work belongs to.
            abort_signal: the run's signal; a new one below the engine's when None.
        """
        signal = self.run_abort_signal.child() if abort_signal is None else abort_signal
        return FLContext(self.name, job_id, engine=self, abort_signal=signal, _sticky=self._sticky)

    def _check_running(self) -> None:
        if self._state != "running":
            raise ClosedError(f"engine {self.name} is {self._state}: use it inside its 'async with'")

    def _prepare(
        self,
        channel: str,
        topic: str,
        stream_ctx: StreamContext,
        targets: Any,
        fl_ctx: FLContext,
        options: StreamOptions,
        optional: bool,
        secure: bool,
        resume: str | None = None,
    ) -> tuple[OutgoingStream, bytes]:
        from .options import StreamOptions

        self._check_running()
        check_address(channel, "channel")
        check_address(topic, "topic")
        check_type(stream_ctx, "stream_ctx", dict)
        check_type(fl_ctx, "fl_ctx", FLContext)
        check_type(options, "options", StreamOptions)
        names = check_targets(targets, self.name)
        needed = getattr(options.gather, "k", 1)
        if needed > len(names):
            raise ValueError(f"gather asks for {needed} replies of {len(names)} targets")
        if self._authorization is not None:
            self._authorization.check_opening(channel, topic, names)
        if secure and self._sealing is None:
            raise SecurityError(f"secure=True: {self.name} has no identity to seal with; nothing was sent")
        request = Request(channel, topic, names, options, optional, secure)
        make: Callable[..., OutgoingStream] = OutgoingStream
        if options.durable or resume is not None:
            from .outgoing.durable import maker

            make = maker(self._ledger, self._links.take_up, resume, request)
        signal = fl_ctx.get_run_abort_signal().child()
        stream = make(self, request, stream_ctx, fl_ctx.under(signal), signal)
        return stream, stream.encode_opening()

    def unfinished_streams(self) -> list[UnfinishedStream]:
        """Return the durable streams that earlier lives of this engine have left, and that none has resumed yet.

        Each may be resumed for its ``resume_window``, which begins when the engine is entered.
        """
        self._check_running()
        return [] if self._ledger is None else self._ledger.unfinished()

    async def stream_objects(
        self,
        channel: str,
        topic: str,
        stream_ctx: StreamContext,
        targets: Sequence[str],
        producer: Any,
        fl_ctx: FLContext,
        optional: bool = False,
        secure: bool = False,
        *,
        options: StreamOptions | None = None,
        resume: str | None = None,
    ) -> StreamResult:
        """Send a stream of Shareables to sites and gather each site's reply to each object.

        Args:
            channel: the stream's channel.
            topic: its topic.
            stream_ctx: the stream's own dict; its entries reach every receiver once.
            targets: names of the sites.
            producer: an ObjectProducer, async or synchronous, or an async generator.
            fl_ctx: the opener's context; triggering its run abort signal aborts the stream.
            optional: sites where nothing is registered are skipped.
            secure: seal the stream end to end.
            options: how the stream runs.
            resume: the id of an unfinished durable stream of an earlier life of this engine, which goes on. Address,
                targets, *optional* and the options' backlog are the same as then; what was opened with is not sent
                again. The producer needs ``seek``.

        Returns:
            How it ended, for each site and in all.

        Raises:
            TypeError, ValueError: an argument is not what it should be; nothing was sent.
            UnknownStreamError: the journal has no unfinished stream of the id *resume*.
            JournalError: how far a durable stream is cannot be written; it is aborted.
            CodecError: ``stream_ctx`` or an object cannot be sent; or what an earlier life has kept cannot be decoded.
            SecurityError: *secure* cannot be had, or the policy denies the stream at one of the targets.
            ClosedError: the engine is not running.
            Exception: whatever the producer raised, as itself.
        """
        from .options import StreamOptions

        options = options or StreamOptions()
        stream, body = self._prepare(channel, topic, stream_ctx, targets, fl_ctx, options, optional, secure, resume)
        made = as_producer(
            producer, window=options.window, timeout=options.timeout, limiter=self.limiter, seeks=stream.durable
        )

        try:
            async with self._running(stream) as work:
                await self._open(stream, body, options, secure)
                run = ProducerRun(stream, made, stream_ctx, options.window)
                work.at_end = run.show_offers
                work.value = stream.verdict
                if work.value is None:
                    if resume is not None:
                        await run.seek()
                    work.value = await run.run()
                if isinstance(made, GeneratorProducer):
                    await made.show_last_replies()
        finally:
            if isinstance(made, GeneratorProducer):
                with anyio.CancelScope(shield=True), anyio.move_on_after(self.settings.finalize_timeout):
                    await made.aclose()
        return work.done

    async def _open(self, stream: OutgoingStream, body: bytes, options: StreamOptions, secure: bool) -> None:
        """Open a stream at its sites; one that is sealed, once they have given their pre-keys.

        Raises:
            SecurityError: a site that can be reached cannot be sealed for; the stream was opened nowhere.
        """
        if secure and not stream.aborted:
            assert self._sealing is not None
            targets = list(stream.gathering.sites)
            question = self._sealing.question()
            answers = await self._ask(targets, question, options.connect_grace)
            stream.seal_with(await self._sealing.open(stream.opening, self.life, targets, body, question, answers))
        await stream.open(body)

    async def _ask(self, targets: Sequence[str], question: Shareable, grace: float) -> dict[str, Shareable]:
        """Ask sites for their pre-keys, over a stream of the engine's own."""
        from .options import StreamOptions
        from .sealing import CHANNEL, TOPIC

        options = StreamOptions(connect_grace=grace)
        context = self.new_context()
        request = Request(CHANNEL, TOPIC, targets, options)
        asking = OutgoingStream(self, request, {}, context, context.get_run_abort_signal())
        async with self._running(asking):
            nothing = self.codec.encode_value({"stream_ctx": {}, "props": {}, "job": ""})  # it is not sealed
            await asking.open(nothing)
            return await OpenStream(asking, options).send(question, self.settings.limits.hello_timeout)

    @asynccontextmanager
    async def _running(self, stream: OutgoingStream) -> AsyncIterator[Work]:
        self._outgoing.add(stream)
        try:
            async with running(stream, self._audit) as work:
                yield work
        finally:
            self._outgoing.discard(stream)
            self._stream_ended()

    @asynccontextmanager
    async def open_stream(
        self,
        channel: str,
        topic: str,
        targets: Sequence[str],
        fl_ctx: FLContext | None = None,
        *,
        stream_ctx: StreamContext | None = None,
        optional: bool = False,
        secure: bool = False,
        options: StreamOptions | None = None,
    ) -> AsyncIterator[OpenStream]:
        """Open a stream and send objects one by one: ``replies = await stream.send(obj, timeout=5)``.

        Leaving the block ends the stream, with an exception it aborts it; ``stream.result`` is there afterwards.
        """
        from .options import StreamOptions

        options = options or StreamOptions(window=64)
        if options.durable:
            raise ValueError("options.durable is True: who sends one by one cannot say when replies have been judged")
        fl_ctx = fl_ctx if fl_ctx is not None else self.new_context()
        context = {} if stream_ctx is None else stream_ctx
        stream, body = self._prepare(channel, topic, context, targets, fl_ctx, options, optional, secure)
        handle = OpenStream(stream, options)
        opened = False
        async with self._running(stream) as work:
            await self._open(stream, body, options, secure)
            opened = True
            yield handle
        handle.result = work.done
        if not opened:
            raise ClosedError(f"stream {stream.stream_id} was aborted while it was being opened")
