"""One whole session as its bytes: what a relay could have kept of it. ``python -m tests.security.sealed.recording``
writes the frozen vectors anew, after the wire was changed on purpose.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fanstream.security.sealed.chunks import Place
from fanstream.security.sealed.prekeys import check_prekey

from .federation import CHALLENGE, NOW, Stream, seal_with, seeded

SUITES = ("pq", "pq-sha256", "fips")
VECTORS = Path(__file__).parents[1] / "vectors" / "sealed.json"
END, ABORT, ENDED = 22, 23, 25
# Envelope and buffers of each object: nothing, one chunk, one byte more than a chunk, several parts.
OBJECTS: list[tuple[bytes, list[bytes]]] = [
    (b"", []),
    (b"\x93\x00\x80\x80", []),
    (b"one buffer", [seeded("buffer")(1024)]),
    (b"three buffers", [seeded("first")(1025), b"x", seeded("third")(3000)]),
]
# More than one span, so that there are two signatures.
LONG: tuple[bytes, list[bytes]] = (b"two spans", [seeded("long")(66 * 1024 + 5)])
REPLY: tuple[bytes, list[bytes]] = (b"reply", [seeded("reply")(2000)])
ENDING = b"\x93\xa2OK\xa0\xc4\x00"


def views(buffers: list[bytes]) -> list[memoryview]:
    return [memoryview(buffer) for buffer in buffers]


def record(suite: str, invitation: bytes | None = None) -> dict[str, Any]:
    """Play the session once; everything but the wrap in the invitation is the same each time."""
    stream = Stream("site-1", "site-2", suite=suite)
    answer = stream.answer("site-1")
    prekey = check_prekey(answer, "site-1", CHALLENGE, stream.server, stream.suite, NOW)
    made = stream.opener.invite("site-1", prekey)
    receiver = stream.accept(made if invitation is None else invitation)
    objects = [
        seal_with(stream.opener, Place(seq), envelope, views(buffers))
        for seq, (envelope, buffers) in enumerate([*OBJECTS, LONG])
    ]
    reply = seal_with(receiver, Place(0, 0, 1), REPLY[0], views(REPLY[1]))
    # The wrap alone has randomness of its own; the keys in it are those of every run.
    return {
        "prekey": answer.hex(),
        "header": stream.opener.header.encode().hex(),
        "objects": [{"envelope": o.envelope.hex(), "buffers": [bytes(b).hex() for b in o.buffers]} for o in objects],
        "reply": {"envelope": reply.envelope.hex(), "buffers": [bytes(b).hex() for b in reply.buffers]},
        "end": stream.opener.controls["site-1"].say(END, b"\x05\x00").hex(),
        "ended": receiver.control.say(ENDED, ENDING).hex(),
        "invitation": (made if invitation is None else invitation).hex(),
    }


if __name__ == "__main__":
    VECTORS.write_text(json.dumps({suite: record(suite) for suite in SUITES}, indent=1) + "\n")
