"""T12: what is too large is refused from its length alone, before anything is allocated for it."""

from __future__ import annotations

import tracemalloc
from functools import partial

import pytest

from fanstream import Limits
from fanstream.errors import CodecError, RemoteProtocolError
from fanstream.protocol import bodies
from fanstream.protocol.events import ObjectArrived
from fanstream.protocol.frames import CHUNK, HEADER, PAYLOAD, PAYLOAD_SIZE, FrameType, pack
from tests.federation import (
    hubs,
)
from tests.protocol.linked import linked, stream, surroundings
from tests.protocol.linked import opening as linked_opening
from tests.threats.siege import (
    KIB,
    Offence,
    T,
    bent_payload,
    chunk,
    first,
    just,
    large,
    longer,
    offend,
    second_object,
)

pytestmark = pytest.mark.anyio

OFFENCES: dict[str, Offence] = {
    "long ping": (just(longer(T.PING, 16 * KIB)), "frame of type 2 with 16385 bytes, limit 16384"),
    "long abort": (just(longer(T.ABORT, 16 * KIB)), "limit 16384"),
    "long unknown": (just(longer(77, 16 * KIB)), "limit 16384"),
    "long open": (just(longer(T.OPEN, 4 + 320 * KIB)), f"limit {4 + 320 * KIB}"),
    "long object": (just(longer(T.OBJECT, PAYLOAD_SIZE + 160_000 + 256 * KIB)), "frame of type 17"),
    "long reply": (just(longer(T.REPLY, PAYLOAD_SIZE + 160_000 + 256 * KIB)), "frame of type 19"),
    "long ended": (just(longer(T.ENDED, 272 * KIB)), "frame of type 25"),
    "long presence": (just(longer(T.PRESENCE, 1024 * KIB)), "frame of type 4"),
    "long hello": (just(longer(T.HELLO, 64 * KIB)), "frame of type 1 with 65537 bytes, limit 65536"),
    "long chunk": (
        just(HEADER.pack(16 + 1024 * KIB + 1, T.CHUNK, 0, 0, 1, 0, 0, 0) + CHUNK.pack(0, 0, 0)),
        "CHUNK of 1048577",
    ),
    "longest length": (just(HEADER.pack(2**32 - 1, T.PING, 0, 0, 0, 0, 0, 0)), "with 4294967295 bytes"),
    "chunk too long": (large(lambda data: chunk(data, data=bytes(16_001))), "CHUNK of 16001 bytes, 16000 left"),
    "open whose routing overruns": (first(lambda frame: frame._replace(body=b"\xff\xff\0\0")), "routing part of 65535"),
    "payload of too many buffers": (second_object(partial(bent_payload, buffers=10**6)), "object of 1000000 buffers"),
}


@hubs
@pytest.mark.parametrize("offence", OFFENCES)
async def test_an_offence_ends_its_link_by_name_and_no_other(transport: str, offence: str) -> None:
    await offend(transport, *OFFENCES[offence])


# --- in the core: from the header alone, with nothing allocated ---

LIMITS = Limits()
LONGEST = {
    T.HELLO: LIMITS.hello,
    T.PING: LIMITS.control,
    T.PONG: LIMITS.control,
    T.PRESENCE: 16 * LIMITS.routing,
    T.GOAWAY: LIMITS.control,
    T.OPEN: 4 + LIMITS.routing + LIMITS.opening,
    T.OBJECT: PAYLOAD_SIZE + 8 * LIMITS.buffers + LIMITS.envelope,
    T.CHUNK: 16 + LIMITS.frame,
    T.REPLY: PAYLOAD_SIZE + 8 * LIMITS.buffers + LIMITS.envelope,
    T.GRANT: LIMITS.control,
    T.CREDIT: LIMITS.control,
    T.END: LIMITS.control,
    T.ABORT: LIMITS.control,
    T.ENDING: LIMITS.control,
    T.ENDED: LIMITS.control + LIMITS.envelope,
    T.REFUSED: LIMITS.control,
    T.LOST: LIMITS.control,
    T.SUSPENDED: LIMITS.control,
    T.RESUME: LIMITS.control,
    T.ALLOW: LIMITS.control,
    T.DONE: LIMITS.control,
}


def test_the_table_names_every_type_and_the_defaults_are_as_promised() -> None:
    assert set(T) <= set(LONGEST)
    assert (LIMITS.frame, LIMITS.control, LIMITS.envelope) == (1024 * KIB, 16 * KIB, 256 * KIB)
    assert (LIMITS.routing, LIMITS.opening) == (64 * KIB, 256 * KIB)


@pytest.mark.parametrize("over", [1, 2**31], ids=["one byte over", "far over"])
@pytest.mark.parametrize("kind", [*T, 77], ids=lambda kind: getattr(kind, "name", "unknown"))
def test_a_longer_frame_is_refused_from_its_length_and_nothing_is_allocated(kind: int, over: int) -> None:
    _, right = linked()
    length = LONGEST.get(FrameType(kind) if kind in set(T) else T.PING, LIMITS.control) + over
    header = HEADER.pack(length, kind, 0, 0, 1, 0, 0, 0) + (bytes(16) if kind == T.CHUNK else b"")
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match=r"limit \d+|expected 1 to \d+"):
            right.feed(header)
        assert tracemalloc.get_traced_memory()[1] < 16 * KIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "kind", [T.OBJECT, T.REPLY, T.OPEN, T.ENDED, T.PRESENCE, T.ABORT, T.GOAWAY], ids=lambda kind: kind.name
)
def test_one_of_just_that_length_is_read(kind: FrameType) -> None:
    _, right = linked()
    right.feed(HEADER.pack(LONGEST[kind], kind, 0, 0, 0 if kind < T.OPEN else 1, 0, 0, 0) + bytes(LONGEST[kind] - 1))
    assert not right.core._reader.idle


SMALL = {"control": 1024, "envelope": 1024, "routing": 1024, "opening": 1024, "frame": 4096, "buffers": 1}


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        (T.ABORT, 1024),
        (T.PING, 1024),
        (T.OBJECT, PAYLOAD_SIZE + 8 + 1024),
        (T.REPLY, PAYLOAD_SIZE + 8 + 1024),
        (T.CHUNK, 16 + 4096),
        (T.OPEN, 4 + 2048),
        (T.ENDED, 2048),
        (T.PRESENCE, 16 * 1024),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_settings_decide(kind: FrameType, length: int) -> None:
    _, right = linked(right=surroundings(limits=Limits(**SMALL)))
    with pytest.raises(RemoteProtocolError, match=r"limit \d+|expected 1 to \d+"):
        right.feed(HEADER.pack(length + 1, kind, 0, 0, 1, 0, 0, 0) + bytes(16))


@pytest.mark.parametrize("sizes", [(2**36 + 1,), (2**63 - 1,), (2**35, 2**35, 1), (1,) * 4 + (2**36,)])
def test_an_object_beyond_the_receivers_limit_ends_its_stream_alone_and_takes_no_memory(sizes: tuple[int, ...]) -> None:
    pair = _, right = linked()
    stream(pair)
    body = PAYLOAD.pack(0, len(sizes), sum(sizes), 0) + b"".join(size.to_bytes(8, "little") for size in sizes)
    tracemalloc.start()
    try:
        right.feed(pack(T.OBJECT, 1, body=body + b"\xc1"))
        assert tracemalloc.get_traced_memory()[1] < 64 * KIB
    finally:
        tracemalloc.stop()
    arrived = right.take(ObjectArrived)
    assert isinstance(arrived.value, CodecError)
    assert f"an object of {sum(sizes) + 1} bytes, limit {2**36}" in str(arrived.value)
    assert right.shared.budget.used == 0


@pytest.mark.parametrize("count", [20_001, 2**32 - 1])
def test_too_many_buffers_are_refused_by_their_number(count: int) -> None:
    pair = _, right = linked()
    stream(pair)
    with pytest.raises(RemoteProtocolError, match=f"object of {count} buffers, limit"):
        right.feed(pack(T.OBJECT, 1, body=PAYLOAD.pack(0, count, 1, 0) + bytes(80)))


@pytest.mark.parametrize(
    ("routing", "body", "message"), [(64 * KIB + 1, 0, "routing part"), (None, 256 * KIB + 1, "body")]
)
def test_the_parts_of_an_opening_have_limits_of_their_own(routing: int | None, body: int, message: str) -> None:
    _, right = linked()
    whole = bodies.join_opening(linked_opening("site-1"), bytes(body))
    if routing is not None:
        whole = routing.to_bytes(4, "little") + bytes(routing)
    with pytest.raises(RemoteProtocolError, match=rf"OPEN's {message} of \d+ bytes, limit \d+"):
        right.feed(pack(T.OPEN, 3, body=whole))
