"""What is fuzzed: one function for each decoder, which takes any bytes and raises only what is a defect.

What a decoder may raise (a RemoteProtocolError or a CodecError) is caught here. Besides, each function checks what has
to hold whatever came in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Final

import msgspec

from fanstream.codec import Codec, tags
from fanstream.errors import CodecError, RemoteProtocolError, SealError
from fanstream.options import EngineSettings, Limits
from fanstream.protocol import bodies
from fanstream.protocol.core import LinkCore
from fanstream.protocol.events import Event, ObjectArrived, Opened, ReplyArrived, Resumed
from fanstream.protocol.frames import HEADER, NO_STREAM, FrameType
from fanstream.protocol.leg import LegState
from fanstream.protocol.opener import OpenerLeg
from fanstream.protocol.receiver import ReceiverLeg
from fanstream.protocol.receiving import FrameReader
from fanstream.protocol.surroundings import Refusal, Route, Routing, Surroundings
from fanstream.security.sealed import messages
from fanstream.shareable import ReturnCode
from tests.codec.carrying import same
from tests.fuzz import security_targets
from tests.protocol.linked import Legs, Side, connect, encoded, here, opening, pump, welcome

KIB: Final = 1024
SMALL: Final = EngineSettings(
    limits=Limits(
        frame=4 * KIB,
        window=64 * KIB,
        object=256 * KIB,
        origin_bytes=256 * KIB,
        engine_bytes=512 * KIB,
        relay_window=64 * KIB,
        relay_bytes=1024 * KIB,
        nodes=500,
    )
)
"""Limits that short inputs reach, and that keep an input from taking memory beyond them."""
CODEC: Final = Codec(SMALL.limits)
CONTROL: Final = (
    bodies.Hello,
    bodies.Goodbye,
    bodies.Presence,
    bodies.Opening,
    bodies.Cause,
    bodies.Ending,
    bodies.Resumption,
    bodies.Position,
)
SEALED: Final = (messages.Header, messages.PreKey, messages.Signed, messages.Invitation, messages.Sealing)
KINDS: Final = tuple(FrameType)
_RECORD: Final = 5
_SENT: Final = [encoded(n=seq, data=bytes(70 * KIB * seq)) for seq in range(3)]  # the last two wait for grants


# --- bytes ---


class _Frames:
    """Takes a reader's frames, and says what they were."""

    def __init__(self) -> None:
        self.taken: list[tuple[Any, ...]] = []

    def limit(self, kind: int) -> int:
        return 2 * KIB if kind % 2 else 100 * KIB  # beyond the reader's stage too

    def frame(self, kind: int, flags: int, target: int, alias: int, seq: int, attempt: int, body: bytes) -> None:
        self.taken.append((kind, flags, target, alias, seq, attempt, body))

    def chunk(self, alias: int, seq: int, buffer: int, offset: int, size: int, target: int) -> memoryview | None:
        if alias % 2:
            return None
        landing = memoryview(bytearray(size))
        self.taken.append((alias, seq, buffer, offset, size, target, landing))
        return landing

    def chunk_done(self, alias: int, seq: int, size: int) -> None:
        self.taken.append((alias, seq, size))


def _read(data: bytes, step: int) -> list[Any]:
    frames = _Frames()
    reader = FrameReader(frames)
    rest = memoryview(data)
    try:
        while rest:
            count = 0
            for buffer in reader.get_buffers():
                size = min(len(buffer), len(rest) - count, step - count)
                buffer[:size] = rest[count : count + size]
                count += size
            reader.advance(count)
            rest = rest[count:]
    except RemoteProtocolError:
        frames.taken.append(("refused",))
    return frames.taken


def reader(data: bytes) -> None:
    """The reader of frames: the same frames, and the same refusal, however the bytes are cut."""
    step, data = 1 + int.from_bytes(data[:1], "big"), data[1:]
    assert _read(data, step) == _read(data, 1 << 20)


# --- links ---


def _around(route: Route = here) -> Surroundings:
    return Surroundings(SMALL, CODEC, route, welcome, Legs())


def _feed(side: Side, data: bytes, step: int = 1 << 20) -> tuple[list[Event], bool]:
    """Let a side read; return what it told, and whether the link goes on."""
    goes_on = True
    try:
        side.feed(data, step=step)
    except RemoteProtocolError:
        goes_on = False
    events, side.events = side.events + side.core.take_events(), []
    return events, goes_on


def _check_nothing_is_left(*sides: Side) -> None:
    for side in sides:
        while side.core.next_output(1 << 20, 0.0):
            pass
        side.core.lost("the input ended")
    for side in sides:
        assert side.core.legs == {}, side.core.legs
        assert side.shared.budget.used == 0
        assert side.shared.budget.waiting == 0
        assert side.shared.relays.used == 0


def greeting(data: bytes) -> None:
    """A link from its first byte on, as the listener and as the dialler."""
    step, data = 1 + int.from_bytes(data[:1], "big"), data[1:]
    for dialler in (False, True):
        side = Side("server", dialler=dialler, shared=_around())
        _feed(side, data, step)
        _check_nothing_is_left(side)


def _pair(left: Surroundings | None = None, right: Surroundings | None = None) -> tuple[Side, Side]:
    return connect(
        Side("server", dialler=True, shared=left or _around()),
        Side("site-1", dialler=False, shared=right or _around()),
    )


def link(data: bytes) -> None:
    """A greeted link: any bytes from its peer."""
    _left, right = _pair()
    _feed(right, data)
    _check_nothing_is_left(right)


def _frames(data: bytes, alias: int) -> Iterator[bytes]:
    """Make frames of one stream out of records whose lengths fit: a type, flags, seq, two bytes of length, a body."""
    while len(data) >= _RECORD:
        kind = KINDS[data[0] % len(KINDS)]
        flags, seq = data[1], data[2]
        length = int.from_bytes(data[3:5], "big")
        body, data = data[_RECORD : _RECORD + length], data[_RECORD + length :]
        named = NO_STREAM if kind < FrameType.OPEN else alias
        yield HEADER.pack(len(body), kind, flags, 0, named, seq, 0, 0) + body


def _opening(left: Side, data: bytes) -> tuple[bodies.Opening, bytes]:
    """Take off the first byte, which says whether the stream is one that resumes."""
    spoken = opening(backlog=4)
    if data[:1] > b"\x7f":
        spoken = msgspec.structs.replace(spoken, life=left.core.me.incarnation, resume=60_000)
    return spoken, data[1:]


def receiver(data: bytes) -> None:
    """The receiver's end of a stream: objects, chunks and control frames from its opener."""
    pair = _pair()
    left, right = pair
    spoken, data = _opening(left, data)
    alias = left.core.open(spoken, 0, b"").alias
    pump(pair)
    leg = right.take(Opened).leg
    seen = 0
    for frame in _frames(data, alias):
        events, goes_on = _feed(right, frame)
        for event in events:
            if not isinstance(event, ObjectArrived):
                continue
            assert event.seq == seen, "in order, and once"
            seen += 1
            leg.release(event.size)
            if seen % 2 and not leg.said_end and leg.state is not LegState.CLOSED:  # some are not answered yet
                while leg.answered < seen:
                    leg.reply(leg.answered, encoded(seq=leg.answered))
        if not goes_on or right.core.legs.get(leg.alias) is not leg:
            break
    right.core.lost("the input ended")
    leg.expire("over")
    _check_nothing_is_left(right)


def opener(data: bytes) -> None:
    """The opener's end of a stream: replies, chunks and control frames from its site."""
    left, _right = _pair()
    spoken, data = _opening(left, data)
    leg = left.core.open(spoken, 0, b"")
    for seq, payload in enumerate(_SENT):
        leg.send(seq, payload, 1000)
    left.output()  # which its site gets in time; what that says is the input
    seen = 0
    for frame in _frames(data, leg.alias):
        events, goes_on = _feed(left, frame)
        for event in events:
            if isinstance(event, ReplyArrived):
                assert event.seq == seen, "in order, and once"
                seen += 1
                event.leg.inbound.release(event.size)
        if not goes_on or left.core.legs.get(leg.alias) is not leg:
            break
    assert seen <= leg.sent
    left.core.lost("the input ended")
    leg.expire("over")
    _check_nothing_is_left(left)


def broken() -> tuple[OpenerLeg, ReceiverLeg, Side, Side]:
    """A stream whose link is lost in the middle of an object and of a reply, and a new link between its two sites."""
    near, far = _around(), _around()
    left, right = _pair(near, far)
    spoken = msgspec.structs.replace(opening(backlog=4), life=left.core.me.incarnation, resume=60_000)
    leg = left.core.open(spoken, 0, b"")
    for seq, payload in enumerate(_SENT):
        leg.send(seq, payload, 1000)
    pump((left, right))
    there = right.take(Opened).leg
    for event in right.events:
        if isinstance(event, ObjectArrived):
            there.release(event.size)
            there.reply(event.seq, _SENT[event.seq])
    left.feed(right.output()[: 80 * KIB])
    for event in left.events:
        if isinstance(event, ReplyArrived):
            leg.inbound.release(event.size)
    for side in (left, right):
        side.core.lost("cut")
    return leg, there, *_pair(near, far)


def resumed(data: bytes) -> None:
    """Either end of a stream whose link is there again: where the other says to go on, and what follows."""
    leg, there, left, right = broken()
    at_opener, data = data[:1] > b"\x7f", data[1:]
    if at_opener:
        left.core.resume(leg)
        left.output()
    end: OpenerLeg | ReceiverLeg = leg if at_opener else there
    side, seen = (left, leg.inbound.whole) if at_opener else (right, len(_SENT))
    for frame in _frames(data, 1):
        events, goes_on = _feed(side, frame)
        for event in events:
            if isinstance(event, (ReplyArrived, ObjectArrived)):
                assert event.seq >= seen, "never again"
                seen = event.seq + 1
                end.inbound.release(event.size) if at_opener else there.release(event.size)
            elif isinstance(event, Resumed) and at_opener and not leg.withdrawn:
                with suppress(RemoteProtocolError):  # the site says to have what there is not
                    for seq in range(event.seq, leg.sent):
                        leg.send_again(event, seq, _SENT[seq], 1000)
        if not goes_on:
            break
        side.output()
    side.core.lost("the input ended")
    leg.expire("over")
    there.expire("over")
    _check_nothing_is_left(left, right)


def sealed(data: bytes) -> None:
    """A body of sealed streams: what is taken has one spelling."""
    kind, data = SEALED[data[0] % len(SEALED)] if data else SEALED[0], data[1:]
    with suppress(SealError):
        assert messages.decode(kind, data).encode() == data


def hub(data: bytes) -> None:
    """A hub between two sites: whatever it lets through from one, the link of the other goes on."""
    sides: dict[str, Side] = {}

    def route(core: LinkCore, routing: Routing, target: str) -> LinkCore | Refusal | None:
        return sides["site-1"].core if target == "site-1" else Refusal(ReturnCode.COMMUNICATION_ERROR, "no way")

    shared = _around(route)
    links: list[tuple[Side, Side]] = []
    for name in ("server", "site-1"):
        site = Side(name, dialler=True, shared=_around())
        links.append(connect(site, Side("hub", dialler=False, shared=shared, hub=True)))
    (server, near), (site, far) = links
    sides["site-1"] = far
    spoken, data = _opening(server, data)
    alias = server.core.open(spoken, 0, b"").alias
    pump(*links)
    from_server, from_site = (list(_frames(data[1:], named)) for named in (alias, next(iter(far.core.legs))))
    for index in range(len(from_server)):
        backwards = data[0] >> (index % 8) & 1
        _events, goes_on = _feed(far, from_site[index]) if backwards else _feed(near, from_server[index])
        if not goes_on:
            break
        for end, other in links:
            end.feed(other.output())
    _check_nothing_is_left(near, far)


# --- bodies and values ---


def control(data: bytes) -> None:
    """The bodies of control frames: what is decoded is decoded again to the same."""
    if not data:
        return
    kind = CONTROL[data[0] % len(CONTROL)]
    with suppress(RemoteProtocolError):
        body: Any = bodies.decode(kind, data[1:])
        assert bodies.decode(kind, bodies.encode(body)) == body


def open_body(data: bytes) -> None:
    """The two parts of OPEN, and the value that comes with it."""
    with suppress(RemoteProtocolError, CodecError):
        _opening, rest = bodies.split_opening(data, max_routing=KIB, max_body=4 * KIB)
        CODEC.decode_value(rest)


def value(data: bytes) -> None:
    """A value: what was decoded can be encoded, and decoded again to the same."""
    try:
        decoded = CODEC.decode_value(data)
    except CodecError:
        return
    assert same(CODEC.decode_value(CODEC.encode_value(decoded)), decoded)


def _sizes(data: bytes) -> tuple[tuple[int, ...], bytes]:
    """Take up to three sizes of buffers off the beginning."""
    count = data[0] % 4 if data else 0
    sizes = tuple(1 + int.from_bytes(data[1 + 2 * n : 3 + 2 * n], "big") for n in range(count))
    return sizes, data[1 + 2 * count :]


def envelope(data: bytes) -> None:
    """An envelope and its buffers; the quick way for flat ones says what the long way does."""
    sizes, data = _sizes(data)
    outcomes: list[str] = []
    for decode in (CODEC.decode, lambda raw: CODEC.begin(raw, ()).finish()):
        try:
            outcomes.append(repr(decode(data)))
        except CodecError:
            outcomes.append("refused")
    assert outcomes[0] == outcomes[1], outcomes
    with suppress(CodecError):
        decoding = CODEC.begin(data, sizes)
        assert tuple(map(len, decoding.destinations)) == sizes
        for number, destination in enumerate(decoding.destinations):
            destination[:] = bytes([65 + number]) * len(destination)
        repr(decoding.finish())


def table(data: bytes) -> None:
    """An Arrow table, inline and as a buffer."""
    node = [tags.TABLE, data]
    with suppress(CodecError):
        found = CODEC.decode_value(msgspec.msgpack.encode(node))
        found.to_pydict()  # follows every offset, in C++
    if data:
        with suppress(CodecError):
            decoding = CODEC.begin(msgspec.msgpack.encode((1, {}, {"t": [tags.TABLE, None]})), (len(data),))
            decoding.destinations[0][:] = data
            decoding.finish()["t"].to_pydict()


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target
    for target in (
        reader,
        greeting,
        link,
        receiver,
        opener,
        resumed,
        hub,
        control,
        sealed,
        open_body,
        value,
        envelope,
        table,
        *security_targets.TARGETS,
    )
    if target is not table or find_spec("pyarrow") is not None
}
