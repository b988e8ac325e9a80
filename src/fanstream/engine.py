"""StreamEngine: its lifetime, its links to other sites, and the streams that run on them."""

from __future__ import annotations

import logging
import os
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.abc

from . import transports
from .abort import AbortSignal
from .adapters import FunctionFactory, GeneratorProducer, as_producer
from .codec import Codec
from .context import FLContext, StreamContext
from .deadlines import Deadlines
from .errors import ClosedError, NameInUseError, RemoteProtocolError, SecurityError, TransportError
from .handles import IncomingStreams, OpenStream
from .incoming import Handling, IncomingStream
from .link import Link
from .names import check_address, check_site
from .options import EngineSettings, StreamOptions
from .outgoing import OutgoingStream, Work, check_targets
from .producing import ProducerRun
from .protocol.bodies import Hello, Opening
from .protocol.core import LinkCore, Refusal, Surroundings
from .protocol.events import Opened, PresenceChanged
from .protocol.relay import FIRST_WINDOW
from .registry import Registration, Registry
from .shareable import ReturnCode
from .sites import Sites
from .streaming import ConsumerFactory, StreamableEngine, StreamResult
from .transports.addresses import Address, parse_all
from .transports.base import Listener, Wire
from .transports.memory import LOCAL, MemoryListener, network_now, watch
from .wakeup import Face, current_face

_log = logging.getLogger(__name__)

_REMEMBERED = 8192  # ids of ended streams that may not be opened again


class StreamEngine(StreamableEngine):
    """What one site runs: sends streams to other sites, and receives theirs. An async context manager.

    Args:
        site_name: this site's name: ``[A-Za-z0-9][A-Za-z0-9._-]{0,62}``.
        listen: addresses to be dialled at, as URLs, one or a list: the engine is a hub.
        connect: addresses of one hub, tried in order. With neither, engines of one event loop find each other by name.
        settings: how the engine runs.

    Raises:
        TypeError, ValueError: an argument is not what it should be.
    """

    def __init__(
        self,
        site_name: str,
        *,
        listen: str | Sequence[str] | None = None,
        connect: str | Sequence[str] | None = None,
        settings: EngineSettings | None = None,
    ) -> None:
        self.name = check_site(site_name, "site_name")
        self._listen = parse_all(listen, "listen")
        self._connect = parse_all(connect, "connect")
        if settings is not None and not isinstance(settings, EngineSettings):
            raise TypeError(f"settings is of type {type(settings).__name__}, expected EngineSettings")
        self.settings = settings or EngineSettings()
        self.codec = Codec(self.settings.limits)
        self.run_abort_signal = AbortSignal()
        self._registry = Registry()
        self._sticky: dict[str, Any] = {}
        self._outgoing: set[OutgoingStream] = set()
        self._incoming: set[IncomingStream] = set()
        self._known: dict[bytes, None] = {}
        self._listeners: list[Listener] = []
        self._half_open = 0
        self._state = "new"
        self._dial_error: Exception | None = None
        self._unwatch: Callable[[], object] = lambda: None
        limits = self.settings.limits
        self._hello = Hello(
            self.name, os.urandom(16), bool(self._listen), limits.frame, limits.window, FIRST_WINDOW, limits.backlog
        )
        self._shared = Surroundings.make(self.settings, self.codec, self._route)

    # --- lifetime ---

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise ClosedError(f"engine {self.name} was entered before; make a new one")
        self._state = "running"
        self.face: Face = current_face()
        self._timer = self.face.wakeup()
        self.deadlines = Deadlines(self._timer.set)
        self.limiter = anyio.CapacityLimiter(self.settings.workers)
        self._sites = Sites()
        self._idle = self.face.wakeup()
        self._links: set[Link] = set()
        self._births: deque[tuple[Callable[..., Coroutine[Any, Any, None]], tuple[Any, ...], str]] = deque()
        self._born = self.face.wakeup()
        self._dialling = anyio.Lock()
        self._closing = anyio.Event()
        self._outer = await anyio.create_task_group().__aenter__()
        self._tg: anyio.abc.TaskGroup = await self._outer.start(self._hold_tasks)
        try:
            self._tg.start_soon(self._run_timer, name=f"{self.name}: timer")
            self._tg.start_soon(self._run_births, name=f"{self.name}: births")
            for address in self._listen:
                allow = self.settings.allow_plain_tcp
                self._listeners.append(await transports.listen(address, self._accepted, allow_plain=allow))
            if self._connect:
                self._tg.start_soon(self._dial_for_ever, name=f"{self.name}: dial")
            elif not self._listen:
                self._listeners.append(MemoryListener(LOCAL + self.name, self._accepted))
                self._unwatch = watch(self._sites.tell)
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
            for listener in self._listeners:
                listener.close()
            await self.shutdown_streamer()
            for link in list(self._links):
                link.leave("bye")
            while self._links:
                await self._idle.wait()
        for listener in self._listeners:
            listener.close()
        self._unwatch()
        for _function, args, _name in self._births:
            if isinstance(args[0], Wire):
                args[0].close()
        self._state = "closed"
        self._closing.set()
        await self._outer.__aexit__(None, None, None)

    async def _hold_tasks(self, *, task_status: anyio.abc.TaskStatus[anyio.abc.TaskGroup]) -> None:
        """Be the parent of the engine's tasks: a cancelled body must not stop them before its streams have ended."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tg:
                task_status.started(tg)
                await self._closing.wait()
                tg.cancel_scope.cancel()

    def _spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any, name: str) -> None:
        """Start a task of the engine, also from a callback of the loop, where anyio knows no loop."""
        self._births.append((function, args, name))
        self._born.set()

    async def _run_births(self) -> None:
        while True:
            await self._born.wait()
            while self._births:
                function, args, name = self._births.popleft()
                self._tg.start_soon(function, *args, name=name)

    async def _run_timer(self) -> None:
        while True:
            when = self.deadlines.next()
            if when is None:
                await self._timer.wait()
                continue
            delay = when - self.face.time()
            if delay > 0:
                with anyio.move_on_after(delay):
                    await self._timer.wait()
            else:
                await anyio.lowlevel.checkpoint()
            try:
                self.deadlines.run(self.face.time())
            except Exception:  # noqa: BLE001 - one defect must not stop every deadline of the engine
                _log.exception("engine %s: a deadline's callback failed: a defect", self.name)

    async def shutdown_streamer(self) -> None:
        """Refuse new streams, abort the outgoing ones, and end the incoming ones as TASK_ABORTED; idempotent."""
        if self._state == "running":
            self._state = "shut"
        for stream in list(self._outgoing):
            stream.signal.trigger("the engine shuts down")
        for incoming in list(self._incoming):
            incoming.stop(ReturnCode.TASK_ABORTED, "the site shuts down")
        while self._outgoing or self._incoming:
            await self._idle.wait()

    # --- links ---

    @property
    def addresses(self) -> list[str]:
        """What was really bound, as URLs."""
        return [listener.address for listener in self._listeners if self._listen]

    def sites(self) -> set[str]:
        """Return the names of the sites that can be reached now."""
        return self._sites.names() | self._local_names()

    def _local_names(self) -> set[str]:
        if self._listen or self._connect:
            return set()
        return {name.removeprefix(LOCAL) for name in network_now() if name.startswith(LOCAL)} - {self.name}

    async def wait_for_sites(self, sites: Iterable[str]) -> None:
        """Wait until all these sites can be reached; the caller's scope is the timeout.

        Raises:
            NameInUseError: the hub says that another engine has this site's name.
        """
        self._check_running()
        if isinstance(sites, str):
            raise TypeError(f"sites is {sites!r}, a str; expected a list of site names")
        wanted = {check_site(name, f"sites[{index}]") for index, name in enumerate(sites)}
        while not wanted <= self.sites():
            if isinstance(self._dial_error, NameInUseError):
                raise self._dial_error
            await self._sites.changed()

    def _accepted(self, wire: Wire) -> None:
        if self._state in ("stopping", "closed") or self._half_open >= self.settings.limits.half_open:
            wire.close(TransportError("no further link is taken now"))
            return
        self._half_open += 1
        self._spawn(self._run_link, wire, False, name=f"{self.name}: link from {wire.name}")

    async def _run_link(self, wire: Wire, dialler: bool) -> None:
        link = Link(self, wire, self._hello, self._shared, dialler=dialler)
        self._links.add(link)
        try:
            await link.run()
        except Exception:  # noqa: BLE001 - a failing link never cancels the body of the engine
            _log.exception("engine %s: a link failed: a defect", self.name)
        finally:
            self._links.discard(link)
            if not dialler and not link.peer:
                self._half_open -= 1
            self._idle.set()

    async def _dial_for_ever(self) -> None:
        settings = self.settings
        pause = settings.retry_first
        while self._state == "running" or self._state == "shut":
            for address in self._connect:
                if await self._dial(address):
                    pause = settings.retry_first
            await anyio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            pause = min(pause * 2, settings.retry_max)

    async def _dial(self, address: Address) -> bool:
        """Dial one address and live with its link; return whether there was one."""
        try:
            with anyio.fail_after(self.settings.limits.hello_timeout):
                wire = await transports.dial(address, self.name, allow_plain=self.settings.allow_plain_tcp)
        except (TransportError, TimeoutError) as exc:
            if str(exc) != str(self._dial_error):
                _log.info("engine %s: %s", self.name, exc)
            self._dial_error = exc
            return False
        before = self._dial_error
        self._dial_error = None
        await self._run_link(wire, True)
        if self._dial_error is not None and before is None:
            _log.error("engine %s: %s", self.name, self._dial_error)
        return self._dial_error is None

    def greeted(self, link: Link, hello: Hello) -> None:
        """A peer has said HELLO."""
        if link.dialler:
            self._sites.add(link)
            return
        self._half_open -= 1
        old = self._sites.direct.get(hello.site)
        if hello.site == self.name:
            link.leave("name-in-use", f"{hello.site} is this engine's own name")
        elif old is None or not old.open:
            self._admit(link)
        elif old.core.session.peer is not None and old.core.session.peer.incarnation == hello.incarnation:
            old.drop(TransportError("replaced by a newer link of the same engine"))
            self._admit(link)
        else:
            self._spawn(self._probe, old, link, name=f"{self.name}: probe of {link.peer}")

    def _admit(self, link: Link) -> None:
        link.admit()
        self._sites.add(link)

    async def _probe(self, old: Link, new: Link) -> None:
        """Two engines claim one name: the newer gets it only if the older is dead."""
        asked = self.face.time()
        old.core.session.ping()
        with anyio.move_on_after(self.settings.probe_timeout):
            while old.open and old.core.session.last_received <= asked:  # noqa: ASYNC110 - any byte is the answer
                await anyio.sleep(0.01)
        if old.open and old.core.session.last_received > asked:
            new.leave("name-in-use", f"another engine answers as {new.peer}")
            return
        old.drop(TransportError("it did not answer, and another engine has its name"))
        if new in self._links:
            self._admit(new)

    def departed(self, link: Link, code: str, reason: str) -> None:
        """A peer has said GOAWAY."""
        if link.dialler and code == "name-in-use":
            self._dial_error = NameInUseError(reason)
        elif code == "protocol":
            _log.warning("link to %s: the peer says that this side broke the protocol: %s", link.peer, reason)

    def presence(self, link: Link, event: PresenceChanged) -> None:
        """A hub has said which sites it leads to."""
        if link.dialler:
            self._sites.presence(link, event.presence, self.name)

    def closed(self, link: Link, reason: str) -> None:
        """A link is gone."""
        _log.debug("engine %s: link to %s ended: %s", self.name, link.peer, reason)
        self._sites.remove(link)

    def _route(self, core: LinkCore, opening: Opening, target: str) -> LinkCore | Refusal | None:
        """Say where a stream that a peer opens goes."""
        through_hub = any(link.core is core and link.dialler for link in self._links)
        if opening.opener != core.peer and not through_hub:
            raise RemoteProtocolError(f"{core.peer} opens a stream in the name of {opening.opener}")
        if target == self.name:
            if self._state != "running":
                return Refusal(ReturnCode.SERVICE_UNAVAILABLE, f"{self.name} shuts down")
            if opening.stream in self._known:
                return Refusal(ReturnCode.BAD_REQUEST_DATA, "a stream of this id was opened before")
            return None
        link = self._sites.direct.get(target)
        if link is None or not link.open or link.dialler or through_hub or not self._listen:
            return Refusal(ReturnCode.COMMUNICATION_ERROR, f"{self.name} knows no way to {target}")
        return link.core

    async def reach(self, sites: Sequence[str], grace: float) -> Mapping[str, LinkCore]:
        """Return the links that lead to sites; those that cannot be reached within *grace* seconds are absent."""
        found: dict[str, LinkCore] = {}
        deadline = self.face.time() + grace
        while True:
            for name in sites:
                link = self._sites.find(name)
                if link is None and name in self._local_names():
                    link = await self._dial_local(name)
                if link is not None:
                    found[name] = link.core
            left = deadline - self.face.time()
            if len(found) == len(sites) or left <= 0:
                return found
            with anyio.move_on_after(left):
                await self._sites.changed()

    async def _dial_local(self, name: str) -> Link | None:
        """Connect to an engine of this event loop; streams that open at once share one link."""
        async with self._dialling:
            return self._sites.find(name) or await self._dial_local_now(name)

    async def _dial_local_now(self, name: str) -> Link | None:
        if LOCAL + name not in network_now():
            return None
        wire = await transports.dial(Address("memory", host=LOCAL + name), self.name, allow_plain=False)
        self._tg.start_soon(self._run_link, wire, True, name=f"{self.name}: link to {name}")
        with anyio.move_on_after(self.settings.limits.hello_timeout):
            while (link := self._sites.find(name)) is None:
                await self._sites.changed()
            return link
        return None

    # --- incoming streams ---

    def opened(self, event: Opened) -> None:
        """A peer has opened a stream at this site."""
        self._known[event.leg.opening.stream] = None
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        stream = IncomingStream(self, event.leg, event.body, self.run_abort_signal.child())
        self._incoming.add(stream)
        self._spawn(self._run_incoming, stream, name=f"{self.name}: incoming stream {stream.stream_id}")

    async def _run_incoming(self, stream: IncomingStream) -> None:
        try:
            await stream.run()
        except Exception:  # noqa: BLE001 - a failing stream never cancels the body of the engine
            _log.exception("engine %s: incoming stream %s failed: a defect", self.name, stream.stream_id)
        finally:
            self._incoming.discard(stream)
            self._idle.set()

    async def handling(self, channel: str, topic: str, grace: float) -> Handling | None:
        """Return what is registered, or will be within *grace* seconds."""
        found = self._registry.find(channel, topic)
        if found is None and grace > 0:
            with anyio.move_on_after(grace):
                while found is None:
                    await self._sites.changed()
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
        """
        check_address(channel, "channel", wildcard=True)
        check_address(topic, "topic", wildcard=True)
        if channel == "*" and topic != "*":
            raise ValueError(f"topic is {topic!r}: with channel '*' it can only be '*'")
        if not callable(getattr(factory, "get_consumer", None)):
            raise TypeError(f"factory is of type {type(factory).__name__}, expected a ConsumerFactory")
        for name, callback in (("stream_done_cb", stream_done_cb), ("consumed_cb", consumed_cb)):
            if callback is not None and not callable(callback):
                raise TypeError(f"{name} is of type {type(callback).__name__}, expected a function or None")
        registration = self._registry.register(
            channel, topic, Handling(factory, stream_done_cb, consumed_cb, cb_kwargs)
        )
        if self._state == "running":
            self._sites.tell()
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
    ) -> tuple[OutgoingStream, bytes]:
        self._check_running()
        check_address(channel, "channel")
        check_address(topic, "topic")
        if not isinstance(stream_ctx, dict):
            raise TypeError(f"stream_ctx is of type {type(stream_ctx).__name__}, expected a dict")
        if not isinstance(fl_ctx, FLContext):
            raise TypeError(f"fl_ctx is of type {type(fl_ctx).__name__}, expected an FLContext")
        if not isinstance(options, StreamOptions):
            raise TypeError(f"options is of type {type(options).__name__}, expected StreamOptions")
        names = check_targets(targets, self.name)
        needed = getattr(options.gather, "k", 1)
        if needed > len(names):
            raise ValueError(f"gather asks for {needed} replies of {len(names)} targets")
        if secure:
            raise SecurityError("secure=True: streams cannot be sealed yet, and nothing was sent")
        signal = fl_ctx.get_run_abort_signal().child()
        stream = OutgoingStream(
            self, channel, topic, stream_ctx, names, fl_ctx.under(signal), options, optional=optional, signal=signal
        )
        return stream, stream.encode_opening()

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

        Returns:
            How it ended, for each site and in all.

        Raises:
            TypeError, ValueError: an argument is not what it should be; nothing was sent.
            CodecError: ``stream_ctx`` or an object cannot be sent.
            SecurityError: *secure* cannot be had.
            ClosedError: the engine is not running.
            Exception: whatever the producer raised, as itself.
        """
        options = options or StreamOptions()
        stream, body = self._prepare(channel, topic, stream_ctx, targets, fl_ctx, options, optional, secure)
        made = as_producer(producer, window=options.window, timeout=options.timeout, limiter=self.limiter)

        try:
            async with self._running(stream) as work:
                await stream.open(body)
                work.value = await ProducerRun(stream, made, stream_ctx, options.window).run()
        finally:
            if isinstance(made, GeneratorProducer):
                with anyio.CancelScope(shield=True), anyio.move_on_after(self.settings.finalize_timeout):
                    await made.aclose()
        return work.done

    @asynccontextmanager
    async def _running(self, stream: OutgoingStream) -> AsyncIterator[Work]:
        """Have a stream opened and its work done inside its scope, and end it, however the work ended."""
        work = Work()
        self._outgoing.add(stream)
        try:
            with anyio.CancelScope() as scope:
                unsubscribe = stream.signal.subscribe(partial(self._aborted, stream, scope))
                try:
                    yield work
                    await stream.end(withdraw=work.value is not None)
                finally:
                    unsubscribe()
            if stream.aborted:
                await stream.settle_abort()
                work.value = None
            work.result = stream.result(work.value)
        except BaseException as exc:
            rc = ReturnCode.EXECUTION_EXCEPTION if isinstance(exc, Exception) else ReturnCode.TASK_ABORTED
            stream.abort(rc, f"{type(exc).__name__} at the opener")
            await stream.settle_abort()
            raise
        finally:
            self._outgoing.discard(stream)
            self._idle.set()

    @staticmethod
    def _aborted(stream: OutgoingStream, scope: anyio.CancelScope) -> None:
        stream.abort(ReturnCode.TASK_ABORTED, str(stream.signal.reason or "aborted"))
        scope.cancel()

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
        options = options or StreamOptions(window=64)
        fl_ctx = fl_ctx if fl_ctx is not None else self.new_context()
        context = {} if stream_ctx is None else stream_ctx
        stream, body = self._prepare(channel, topic, context, targets, fl_ctx, options, optional, secure)
        handle = OpenStream(stream, options)
        opened = False
        async with self._running(stream) as work:
            await stream.open(body)
            opened = True
            yield handle
        handle.result = work.done
        if not opened:
            raise ClosedError(f"stream {stream.stream_id} was aborted while it was being opened")
