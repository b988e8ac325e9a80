"""The receiving half of one stream at one site: objects if it is the receiver's, replies if it is the opener's."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..codec.faults import NotAtOnceError
from ..errors import CodecError, RemoteProtocolError, UnknownTypeError, chained
from .budget import Budget
from .frames import PAYLOAD, PAYLOAD_SIZE, SMALL_OBJECT, Flag, FrameType, pack
from .sending import Scheduler

if TYPE_CHECKING:
    from ..options import Limits


class Decoding(Protocol):
    """One object being received (``codec.Decoding``, ``codec.codec.Undecoded``).

    Where it is *slow*, it is delivered itself, and whoever gets it has a worker thread finish it.
    """

    @property
    def destinations(self) -> Sequence[memoryview]: ...
    @property
    def slow(self) -> bool: ...
    def finish(self) -> Any: ...


class Decoder(Protocol):
    """What turns envelopes into objects, and says where their buffers are to land (``codec.Codec``)."""

    def decode(self, envelope: bytes, *, imports: bool) -> Any: ...
    def begin(self, envelope: bytes, sizes: Sequence[int], *, imports: bool) -> Decoding: ...
    def land(self, envelope: bytes, sizes: Sequence[int]) -> Decoding: ...


class Decoders(Decoder, Protocol):
    """What decodes objects, and what carries those that are sealed."""

    @property
    def carrier(self) -> Decoder: ...


_AHEAD: Final = int(Flag.AHEAD)

DECODED_AT_ONCE: Final = 16 * 1024
"""Bytes up to which an envelope is decoded on the event loop: in milliseconds, whatever they hold (threat T14)."""

UNCHARGED: Final = 4 * 1024
"""Bytes up to which an object is not counted against the budget: the stream's backlog bounds those."""


UNASKED_COST: Final = 1024
"""Bytes that an object costs besides its own, where many small ones wait."""

_FREE: Final = SMALL_OBJECT + UNASKED_COST  # of what comes unasked: each stream has room for one object, alone
_PIECE: Final = 256 * 1024  # bytes: what comes unasked takes its room in pieces of so much, seldom and for long


class NoRoomError(RemoteProtocolError):
    """There is no memory for this stream's small objects: it ends, though nobody has broken a rule."""


class Arrival:
    """One object or reply on its way in.

    Attributes:
        seq, flags: as its head said.
        size: bytes reserved for it, until it is released.
        behind: bytes of small objects that came while it waited for its reservation, and are counted with it.
        value: the decoded object, once it is whole; or the error that its types met.
    """

    __slots__ = (
        "behind",
        "buffer",
        "decoding",
        "done",
        "envelope",
        "flags",
        "offset",
        "seq",
        "size",
        "sizes",
        "value",
    )

    def __init__(self, seq: int, flags: int, size: int) -> None:
        self.seq = seq
        self.flags = flags
        self.size = size
        self.behind = 0
        self.sizes: Sequence[int] = ()
        self.envelope = b""
        self.decoding: Decoding | None = None
        self.buffer = 0
        self.offset = 0
        self.done = False
        self.value: Any = None


class Inbound:
    """Assembles payloads in order of their sequence numbers.

    Args:
        scheduler: the link's output, for GRANT and CREDIT.
        decoder: turns envelopes into objects.
        budget: the engine's.
        limits: the engine's.
        alias: the stream's alias on the link.
        target: the site's index among OPEN's targets.
        origin: the site that sends these payloads.
        deliver: called with each payload's seq, flags, value and size, once it and all before it are whole.
    """

    __slots__ = (
        "_ahead", "_alias", "_arriving", "_budget", "_by_seq", "_closed", "_decoder", "_deliver", "_envelope_limit",
        "_landed", "_limits", "_out", "_scheduler", "_target", "_unreserved", "_window", "acked", "aside", "backed",
        "expected", "held", "largest", "origin", "standing", "unasked",
    )  # fmt: skip

    def __init__(
        self,
        scheduler: Scheduler,
        decoder: Decoder,
        budget: Budget,
        limits: Limits,
        *,
        alias: int,
        target: int,
        origin: str,
        deliver: Callable[[int, int, Any, int], object],
    ) -> None:
        self._scheduler = scheduler
        self._decoder = decoder
        self._budget = budget
        self._limits = limits
        self._envelope_limit: int = limits.envelope
        self._window: int = limits.window
        self._alias = alias
        self._target = target
        self._deliver = deliver
        self._arriving: deque[Arrival] = deque()
        self._by_seq: dict[int, Arrival] = {}  # those whose buffers are still to come
        self._unreserved: deque[Arrival] = deque()
        self._landed = 0
        self._out = 0  # bytes passed on and not released, without what came ahead
        self._closed = False
        self.origin = origin
        self.held = 0
        self.aside = 0
        self.standing = 0
        self.unasked = 0
        """Bytes of small objects that came and were not released, each with what it costs besides."""
        self.largest = 0
        """Bytes of the largest object so far of those that need room of their own."""
        self.backed: set[int] = set()
        """Objects that came ahead into what is set aside, by number, until they are released."""
        self._ahead = 0  # their bytes
        self.expected = 0
        """The next sequence number."""
        self.acked = 0
        """How many of this side's replies the peer has said to have."""

    def payload(self, seq: int, flags: int, body: bytes) -> None:
        """Take the head of the next object or reply; its number is ``expected``, which the caller has checked.

        Raises:
            RemoteProtocolError: the head or the envelope breaks the rules.
        """
        length = len(body)
        self._land(length)
        if length < PAYLOAD_SIZE:
            raise RemoteProtocolError(f"payload head of {length} bytes, expected at least {PAYLOAD_SIZE}")
        count: int
        total: int
        acked: int
        _timeout, count, total, acked = PAYLOAD.unpack_from(body)
        if acked > self.acked:
            self.acked = acked
        self.expected = seq + 1
        if not count:
            if total:
                raise RemoteProtocolError(f"object without buffers announces {total} bytes of them")
            envelope = body[PAYLOAD_SIZE:]
            size = len(envelope)
            if size > self._envelope_limit:
                raise RemoteProtocolError(f"envelope of {size} bytes, limit {self._envelope_limit}")
            if size <= SMALL_OBJECT:
                self.unasked += size + UNASKED_COST
                if self.unasked > self.standing + _FREE:
                    self._stand()
            if size > UNCHARGED:
                self._charge(size)
            try:
                if size <= DECODED_AT_ONCE:
                    value = self._decoder.decode(envelope, imports=False)
                else:
                    value = self._take_as_it_is(envelope)
            except NotAtOnceError:
                value = self._take_as_it_is(envelope)
            except UnknownTypeError as exc:
                value = exc  # both sides must register a type: the stream's matter, not the link's
            except CodecError as exc:
                raise chained(RemoteProtocolError(f"object {seq} from {self.origin}: {exc}"), exc)
            if not self._arriving:
                if size > UNCHARGED:
                    self._out += size
                self._deliver(seq, flags, value, size)
                return
            arrival = Arrival(seq, flags, size)
            arrival.value = value
            arrival.done = True
            self._arriving.append(arrival)
            return
        limits = self._limits
        start = PAYLOAD_SIZE + 8 * count
        if count > limits.buffers or start > length:
            raise RemoteProtocolError(
                f"object of {count} buffers, limit {min(limits.buffers, (length - PAYLOAD_SIZE) // 8)}"
            )
        sizes = struct.unpack_from(f"<{count}Q", body, PAYLOAD_SIZE)
        envelope = body[start:]
        if len(envelope) > self._envelope_limit:
            raise RemoteProtocolError(f"envelope of {len(envelope)} bytes, limit {self._envelope_limit}")
        if sum(sizes) != total or 0 in sizes:
            raise RemoteProtocolError(f"object's buffers have {sum(sizes)} bytes, {total} announced; none may be empty")
        size = total + len(envelope)
        arrival = Arrival(seq, flags, size)
        arrival.sizes = sizes
        ahead = flags & _AHEAD and size > SMALL_OBJECT
        backed = False
        if ahead and (self.held or self._unreserved):
            if self._ahead + size > self.aside:
                raise RemoteProtocolError(
                    f"object {seq} of {size} bytes comes ahead of its grant: {self._ahead} of {self.aside} bytes set "
                    f"aside are taken, {self.held} others are held"
                )
            backed = True
        self._arriving.append(arrival)
        if size > limits.object:
            # The peer cannot know this side's limit, so it has broken no rule. Nothing was allocated; what comes ahead
            # of its grant is drained, and nothing else is sent.
            arrival.value = CodecError(f"an object of {size} bytes, limit {limits.object}")
            arrival.size = 0
            arrival.done = True
            self._count_unasked(0)
            if ahead:
                self._by_seq[seq] = arrival
            self._pass_on()
            return
        if size > SMALL_OBJECT and size > self.largest:
            self.largest = size
        if backed:
            self.backed.add(seq)
            self._ahead += size
            self._prepare(arrival, envelope)
        elif ahead:
            self._budget.charge(self, size)
            self._prepare(arrival, envelope)
        elif size <= SMALL_OBJECT:
            self._count_unasked(size)
            if size > UNCHARGED:
                self._charge(size)
            self._prepare(arrival, envelope)
        else:
            arrival.envelope = envelope
            self._unreserved.append(arrival)
            if self._budget.request(self, size):
                self._let_in()

    def _take_as_it_is(self, envelope: bytes) -> Any:
        """Take an object without buffers that is not decoded here."""
        landed = self._decoder.land(envelope, ())
        return landed if landed.slow else landed.finish()

    def _count_unasked(self, size: int) -> None:
        self.unasked += size + UNASKED_COST
        if self.unasked > self.standing + _FREE:
            self._stand()

    def _stand(self) -> None:
        """Take more room for what comes unasked."""
        lacking = self.unasked - self.standing - _FREE
        if not self._budget.stand(self, max(lacking, _PIECE, self.standing)):
            raise NoRoomError(f"{self.unasked} bytes of small objects from {self.origin} wait: there is no more room")

    def _charge(self, size: int) -> None:
        """Count a small object; behind one that waits for its reservation only with that, or both would wait for ever.

        A stream that holds nothing may reserve an object of any size: what cannot be delivered before that object must
        not count as held.
        """
        if self._unreserved:
            self._unreserved[-1].behind += size
        else:
            self._budget.charge(self, size)

    def granted(self) -> None:
        """Let in the oldest object that waited for its reservation.

        This runs while another stream gives its bytes back, which is not to blame for what this envelope holds: the
        peer hears of that with the object's first chunk.
        """
        arrival = self._unreserved[0]
        try:
            self._let_in()
        except RemoteProtocolError as exc:
            arrival.value = exc
            self._grant(arrival)

    def _let_in(self) -> None:
        arrival = self._unreserved.popleft()
        envelope, arrival.envelope = arrival.envelope, b""
        if arrival.behind:
            self._budget.charge(self, arrival.behind)
        self._prepare(arrival, envelope)
        self._grant(arrival)

    def _grant(self, arrival: Arrival) -> None:
        self._scheduler.control(pack(FrameType.GRANT, self._alias, arrival.seq, target=self._target))

    def _prepare(self, arrival: Arrival, envelope: bytes) -> None:
        self._by_seq[arrival.seq] = arrival
        self._decode(arrival, envelope)

    def _decode(self, arrival: Arrival, envelope: bytes) -> None:
        decoder, sizes = self._decoder, arrival.sizes
        try:
            if len(envelope) <= DECODED_AT_ONCE:
                arrival.decoding = decoder.begin(envelope, sizes, imports=False)
            else:
                arrival.decoding = decoder.land(envelope, sizes)
        except NotAtOnceError:
            arrival.decoding = decoder.land(envelope, sizes)
        except UnknownTypeError as exc:
            arrival.value = exc  # both sides must register a type: the stream's matter, not the link's
        except CodecError as exc:
            raise chained(RemoteProtocolError(f"object {arrival.seq} from {self.origin}: {exc}"), exc)

    def chunk(self, seq: int, buffer: int, offset: int, size: int) -> memoryview | None:
        """Say where a chunk's bytes land: where the last one ended, and nowhere else.

        Raises:
            RemoteProtocolError: it is not the next piece of an object that was let in.
        """
        arrival = self._by_seq.get(seq)
        if arrival is None:
            raise RemoteProtocolError(f"CHUNK for object {seq}, which has nothing to come or was not granted")
        if buffer != arrival.buffer or offset != arrival.offset:
            raise RemoteProtocolError(
                f"CHUNK at buffer {buffer}, offset {offset}; expected buffer {arrival.buffer}, offset {arrival.offset}"
            )
        if size > arrival.sizes[buffer] - offset:
            raise RemoteProtocolError(
                f"CHUNK of {size} bytes, {arrival.sizes[buffer] - offset} left in buffer {buffer}"
            )
        if isinstance(arrival.value, RemoteProtocolError):
            raise arrival.value
        if arrival.decoding is None:  # of unknown type: drained, never stored
            return memoryview(bytearray(size))
        return arrival.decoding.destinations[buffer][offset : offset + size]

    def chunk_done(self, seq: int, size: int) -> None:
        """Take note that a chunk has landed."""
        self._land(size)
        arrival = self._by_seq.get(seq)
        if arrival is None:  # cleared while it was landing
            return
        arrival.offset += size
        if arrival.offset < arrival.sizes[arrival.buffer]:
            return
        arrival.offset = 0
        arrival.buffer += 1
        if arrival.buffer < len(arrival.sizes):
            return
        del self._by_seq[seq]
        self._finish(arrival)
        self._pass_on()

    def _pass_on(self) -> None:
        """Deliver what is whole, in order."""
        arriving = self._arriving
        while arriving and arriving[0].done:
            whole = arriving.popleft()
            if whole.size > UNCHARGED and whole.seq not in self.backed:
                self._out += whole.size
            self._deliver(whole.seq, whole.flags, whole.value, whole.size)

    def _finish(self, arrival: Arrival) -> None:
        arrival.done = True
        decoding, arrival.decoding = arrival.decoding, None
        if decoding is None:
            return
        try:
            arrival.value = decoding if decoding.slow else decoding.finish()
        except UnknownTypeError as exc:
            arrival.value = exc
        except CodecError as exc:
            raise chained(RemoteProtocolError(f"object {arrival.seq} from {self.origin}: {exc}"), exc)

    def _land(self, size: int) -> None:
        self._landed += size
        if self._landed * 2 >= self._window:
            self._give_credit()

    def _give_credit(self) -> None:
        self._scheduler.control(pack(FrameType.CREDIT, self._alias, self._landed, target=self._target))
        self._landed = 0

    def tell_progress(self, landing: int) -> None:
        """Give credit for what has landed of a large object, so that its sender sees that it moves.

        Args:
            landing: bytes that have come of a payload or chunk that is not whole: they get credit ahead of it.
        """
        if self._landed + landing > 0 and (landing or self._by_seq):
            self._landed += landing
            self._give_credit()
            self._landed = -landing

    @property
    def progress(self) -> Hashable:
        """A mark that differs from what it was before whenever bytes have come; None while they wait for room here."""
        if self._unreserved:
            return None
        if not self._arriving:
            return self.expected
        arrival = self._arriving[0]
        return self.expected, arrival.seq, arrival.buffer, arrival.offset

    @property
    def complete(self) -> bool:
        """Whether nothing that was announced is still to come."""
        return not self._arriving

    @property
    def whole(self) -> int:
        """How many objects are whole, with all before them: what a broken way cannot take back."""
        return self.expected - len(self._arriving)

    def suspend(self, *, keep_begun: bool = True) -> None:
        """The way is broken: keep what is whole, and an object whose data has begun to land; the rest comes again.

        Args:
            keep_begun: False where that object comes again from its first byte too.
        """
        budget, arriving = self._budget, self._arriving
        budget.withdraw(self)
        self._unreserved.clear()
        begun = keep_begun and arriving and (arriving[0].buffer or arriving[0].offset)
        first = arriving[0] if begun else None
        for arrival in arriving:
            if arrival is first:
                continue
            if arrival.seq in self.backed:
                self.release_ahead(arrival.seq, arrival.size)
            if arrival.size <= SMALL_OBJECT:
                self.unasked -= arrival.size + UNASKED_COST
        if arriving:
            self.expected = arriving[0].seq
            arriving.clear()
        self._by_seq.clear()
        kept = 0
        if first is not None:
            arriving.append(first)
            self._by_seq[first.seq] = first
            self.expected = first.seq + 1
            kept = 0 if first.seq in self.backed or first.size <= UNCHARGED else first.size
        if not self._closed:
            budget.release(self, self.held - self._out - kept)

    def rejoin(self, scheduler: Scheduler, alias: int, target: int) -> None:
        """Go on over another link."""
        self._scheduler = scheduler
        self._alias = alias
        self._target = target
        self._landed = 0

    def restore(self, expected: int, acked: int) -> None:
        """Begin where an earlier life of this engine has stood."""
        self.expected = expected
        self.acked = acked

    @property
    def position(self) -> tuple[int, int, int]:
        """Where a suspended half goes on: the object's number, the buffer, and the byte in it."""
        if self._arriving:
            first = self._arriving[0]
            return first.seq, first.buffer, first.offset
        return self.expected, 0, 0

    def release(self, size: int) -> None:
        """End an object's reservation."""
        if size > UNCHARGED and not self._closed:
            self._out -= size
            self._budget.release(self, size)

    def release_ahead(self, seq: int, size: int) -> None:
        """Make room for others where object *seq* came ahead."""
        self.backed.discard(seq)
        self._ahead -= size

    def allow(self, least: int, most: int) -> bool:
        """Set *least* to *most* bytes more aside for objects that may come ahead; return whether that was done."""
        return not self._closed and self._budget.set_aside(self, least, most) > 0

    def clear(self) -> None:
        """Drop all that is on its way, with its reservations; nothing further is taken."""
        self._closed = True
        self._arriving.clear()
        self._by_seq.clear()
        self._unreserved.clear()
        self._budget.forget(self)
