"""Sealed streams at work: keys by real time and chance, and bulk data sealed and opened off the event loop.

``security/sealed`` decides; this module is imported by an engine that has an identity, and by no other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import anyio
import anyio.to_thread
import msgspec

from .codec import Codec, Encoded
from .codec.ciphertext import SMALL, Ciphertext
from .codec.faults import NotAtOnceError
from .codec.payloads import finished
from .errors import CodecError, SealError, SecurityError
from .protocol import bodies
from .protocol.events import (
    Aborted,
    EndAnnounced,
    Ended,
    EndingBegun,
    Lost,
    Refused,
    ReplyArrived,
    StreamEvent,
)
from .protocol.frames import FrameType
from .protocol.inbound import DECODED_AT_ONCE
from .security.sealed.chunks import Opening, Place
from .security.sealed.messages import PreKey
from .security.sealed.prekeys import CHALLENGE, KeyRing, Member, check_prekey
from .security.sealed.sessions import OpenerSession, ReceiverSession, SealedObject
from .security.sealed.suites import suite_named
from .shareable import ReturnCode, Shareable, make_reply

if TYPE_CHECKING:
    from .security.kit import Kit
    from .security.sealed.control import Control
    from .security.sealed.suites import Suite

_T = TypeVar("_T")

CHANNEL: Final = "_sealed"
TOPIC: Final = "prekey"

_QUESTION: Final = "challenge"
_ANSWER: Final = "prekey"
_FEW: Final = 8  # sites that a stream is opened to on the loop, at about 0.5 ms each


class Words:
    """The control words of one stream and site: what each of them says."""

    __slots__ = ("_control",)

    def __init__(self, control: Control) -> None:
        self._control = control

    def _hear(self, kind: FrameType, word: bytes, body: type[_T]) -> _T:
        heard = self._control.hear(kind, word)
        try:
            return msgspec.msgpack.decode(heard, type=body)
        except msgspec.MsgspecError as exc:
            raise SealError(f"what {kind.name} says cannot be read") from exc

    def end(self, count: int, withdraw: bool) -> bytes:
        """Say END."""
        return self._control.say(FrameType.END, msgspec.msgpack.encode((count, withdraw)))

    def check_end(self, word: bytes, count: int, withdraw: bool) -> None:
        """Hear END.

        Raises:
            SealError: its opener did not say this.
        """
        if self._hear(FrameType.END, word, tuple[int, bool]) != (count, withdraw):
            raise SealError("END says something else than its opener has")

    def abort(self, cause: bodies.Cause) -> bytes:
        """Say ABORT."""
        return self._control.say(FrameType.ABORT, bodies.encode(cause))

    def hear_abort(self, word: bytes) -> bodies.Cause:
        """Hear ABORT.

        Raises:
            SealError: its opener did not say this.
        """
        return self._hear(FrameType.ABORT, word, bodies.Cause)

    def ending(self) -> bytes:
        """Say ENDING."""
        return self._control.say(FrameType.ENDING, b"\xc0")

    def hear_ending(self, word: bytes) -> None:
        """Hear ENDING.

        Raises:
            SealError: the site did not say this.
        """
        self._hear(FrameType.ENDING, word, type(None))

    def ended(self, count: int, ending: bodies.Ending) -> bytes:
        """Say ENDED after *count* replies."""
        return self._control.say(FrameType.ENDED, msgspec.msgpack.encode((count, ending)))

    def hear_ended(self, word: bytes) -> tuple[int, bodies.Ending]:
        """Hear ENDED.

        Raises:
            SealError: the site did not say this.
        """
        return self._hear(FrameType.ENDED, word, tuple[int, bodies.Ending])

    def refused(self, cause: bodies.Cause) -> bytes:
        """Say REFUSED."""
        return self._control.say(FrameType.REFUSED, bodies.encode(cause))

    def hear_refused(self, word: bytes) -> bodies.Cause:
        """Hear REFUSED.

        Raises:
            SealError: the site did not say this.
        """
        return self._hear(FrameType.REFUSED, word, bodies.Cause)


class _Unsealing:
    """One sealed object on its way to the object that is in it: at once, or in steps of which two may be long."""

    __slots__ = ("_codec", "_decoding", "_envelope", "_opening")

    def __init__(self, codec: Codec, opening: Opening) -> None:
        self._codec = codec
        self._opening = opening

    def at_once(self) -> Shareable | CodecError:
        """Open and decode all of it.

        Raises:
            NotAtOnceError: it takes long to decode.
        """
        self.head()
        if len(self._envelope) > DECODED_AT_ONCE:
            raise NotAtOnceError
        sizes = self._opening.sizes
        try:
            if not sizes:
                return self._codec.decode(self._envelope, imports=False)
            decoding = self._codec.begin(self._envelope, sizes, imports=False)
        except CodecError as exc:
            return exc
        self._opening.into(decoding.destinations)
        return finished(decoding)

    def head(self) -> None:
        """Open the head: long where the first span is."""
        self._envelope = bytes(self._opening.head())

    def prepare(self) -> CodecError | None:
        """Make room for what the head describes; return why there is none."""
        try:
            self._decoding = self._codec.land(self._envelope, self._opening.sizes)
        except CodecError as exc:
            return exc
        return None

    def finish(self) -> Shareable | CodecError:
        """Open the rest and decode the object: long where that is large."""
        self._opening.into(self._decoding.destinations)
        return finished(self._decoding)


class Workshop:
    """Where an engine seals and opens.

    Args:
        codec: the engine's.
        workers: threads at most, for what is large.
    """

    def __init__(self, codec: Codec, workers: int) -> None:
        self._codec = codec
        self._limiter = anyio.CapacityLimiter(workers)

    async def run(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call a function on a thread; a call that has begun is waited for."""
        return await anyio.to_thread.run_sync(function, *args, limiter=self._limiter)

    async def seal(self, session: _Session, place: Place, encoded: Encoded) -> Encoded:
        """Seal an object.

        Raises:
            SecurityError: the stream's keys have had their time.
        """
        size = session.size_of(encoded.envelope, encoded.sizes)
        if size <= SMALL:
            return self.seal_now(session, place, encoded)
        memory = self._codec.memory.take(size)  # which belongs to the loop's thread
        return _as_encoded(await self.run(_seal, session, place, encoded, memory))

    def seal_now(self, session: _Session, place: Place, encoded: Encoded) -> Encoded:
        """Seal a small object; as :meth:`seal`."""
        size = session.size_of(encoded.envelope, encoded.sizes)
        return _as_encoded(_seal(session, place, encoded, memoryview(bytearray(size))))

    async def open(self, begin: Callable[[], Opening], size: int) -> Shareable | CodecError:
        """Open an object of *size* bytes, whose opening *begin* begins.

        Returns:
            It, or what its types met.

        Raises:
            SealError: it is not what its sender sealed.
        """
        if size <= SMALL:
            with suppress(NotAtOnceError):
                return self.open_now(begin())
        steps = _Unsealing(self._codec, begin())
        await self.run(steps.head)
        refusal = steps.prepare()
        return refusal if refusal is not None else await self.run(steps.finish)

    def open_now(self, opening: Opening) -> Shareable | CodecError:
        """Open a small object; as :meth:`open`.

        Raises:
            NotAtOnceError: it takes long to decode.
        """
        return _Unsealing(self._codec, opening).at_once()


class _Session(Protocol):
    """What seals: a stream's opener, or one of its sites."""

    def size_of(self, envelope: bytes, sizes: Sequence[int]) -> int: ...
    def seal(self, place: Place, envelope: bytes, buffers: Sequence[memoryview], out: memoryview) -> SealedObject: ...


def _seal(session: _Session, place: Place, encoded: Encoded, out: memoryview) -> SealedObject:
    return session.seal(place, encoded.envelope, encoded.buffers, out)


def _as_encoded(sealed: SealedObject) -> Encoded:
    sizes = tuple(map(len, sealed.buffers))
    return Encoded(sealed.envelope, sealed.buffers, sizes, sum(sizes))


class OpenerSeal:
    """The opener's side of one sealed stream.

    Args:
        workshop: the engine's.
        session: the stream's.

    Attributes:
        invitations: what OPEN carries to each site that can be reached.
        words: the control words with each of them.
    """

    def __init__(self, workshop: Workshop, session: OpenerSession) -> None:
        self._workshop = workshop
        self._session = session
        self.invitations: dict[str, bytes] = {}
        self.words: dict[str, Words] = {}

    def invite(self, prekeys: Mapping[str, PreKey]) -> None:
        """Wrap the keys for every site."""
        for site, prekey in prekeys.items():
            self.invitations[site] = self._session.invite(site, prekey)
            self.words[site] = Words(self._session.controls[site])

    async def seal(self, seq: int, encoded: Encoded, *, final: bool) -> Encoded:
        """Seal the next object, once for all sites.

        Raises:
            SecurityError: the stream's keys have had their time.
        """
        self._session.check(time.time())
        return await self._workshop.seal(self._session, Place(seq, 0, final), encoded)

    async def open(self, event: ReplyArrived) -> StreamEvent:
        """Open a reply, on a thread where it is large; return what the stream is to hear."""
        try:
            return _with_value(event, await self._workshop.open(partial(self._opening, event), event.value.size))
        except SealError as exc:
            return Lost(event.leg, f"reply {event.seq} is not that of {event.leg.site}: {exc}")

    def opened(self, event: StreamEvent) -> StreamEvent:
        """Open an event of one of the stream's legs; what is not the site's word counts as its loss.

        Raises:
            NotAtOnceError: a reply takes long to decode.
        """
        try:
            return self._opened(event)
        except SealError as exc:
            return Lost(event.leg, f"{type(event).__name__} is not the word of {event.leg.site}: {exc}")

    def _opened(self, event: StreamEvent) -> StreamEvent:
        leg = event.leg
        if type(event) is ReplyArrived:
            return _with_value(event, self._workshop.open_now(self._opening(event)))
        if type(event) is Ended:
            count, ending = self.words[leg.site].hear_ended(event.result)
            if count != leg.inbound.expected and not leg.aborted:
                raise SealError(f"{leg.site} gave {count} replies, and {leg.inbound.expected} came")
            return Ended(leg, ending.rc, ending.reason, ending.result)
        if type(event) is EndingBegun:
            self.words[leg.site].hear_ending(event.word)
        elif type(event) is Refused:
            if not event.word:  # it had no keys yet, or the hub said it: nobody can tell
                reason = f"{leg.site}, or the hub before it, refused: {event.rc}: {event.reason}"
                return Refused(leg, ReturnCode.COMMUNICATION_ERROR, reason)
            cause = self.words[leg.site].hear_refused(event.word)
            return Refused(leg, cause.rc, cause.reason)
        return event

    def _opening(self, event: ReplyArrived) -> Opening:
        sealed: Ciphertext = event.value
        place = Place(event.seq, 0, event.final)
        return self._session.open_reply(event.leg.site, place, sealed.envelope, sealed.buffers)


def _with_value(event: ReplyArrived, value: Any) -> ReplyArrived:
    return ReplyArrived(event.leg, event.seq, value, event.size, event.final)


class SiteSeal:
    """A site's side of one sealed stream.

    Args:
        workshop: the engine's.
        session: the stream's.

    Attributes:
        context: what came along with OPEN.
        words: the control words with the opener.
    """

    def __init__(self, workshop: Workshop, session: ReceiverSession) -> None:
        self._workshop = workshop
        self._session = session
        self.context = session.context
        self.words = Words(session.control)

    async def open(self, seq: int, sealed: Ciphertext, *, final: bool) -> Shareable | CodecError:
        """Open an object; as ``Workshop.open``."""
        place = Place(seq, 0, final)
        begin = partial(self._session.open_object, place, sealed.envelope, sealed.buffers)
        return await self._workshop.open(begin, sealed.size)

    def check(self, event: StreamEvent) -> StreamEvent:
        """Check what the opener is said to have said; what is not its word counts as its loss."""
        try:
            if type(event) is EndAnnounced:
                self.words.check_end(event.word, event.count, event.withdraw)
            elif type(event) is Aborted:
                cause = self.words.hear_abort(event.word)
                return Aborted(event.leg, cause.rc, cause.who, cause.reason)
        except SealError as exc:
            return Lost(event.leg, f"{type(event).__name__} is not the word of {event.leg.opener}: {exc}")
        return event

    async def seal(self, seq: int, encoded: Encoded, *, final: bool) -> Encoded:
        """Seal the reply to an object."""
        return await self._workshop.seal(self._session, Place(seq, 0, final), encoded)


class Sealing:
    """An engine's part in sealed streams.

    Args:
        kit: whose streams these are.
        codec: the engine's.
        suite: the suite's name; None for ``pq`` where BLAKE3 is installed, and ``pq-sha256`` elsewhere.
    """

    def __init__(self, kit: Kit, codec: Codec, suite: str | None) -> None:
        self._kit = kit
        self.suite = _default_suite() if suite is None else suite_named(suite)
        self._ring = KeyRing(self.suite, os.urandom)
        self._workshop = Workshop(codec, os.cpu_count() or 1)

    # --- pre-keys ---

    async def answer(self, question: Shareable, _stream_ctx: Any, _fl_ctx: Any) -> Shareable:
        """Answer one who asks for a pre-key; the consumer of ``CHANNEL`` and ``TOPIC``."""
        challenge = question.get(_QUESTION)
        if not isinstance(challenge, bytes):
            return make_reply(ReturnCode.BAD_REQUEST_DATA)
        return Shareable({_ANSWER: self._ring.answer(self._kit.member, challenge, time.time())})

    @staticmethod
    def question() -> Shareable:
        """Make what asks for pre-keys."""
        return Shareable({_QUESTION: os.urandom(CHALLENGE)})

    async def open(
        self, opening: bodies.Opening, epoch: bytes, targets: Sequence[str], context: bytes, question: Shareable,
        answers: Mapping[str, Shareable],
    ) -> OpenerSeal:  # fmt: skip
        """Open a stream, once its sites have answered.

        Args:
            opening: the stream's.
            epoch: the opener's incarnation.
            targets: all of its sites.
            context: what the application sends along.
            question: what the sites were asked.
            answers: what each has answered; sites that cannot be reached get no invitation.

        Raises:
            SecurityError: a site cannot be sealed for; names it, and says why.
        """
        member = self._kit.member
        asked: bytes = question[_QUESTION]

        def make() -> OpenerSeal:
            now = time.time()
            prekeys = {
                site: _prekey(site, answer, asked, member, self.suite, now)
                for site, answer in answers.items()
                if answer.get_return_code() not in _ABSENT
            }
            session = OpenerSession(
                member, self.suite, os.urandom, stream=opening.stream, epoch=epoch, channel=opening.channel,
                topic=opening.topic, targets=targets, context=context, now=now,
            )  # fmt: skip
            seal = OpenerSeal(self._workshop, session)
            seal.invite(prekeys)
            return seal

        return make() if len(answers) <= _FEW else await self._workshop.run(make)

    def accept(self, opening: bodies.Opening, body: bytes) -> SiteSeal:
        """Take part in a stream that another site has opened.

        Raises:
            SecurityError: it is not one that its opener has sealed for this site, now and for the first time.
        """
        session = ReceiverSession(
            self._ring, self._kit.member, self.suite, body, stream=opening.stream, opener=opening.opener,
            channel=opening.channel, topic=opening.topic, now=time.time(),
        )  # fmt: skip
        return SiteSeal(self._workshop, session)


_ABSENT: Final = (ReturnCode.COMMUNICATION_ERROR, ReturnCode.TIMEOUT)


def _prekey(site: str, answer: Shareable, challenge: bytes, member: Member, suite: Suite, now: float) -> PreKey:
    rc = answer.get_return_code()
    data = answer.get(_ANSWER)
    if rc == ReturnCode.TOPIC_UNKNOWN:
        raise SecurityError(f"secure=True: {site} has no identity, so nothing can be sealed for it; nothing was sent")
    if rc != ReturnCode.OK or not isinstance(data, bytes):
        raise SecurityError(f"secure=True: {site} gave no pre-key but {rc}; nothing was sent")
    try:
        return check_prekey(data, site, challenge, member, suite, now)
    except SecurityError as exc:
        raise SecurityError(f"secure=True: {site} cannot be sealed for: {exc}; nothing was sent") from exc


def _default_suite() -> Suite:
    try:
        return suite_named("pq")
    except SecurityError:
        return suite_named("pq-sha256")
