"""One incoming stream: a consumer's life, from its first object to its end."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import anyio

from ..abort import AbortSignal
from ..adapters import call, is_async
from ..arguments import OWN
from ..codec import Codec, Decoding, Encoded, Undecoded
from ..codec.ciphertext import Ciphertext
from ..codec.faults import NotAtOnceError
from ..codec.payloads import finished
from ..context import FLContext, StreamContext, StreamContextKey
from ..deadlines import Deadline, Deadlines
from ..errors import CodecError, JournalError, SealError, SecurityError, chained
from ..protocol.bodies import Cause, Ending, Opening, encode
from ..protocol.events import Aborted, EndAnnounced, Lost, ObjectArrived, StreamEvent
from ..protocol.frames import Flag
from ..protocol.inbound import DECODED_AT_ONCE
from ..protocol.receiver import ReceiverLeg
from ..shareable import ReservedHeaderKey, ReturnCode, Shareable, make_reply
from ..streaming import ObjectConsumer
from ..wakeup import Face
from .registry import Handling

if TYPE_CHECKING:
    from ..journal import Record
    from ..options import EngineSettings
    from ..sealing import SiteSeal

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_HEADERS: Final = ReservedHeaderKey.HEADERS
_JAR: Final = ReservedHeaderKey.COOKIE_JAR
_OK: Final = ReturnCode.OK
_PEER_PROPS: Final = ReservedHeaderKey.PEER_PROPS
_RC: Final = ReservedHeaderKey.RC
_LONGEST_REASON: Final = 1000  # characters; all of it stands in the reply
_UNWAITED: Final = 256  # objects consumed in a row without waiting, after which the loop gets its turn


_Last = tuple[int, Encoded]
"""This site's last reply, and the number of the object that it answers: it leaves with the end."""


class Host(Protocol):
    """What an incoming stream needs of its engine."""

    name: str
    face: Face
    deadlines: Deadlines
    codec: Codec
    settings: EngineSettings
    limiter: anyio.CapacityLimiter

    async def aside(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call a function that would hold up the event loop on a thread."""

    async def handling(self, channel: str, topic: str, grace: float) -> Handling | None:
        """Return what is registered, or will be within *grace* seconds; None if nothing."""

    def receiver_context(self, opener: str, job_id: str, props: Mapping[str, Any], signal: AbortSignal) -> FLContext:
        """Make the context of an incoming stream."""


class _SiteFailureError(Exception):
    """Something went wrong at this site: what the opener is told of it."""

    def __init__(self, rc: str, reason: str) -> None:
        super().__init__(reason)
        self.rc = rc
        self.reason = reason
        self.last: _Last | None = None


class IncomingStream:
    """The receiver's side of one stream.

    ``handle`` takes the link's events and never waits; ``run`` is the stream's one task.

    Args:
        host: the engine.
        leg: the protocol's end of the stream.
        body: what came with OPEN, encoded.
        signal: triggered when the stream is aborted, for consumers that poll; below the engine's run signal.
        seal: this site's keys, if the stream is sealed; or why it has none.
        record: the stream in the journal, if there is one.

    Attributes:
        rc: the return code of the end here, once there is one.
        refused: the code and the reason, where the stream was not taken after all.
        consumed: how many objects were.
    """

    def __init__(
        self,
        host: Host,
        leg: ReceiverLeg,
        body: bytes,
        signal: AbortSignal,
        seal: SiteSeal | SecurityError | None = None,
        record: Record | None = None,
    ) -> None:
        self._host = host
        self._leg = leg
        self._body = body
        self._signal = signal
        self._record = record
        self._seal: SiteSeal | None = None
        self._unsealable: SecurityError | None = None
        if isinstance(seal, SecurityError):
            self._unsealable = seal
        elif seal is not None:
            self._seal = seal
            self._body = seal.context
        self._queue: deque[ObjectArrived] = deque()
        self._news = host.face.wakeup()
        self._scope: anyio.CancelScope | None = None
        self._final: int | None = None
        self.rc = ""
        self.refused: tuple[str, str] | None = None
        self.consumed = leg.answered  # more than 0 in a stream that an earlier life has begun
        self._stop: tuple[str, str] | None = None  # return code and reason, once something other than the opener's END
        # As what it ends, unless something else ends it; None where nobody is to be told.
        self._ending: tuple[str, str] | None = (ReturnCode.TASK_ABORTED, "the engine ended")
        self._last_reply: _Last | None = None  # leaves with the end
        self._idle: Deadline | None = None
        self._in_hand = False  # whether an object is being consumed
        self._last_arrival = host.face.time()
        self._stream_ctx: StreamContext = {}
        self._fl_ctx: FLContext
        self._peer_props: dict[str, Any] = {}
        self._plain_ok: Encoded | None = None  # what None as a reply means, once the first reply has shown the props
        self._shown = leg.answered > 0  # whether the opener has this site's public props
        self._handling: Handling
        self._consumer: ObjectConsumer | None = None
        self._orphaned = leg.answered > 0  # an earlier life's consumer is to be finalized, and this life has none yet
        self._last: tuple[str, str] = (ReturnCode.OK, "")  # this site's last reply: its code, and the reason it gives
        self._limiter: anyio.CapacityLimiter | None = None  # set when the consumer is synchronous
        leg.owner = self

    @property
    def opening(self) -> Opening:
        """What its opener has said of it."""
        return self._leg.opening

    @property
    def stream_id(self) -> str:
        """The stream's id, as 32 hexadecimal digits."""
        return self._leg.opening.stream.hex()

    # --- what the link tells ---

    def handle(self, event: StreamEvent) -> None:
        """Take one event of this stream's leg; never waits."""
        if self._seal is not None:
            event = self._seal.check(event)
        if type(event) is ObjectArrived:
            self._queue.append(event)
            if event.final:
                self._final = event.seq + 1
            if self._idle is not None:
                self._last_arrival = self._host.face.time()
        elif type(event) is EndAnnounced:
            self._final = event.count
            if event.withdraw:
                self.stop(ReturnCode.OK, "withdrawn")
        elif type(event) is Aborted:
            if not self._gone:  # the loss of the stream may stand right behind its ABORT
                self._leg.ending(b"" if self._seal is None else self._seal.words.ending())
            self.stop(ReturnCode.TASK_ABORTED, event.reason)
        elif type(event) is Lost:
            self.stop(ReturnCode.COMMUNICATION_ERROR, event.reason)
        self._news.set()

    def stop(self, rc: str, reason: str) -> None:
        """End the stream at this site with *rc*: consume is cancelled where it waits; the first call counts."""
        if self._stop is not None:
            return
        self._stop = (rc, reason)
        self._queue.clear()
        self._signal.trigger(reason)
        if self._scope is not None:
            self._scope.cancel()

    def _end_stream(self, rc: str, fl_ctx: FLContext | None = None) -> None:
        """What the application finds under END_STREAM: may be called from any thread, and does not block."""
        self._host.face.call_from_anywhere(partial(self.stop, rc, "ended by the receiver"))

    # --- the stream's task ---

    async def run(self) -> None:
        """Live until the stream has ended at this site and the opener has been told."""
        leg, opening = self._leg, self._leg.opening
        try:
            with anyio.CancelScope() as self._scope:
                if self._stop is not None:  # ended before it began
                    self._scope.cancel()
                if self._unsealable is not None:
                    self._ending = None
                    self.refused = (ReturnCode.BAD_REQUEST_DATA, str(self._unsealable))
                    if not self._gone:
                        leg.refuse(*self.refused)
                    return
                grace = self._host.settings.registration_grace
                if not leg.attached:  # of an earlier life: objects come no sooner than its opener
                    grace = max(grace, opening.resume / 1000)
                handling = await self._host.handling(opening.channel, opening.topic, grace)
                if handling is None:
                    reason = f"nothing is registered for {opening.channel}/{opening.topic}"
                    if self.consumed:
                        raise _SiteFailureError(ReturnCode.TOPIC_UNKNOWN, reason)
                    self.refused = (ReturnCode.TOPIC_UNKNOWN, reason)
                    if not self._gone:
                        self._refuse(*self.refused)
                    self._ending = None
                    return
                self._handling = handling
                await self._read_opening()
                self._watch_idle()
                unsubscribe = self._signal.subscribe(partial(self.stop, ReturnCode.TASK_ABORTED, "run aborted"))
                try:
                    ended_here = await self._consume_all()
                finally:
                    unsubscribe()
                if ended_here is not None:
                    self._ending, self._last_reply = ended_here
                    return
            self._ending = self._stop or (ReturnCode.OK, "")
        except _SiteFailureError as failure:
            self._ending = self._stop or (failure.rc, failure.reason)
            self._last_reply = failure.last
        finally:
            if self._idle is not None:
                self._host.deadlines.cancel(self._idle)
            await self._conclude()

    async def _conclude(self) -> None:
        # On its own, for mypyc takes what may be None for what it was before, where a `finally` looks at it.
        ending = self._ending
        if ending is not None:
            await self._end(*ending, self._last_reply)

    def _refuse(self, rc: str, reason: str) -> None:
        if self._seal is None:
            self._leg.refuse(rc, reason)
        else:
            self._leg.refuse(rc, "", self._seal.words.refused(Cause(rc, self._host.name, reason)))

    async def _decode_body(self) -> Any:
        decode = self._host.codec.decode_value
        if len(self._body) <= DECODED_AT_ONCE:
            with suppress(NotAtOnceError):
                return decode(self._body, imports=False)
        return await self._host.aside(decode, self._body)

    async def _read_opening(self) -> None:
        leg = self._leg
        try:
            body = await self._decode_body()
            context, props, job = body["stream_ctx"], body["props"], body["job"]
            if not (isinstance(context, dict) and isinstance(props, dict) and isinstance(job, str)):
                raise TypeError("its parts are of the wrong types")
        except (CodecError, TypeError, KeyError) as exc:
            reason = f"OPEN's body cannot be read: {exc}"
            raise chained(_SiteFailureError(ReturnCode.BAD_REQUEST_DATA, reason), exc)
        self._body = b""
        context.pop(StreamContextKey.RC, None)
        context[StreamContextKey.CHANNEL] = leg.opening.channel
        context[StreamContextKey.TOPIC] = leg.opening.topic
        context[StreamContextKey.OPENER] = leg.opener
        context[StreamContextKey.STREAM_ID] = self.stream_id
        context[StreamContextKey.END_STREAM] = self._end_stream
        self._stream_ctx = context
        self._peer_props = props
        self._fl_ctx = self._host.receiver_context(leg.opener, job, props, self._signal)

    def _watch_idle(self) -> None:
        limit = self._host.settings.idle_timeout
        if limit is None:
            return
        quiet_until = self._last_arrival + limit

        def look(now: float) -> None:
            if self._queue or self._in_hand or not self._leg.attached:
                self._last_arrival = now  # what waits here may well be all that the opener may send
            if self._last_arrival + limit <= now:
                self.stop(ReturnCode.TIMEOUT, f"nothing came for {limit} s")
            else:
                self._watch_idle()

        self._idle = self._host.deadlines.at(max(quiet_until, self._host.face.time() + 0.001), look)

    async def _next(self) -> ObjectArrived | None:
        """Wait for the next object; None once there are no more."""
        while not self._queue:
            if self._final is not None and self.consumed >= self._final:
                return None
            await self._news.wait()
        return self._queue.popleft()

    async def _consume_all(self) -> tuple[tuple[str, str], _Last] | None:
        """Consume until the end.

        Returns:
            When this site ended the stream itself: as what, and the reply that is to carry the end.
        """
        arrived = None if self.consumed else await self._next()
        if arrived is None and not self.consumed:
            return None
        if self._record is not None:
            await self._keep(self._record.begun())
        consumer = await self._get_consumer(arrived)
        if arrived is None:  # an earlier life has consumed some: there is something to finalize in any case
            arrived = await self._next()
        consume = consumer.consume if self._limiter is None else partial(call, consumer.consume, limiter=self._limiter)
        unwaited = 0
        while arrived is not None:
            self._in_hand = True
            if type(arrived.value) is not Shareable:
                await self._open(arrived)
            go_on, reply, failure = await self._consume(consume, arrived)
            self._in_hand = False
            if self._idle is not None:
                self._last_arrival = self._host.face.time()
            self.consumed = arrived.seq + 1
            self._leg.release(arrived.size)
            if self._stop is not None:  # a synchronous consumer that was aborted has returned
                return None
            if not go_on:
                end = self._last if failure is None else (failure.rc, failure.reason)
                return end, (arrived.seq, reply)
            if self._seal is not None:
                reply = await self._seal.seal(arrived.seq, reply, final=False)
                if self._gone:
                    return None
            if self._record is not None:
                await self._keep(self._record.done(arrived.seq, reply, acked=self._leg.acked))
            self._leg.reply(arrived.seq, reply)
            unwaited = unwaited + 1 if self._queue else 0
            if unwaited > _UNWAITED:
                unwaited = 0
                await anyio.lowlevel.checkpoint()
            arrived = None  # its memory is free for the next one
            arrived = self._queue.popleft() if self._queue else await self._next()
        return None

    async def _keep(self, written: Awaitable[None]) -> None:
        """Wait until something is on the disk; what cannot be kept is not acknowledged."""
        try:
            await written
        except JournalError as exc:
            raise chained(self._report(exc, "the journal"), exc)

    async def _open(self, arrived: ObjectArrived) -> None:
        """Put what is in an object that was sealed, or is not decoded yet, in its place."""
        value = arrived.value
        if isinstance(value, (Decoding, Undecoded)):
            arrived.value = await self._host.aside(finished, value)
        elif isinstance(value, Ciphertext) and self._seal is not None:
            try:
                arrived.value = await self._seal.open(arrived.seq, value, final=arrived.final)
            except SealError as exc:
                reason = f"object {arrived.seq} is not that of {self._leg.opener}: {exc}"
                raise chained(_SiteFailureError(ReturnCode.COMMUNICATION_ERROR, reason), exc)

    async def _get_consumer(self, arrived: ObjectArrived | None) -> ObjectConsumer:
        """Make the consumer; a failure answers the first object and ends the stream here."""
        self._orphaned = False
        try:
            consumer = await call(
                self._handling.factory.get_consumer, self._stream_ctx, self._fl_ctx, limiter=self._host.limiter
            )
            if not callable(getattr(consumer, "consume", None)):
                raise TypeError(f"get_consumer returned {type(consumer).__name__}, expected an ObjectConsumer")
        except Exception as exc:  # noqa: BLE001 - the application's code may raise anything
            failure = self._report(exc, "get_consumer")
            if arrived is not None:
                reply = make_reply(failure.rc, {"reason": failure.reason})
                failure.last = (arrived.seq, self._host.codec.encode(reply))
            raise chained(failure, exc)
        if not is_async(consumer.consume):
            self._limiter = self._host.limiter
        self._consumer = consumer
        return consumer  # type: ignore[no-any-return]  # duck-typed, as checked above

    async def _consume(
        self, consume: Callable[..., Any], arrived: ObjectArrived
    ) -> tuple[bool, Encoded, _SiteFailureError | None]:
        """Consume one object.

        Returns:
            Whether to go on, the encoded reply, and what went wrong if something did.
        """
        value = arrived.value
        callback = self._handling.consumed_cb
        try:
            if type(value) is not Shareable:  # a CodecError
                raise chained(_SiteFailureError(ReturnCode.BAD_REQUEST_DATA, str(value)), value)
            entries: dict[str, Any] = value
            headers = entries.get(_HEADERS, {})  # a [] of what derives from dict takes three times as long
            headers[_PEER_PROPS] = self._peer_props
            self._stream_ctx[StreamContextKey.SEQ] = arrived.seq
            result = await consume(value, self._stream_ctx, self._fl_ctx)
            if not isinstance(result, tuple) or len(result) != 2:
                raise TypeError(f"consume returned {type(result).__name__}, expected a tuple (go on, reply)")
            go_on, reply = result
            if reply is not None and not isinstance(reply, Shareable):
                raise TypeError(f"consume returned a reply of type {type(reply).__name__}, expected Shareable")
            plain_ok = self._plain_ok if go_on and callback is None and _JAR not in headers else None
            if plain_ok is not None and (reply is None or _is_plain_ok(reply)):
                return True, plain_ok, None
            if reply is None:
                reply = make_reply(_OK)
            if callback is not None:
                await call(
                    callback, (go_on, reply), self._stream_ctx, self._fl_ctx, limiter=self._limiter,
                    **self._handling.cb_kwargs,
                )  # fmt: skip
            jar = headers.get(_JAR)
            if jar is not None and reply.get_cookie_jar() is None:
                reply.set_cookie_jar(jar)
            self._show_props(reply)
            encoded = self._host.codec.encode(reply)
            if self._plain_ok is None:
                self._plain_ok = self._host.codec.encode(make_reply(ReturnCode.OK))
        except Exception as exc:  # noqa: BLE001 - the application's code may raise anything
            failure = exc if isinstance(exc, _SiteFailureError) else self._report(exc, "consume")
            return False, self._host.codec.encode(make_reply(failure.rc, {"reason": failure.reason})), failure
        if not go_on:
            self._last = (reply.get_return_code(), str(reply.get_header("reason", ""))[:_LONGEST_REASON])
        return bool(go_on), encoded, None

    def _show_props(self, reply: Shareable) -> None:
        """Send this site's public props with its first reply; what a reply brought along from elsewhere is not its."""
        reply.headers.pop(_PEER_PROPS, None)
        if not self._shown and not self._leg.opening.channel.startswith(OWN):
            self._shown = True
            props = {**self._host.settings.public_props, **self._fl_ctx.get_all_public_props()}
            if props:
                reply.headers[_PEER_PROPS] = props

    def _say_ended(self, rc: str, reason: str, result: bytes) -> None:
        if self._seal is None:
            self._leg.ended(rc, reason, result)
        else:
            word = self._seal.words.ended(self._leg.answered, Ending(rc, reason, result))
            self._leg.ended(ReturnCode.OK, "", word)

    @property
    def _gone(self) -> bool:
        """Whether nobody is left to be told."""
        return self._leg.closed

    def _report(self, exc: BaseException, what: str) -> _SiteFailureError:
        """Log a failure of the application's code; make what the opener is told: no details, a number to ask for."""
        correlation = os.urandom(4).hex()
        opening = self._leg.opening
        _log.error(
            "%s failed on stream %s of %s (%s/%s), correlation id %s",
            what, self.stream_id, opening.opener, opening.channel, opening.topic, correlation,
            exc_info=exc,
        )  # fmt: skip
        return _SiteFailureError(
            ReturnCode.EXECUTION_EXCEPTION, f"{what} failed at {self._host.name}, correlation id {correlation}"
        )

    async def _end(self, rc: str, reason: str, last: _Last | None) -> None:
        """Finalize, and acknowledge the end; where there is a last reply, it leaves after that, and with it."""
        leg = self._leg
        with anyio.CancelScope(shield=True):
            if self._orphaned:
                await self._adopt()
            rc, reason, result = await self._finish(rc, reason)
            if last is not None and self._seal is not None and not self._gone:
                last = (last[0], await self._seal.seal(*last, final=True))
            if self._record is not None and self._record.error is None and not (self._gone or leg.aborted):
                try:
                    await self._keep_end(self._record, encode(Ending(rc, reason, result)), last)
                except JournalError as exc:
                    failure = self._report(exc, "the journal")
                    rc, reason, result, last = failure.rc, failure.reason, b"", None
            self.rc = rc
        if not self._gone:
            if last is not None:
                leg.reply(*last, final=True)
            self._say_ended(rc, reason, result)

    async def _adopt(self) -> None:
        """Make a consumer to be finalized where the stream is over before this life has come to make one."""
        opening, settings = self._leg.opening, self._host.settings
        with anyio.move_on_after(settings.finalize_timeout), suppress(_SiteFailureError):
            handling = await self._host.handling(opening.channel, opening.topic, settings.registration_grace)
            if handling is not None:
                self._handling = handling
                if self._body:  # not read yet
                    await self._read_opening()
                await self._get_consumer(None)

    async def _keep_end(self, record: Record, ending: bytes, last: _Last | None) -> None:
        leg = self._leg
        if last is None:
            await record.ended(ending, leg.answered, leg.acked)
        else:
            await record.ended(ending, leg.answered + 1, leg.acked, (*last, int(Flag.FINAL)))

    async def _finish(self, rc: str, reason: str) -> tuple[str, str, bytes]:
        """Run finalize, ``stream_done_cb`` and ``return_consumer``, each whatever the one before did.

        Returns:
            The return code of the end, why, and the encoded end result.
        """
        consumer = self._consumer
        if consumer is None:
            return rc, reason, b""
        handling, context, fl_ctx, limiter = self._handling, self._stream_ctx, self._fl_ctx, self._limiter
        context[StreamContextKey.RC] = rc
        failure: _SiteFailureError | None = None
        result: Any = None
        timeout = self._host.settings.finalize_timeout
        with anyio.move_on_after(timeout) as bound:
            finalize = getattr(consumer, "finalize", None)
            if finalize is not None:
                try:
                    await call(finalize, context, fl_ctx, limiter=limiter)
                except Exception as exc:  # noqa: BLE001 - the application's code may raise anything
                    failure = self._report(exc, "finalize")
                    context[StreamContextKey.RC] = failure.rc
            if handling.stream_done_cb is not None:
                try:
                    result = await call(handling.stream_done_cb, context, fl_ctx, limiter=limiter, **handling.cb_kwargs)
                except Exception as exc:  # noqa: BLE001 - the application's code may raise anything
                    failure = failure or self._report(exc, "stream_done_cb")
            give_back = getattr(handling.factory, "return_consumer", None)
            if give_back is not None:
                try:
                    await call(give_back, consumer=consumer, stream_ctx=context, fl_ctx=fl_ctx, limiter=limiter)
                except Exception as exc:  # noqa: BLE001 - the application's code may raise anything
                    self._report(exc, "return_consumer")
        if bound.cancelled_caught:
            failure = failure or self._report(TimeoutError(f"longer than {timeout} s"), "the end")
        encoded = b""
        if result is not None:
            try:
                encoded = self._host.codec.encode_value(result, limit=self._host.settings.limits.envelope)
            except CodecError as exc:
                failure = failure or self._report(exc, "encoding the value of stream_done_cb")
        if failure is not None:
            return failure.rc, failure.reason, encoded
        return rc, reason, encoded


def _is_plain_ok(reply: Shareable) -> bool:
    """Whether a reply says that all is well, and nothing else."""
    headers = reply.get(_HEADERS)
    return len(reply) == 1 and type(headers) is dict and len(headers) == 1 and headers.get(_RC) is _OK
