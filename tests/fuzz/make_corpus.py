"""Makes the corpus from real frames and values: ``python -m tests.fuzz.make_corpus`` writes it anew."""

from __future__ import annotations

import datetime as dt
import hashlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.serialization import Encoding

from fanstream.codec import Codec
from fanstream.options import Limits
from fanstream.protocol import bodies
from fanstream.protocol.events import ObjectArrived, Opened
from fanstream.protocol.frames import PAYLOAD, FrameType
from fanstream.security.sealed import messages
from fanstream.shareable import ReturnCode, Shareable, make_reply
from fanstream.testing.frames import Frame, FrameCutter
from tests.fuzz.security_targets import issued
from tests.fuzz.targets import KINDS, broken
from tests.protocol.linked import Side, opening, small_limits

FOLDER: Final = Path(__file__).parent / "corpus"
_APART: Final = Codec(Limits(inline=0))
_MOST: Final = 8 * 1024  # bytes of one input; longer ones are mutated less often

OBJECTS: Final[list[Any]] = [
    {},
    {"round": 3, "loss": 0.5, "name": "layer1", "payload": b"x" * 20, "on": True, "none": None},
    make_reply("TIMEOUT", {"tries": 3}),
    {"a": [1, (2, {3, "b"}), frozenset({(1, b"x")})], "b": {1: 2, (None, "x"): [True]}},
    {"i": 1 << 80, "c": 1j, "s": "\ud800", "y": bytearray(b"abc"), "é": -0.0},
    {"d": [dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.date(2026, 1, 1), dt.time(1, fold=1), dt.timedelta(1)]},
    {"n": np.arange(6, dtype=">i2").reshape(2, 3), "f": np.asfortranarray(np.ones((2, 2), "<f4")), "z": np.zeros(0)},
    {"x": [np.float32(1), np.str_("t"), np.bytes_(b"b"), np.array(["ab"]), np.array([True, False])]},
    {"m": np.array("2026", "M8[D]"), "in": [Shareable({"deep": [make_reply("OK")]})]},
    {"text": ["é" * 40], "blob": [b"y" * 40], "array": (bytearray(40),)},
]


def said() -> tuple[list[bytes], list[bytes]]:
    """Have an opener and a site talk; return what each of them wrote, piece by piece."""
    shared = small_limits()
    left = Side("server", dialler=True, shared=shared())
    right = Side("site-1", dialler=False, shared=shared())
    written: tuple[list[bytes], list[bytes]] = ([], [])

    def carry() -> None:
        moved = True
        while moved:
            moved = False
            for side, other, log in ((left, right, written[0]), (right, left, written[1])):
                if data := side.output():
                    moved = True
                    log.append(data)
                    other.feed(data)

    carry()
    right.core.session.admit()
    carry()
    right.core.session.announce(bodies.encode(bodies.Presence(True, ["site-2"], [])))
    left.core.session.ping()
    carry()
    right.events.clear()
    for number, end in enumerate(("drain", "withdraw", "abort", "refuse")):
        opener = left.core.open(opening(backlog=4, stream=bytes([number]) * 16), 0, b"\xc0")
        carry()
        leg = right.take(Opened).leg
        if end == "refuse":
            leg.refuse(ReturnCode.TOPIC_UNKNOWN, "nothing is registered")
            carry()
            break
        for seq, size in enumerate((0, 5_000, 70_000)):
            opener.send(seq, _APART.encode({"n": seq, "w": np.zeros(size, np.uint8)}), 1000)
            carry()
            leg.release(right.take(ObjectArrived).size)
            leg.reply(seq, _APART.encode(make_reply("OK", {"w": b"r" * (size // 2)})))
            carry()
        if end == "abort":
            opener.abort(ReturnCode.TASK_ABORTED, "server", "enough")
        else:
            opener.end(withdraw=end == "withdraw")
        carry()
        right.events.clear()
        leg.ending()
        leg.ended(ReturnCode.OK, "", b"\xc0")
        carry()
        right.events.clear()
    left.core.session.leave("bye")
    carry()
    return written


def _records(frames: Sequence[Frame]) -> bytes:
    """Write frames as the records that ``targets`` reads, their bodies cut to what fits."""
    return b"".join(
        bytes([KINDS.index(FrameType(frame.kind)), frame.flags, frame.seq & 0xFF])
        + min(len(frame.body), 600).to_bytes(2, "big")
        + frame.body[:600]
        for frame in frames
    )


def _streams(frames: Sequence[Frame]) -> Iterator[list[Frame]]:
    """Take frames apart by the stream that they belong to."""
    for alias in sorted({frame.alias for frame in frames} - {0}):
        yield [frame for frame in frames if frame.alias == alias and frame.kind != FrameType.OPEN]


def again() -> tuple[list[Frame], list[Frame]]:
    """Have both ends of a stream go on after its link was lost; return what each of them says of it."""
    leg, _there, left, right = broken()
    left.core.resume(leg)
    written: tuple[list[bytes], list[bytes]] = ([], [])
    for _ in range(3):
        written[0].append(left.output())
        right.feed(written[0][-1])
        written[1].append(right.output())
        left.feed(written[1][-1])
        leg.end(withdraw=False) if leg.attached and not leg.closed else None
    up, down = (FrameCutter().feed(b"".join(way)) for way in written)
    return [frame for frame in up if frame.alias], [frame for frame in down if frame.alias]


def inputs() -> dict[str, list[bytes]]:
    """Return each target's inputs."""
    up, down = said()
    frames = [FrameCutter().feed(b"".join(way)) for way in (up, down)]
    short = [frame for frame in (*frames[0], *frames[1]) if len(frame.body) < 600]
    control = {
        FrameType.HELLO: 0,
        FrameType.GOAWAY: 1,
        FrameType.PRESENCE: 2,
        FrameType.ABORT: 4,
        FrameType.REFUSED: 4,
        FrameType.ENDED: 5,
    }
    encoded = [_APART.encode(value) for value in OBJECTS]
    # Where a payload's buffers do not fit into a record, small ones do.
    pieces = [Frame(FrameType.OBJECT, 1, 0, _payload(5), 0), Frame(FrameType.CHUNK, 1, 0, _piece(0, 3), 0)]
    pieces.append(Frame(FrameType.CHUNK, 1, 0, _piece(3, 2), 0))
    replies = [frame._replace(kind=FrameType.REPLY) if frame.kind == FrameType.OBJECT else frame for frame in pieces]
    return {
        "reader": [b"\x07" + frame.pack() * 2 for frame in short],
        "greeting": [b"\xff" + b"".join(way[:3])[:_MOST] for way in (up, down)],
        "link": [b"".join(frame.pack() for frame in frames[0][1:])[:_MOST], *(frame.pack() for frame in short)],
        "receiver": [
            resumes + _records(stream) for resumes in (b"\0", b"\xff") for stream in (*_streams(frames[0]), pieces)
        ],
        "opener": [
            resumes + _records(stream) for resumes in (b"\0", b"\xff") for stream in (*_streams(frames[1]), replies)
        ],
        "resumed": [
            b"\0" + _records(again()[0]),
            b"\xff" + _records(again()[1]),
            *(
                b"\xff" + _records([Frame(kind, 1, 0, bodies.encode(body), seq)])
                for kind, body, seq in (
                    (FrameType.RESUME, bodies.Position(0, 0), 1),
                    (FrameType.RESUME, bodies.Position(0, 4096), 2),
                    (FrameType.REFUSED, bodies.Cause("RUN_MISMATCH", "site-1", "unknown", b"l" * 16), 0),
                    (FrameType.SUSPENDED, bodies.Cause("COMMUNICATION_ERROR", "hub", "no way"), 0),
                )
            ),
            b"\0" + _records([Frame(FrameType.DONE, 1, 0, b"", 0)]),
        ],
        "sealed": [bytes([number]) + body.encode() for number, body in enumerate(_sealed())],
        "hub": [
            bytes([resumes, mask]) + _records([frame for pair in zip(*streams, strict=False) for frame in pair])
            for resumes in (0, 0xFF)
            for mask in (0b10101010, 0)
            for streams in zip(_streams(frames[0]), _streams(frames[1]), strict=False)
        ],
        "control": [bytes([control[FrameType(f.kind)]]) + f.body for f in short if f.kind in control]
        + [b"\x03" + bodies.encode(opening("site-1", "site-2"))]
        + [b"\x06" + bodies.encode(bodies.Resumption(b"s" * 16, "server", ["site-1"], b"l" * 16, 1, 4096))]
        + [b"\x07" + bodies.encode(bodies.Position(1, 4096))],
        "open_body": [frame.body for frame in frames[0] if frame.kind == FrameType.OPEN]
        + [bodies.join_opening(opening(), Codec().encode_value({"stream_ctx": {"a": [1]}, "props": {}, "job": "j"}))],
        "value": [_APART.encode_value(value) for value in OBJECTS if type(value) is dict],
        "envelope": [
            bytes([len(one.sizes)]) + b"".join((size - 1).to_bytes(2, "big") for size in one.sizes) + one.envelope
            for one in encoded
            if len(one.sizes) < 4
        ]
        + [b"\0" + Codec().encode(value).envelope for value in OBJECTS],
        "table": list(_tables()),
        **_security(),
    }


def _security() -> dict[str, list[bytes]]:
    """Return the inputs of what reads certificates and files of others; keys are new ones each time."""
    root, sites, revoked = issued()
    issuer = root.certificate.public_bytes(Encoding.DER)
    shown = [site.certificate.public_bytes(Encoding.DER) for site in sites]
    kit = (
        b'federation = "hospitals"\nname = "site-1"\nrole = "site"\nconnect = ["tls://h:1?name=server"]\n'
        b"[engine]\nsilence = 20\n[engine.limits]\nframe = 4096\n"
    )
    broken_key = b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----\n"
    files = (kit, sites[0].certificate_pem, broken_key, root.certificate_pem, revoked)
    deep = b"a = " + b"[" * 3000
    plan = (
        b'federation = "hospitals"\n[[hubs]]\nname = "server"\nhost = "h"\nport = 1\nbind = "::1"\n'
        b'[[sites]]\nname = "site-1"\nhubs = ["server"]\n[certificates]\nkey = "ed25519"\ndays = 30\n'
    )
    policy = (
        b'[groups]\ntrainers = ["site-1", "site-2"]\n[[streams]]\nname = "out"\neffect = "allow"\nfrom = "role:hub"\n'
        b'to = "group:trainers"\nchannel = "models"\ntopic = ["weights", "update"]\n[[registrations]]\nname = "in"\n'
        b'effect = "deny"\nsite = "*"\nchannel = "models"\ntopic = "*"\n'
    )
    return {
        "certificate": [len(one).to_bytes(2, "big") + one + issuer for one in (*shown, issuer)],
        "roots": [root.certificate_pem + b"\0" + revoked, root.certificate_pem * 2 + b"\0" + revoked * 2],
        "kit": [bytes([number]) + data for number, data in enumerate(files)] + [b"\0" + deep],
        "plan": [plan, deep],
        "policy": [policy, deep],
    }


def _sealed() -> Iterator[messages.Message]:
    signed = messages.Signed(b"body", b"signature", [b"leaf", b"root"])
    yield messages.Header(
        messages.VERSION, "suite", "hospitals", b"s" * 16, "server", b"e" * 16, "models", "weights", ["site-1"],
        messages.CHUNK, 1_780_000_000, 1_780_086_400, b"c" * 32, b"m" * 32,
    )  # fmt: skip
    yield messages.PreKey(
        "prekey-v1", "hospitals", "site-1", b"f" * 32, "suite", b"k" * 16, b"p" * 32, 1_780_000_000, 1_780_086_400,
        b"h" * 32,
    )  # fmt: skip
    yield signed
    yield messages.Invitation(signed, b"k" * 16, b"w" * 80, b"x" * 40)
    yield messages.Sealing(0, 100, [b"g" * 64, b""], b"y" * 50)


def _payload(size: int) -> bytes:
    """The body of an object with one small buffer apart."""
    envelope = _APART.encode({"w": np.zeros(size, np.uint8)}).envelope
    return PAYLOAD.pack(1000, 1, size, 0) + size.to_bytes(8, "little") + envelope


def _piece(offset: int, size: int) -> bytes:
    return bytes(8) + offset.to_bytes(8, "little") + bytes(size)


def _tables() -> Iterator[bytes]:
    import pyarrow as pa

    for columns in (
        {"a": [1, 2, None], "b": ["x", None, "zz"]},
        {"l": [[1], [], None], "s": [{"k": 1.5}, None, {"k": 2.0}]},
        {"d": pa.array(["u", "v", "u"]).dictionary_encode(), "t": pa.array([0, 1, 2], pa.timestamp("us", "UTC"))},
    ):
        table = pa.table(columns)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        yield sink.getvalue().to_pybytes()


def main() -> None:
    """Write the corpus anew."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    size = 0
    for name, contents in inputs().items():
        (FOLDER / name).mkdir(parents=True)
        for content in contents:
            content = content[:_MOST]
            size += len(content)
            (FOLDER / name / hashlib.blake2b(content, digest_size=8).hexdigest()).write_bytes(content)
    sys.stdout.write(f"{size} bytes in {FOLDER}\n")


if __name__ == "__main__":
    main()
