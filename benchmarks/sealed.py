"""What do sealed streams cost, in each suite, on one core?

Sealing and opening one array, into memory that was touched before, as a site that receives one after the other has it;
opening a stream to many sites, which wraps its keys for each; and the checks of as many pre-keys, which every opening
begins with. The same again for arrays of 64 KiB, where the signature of each object tells. Nothing is sent.

"by the primitives" compares with a bare loop of AES-256-GCM and the suite's digest over as many bytes in chunks of
1 MiB, in the same rounds: what no layer above them can pass on one core.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fanstream.security.sealed.chunks import Place
from fanstream.security.sealed.messages import PreKey
from fanstream.security.sealed.prekeys import KeyRing, check_prekey
from fanstream.security.sealed.sessions import OpenerSession, ReceiverSession, SealedObject
from fanstream.security.sealed.suites import Suite, suite_named

from .harness.figures import KIB, MIB, add_rounds, add_sites, arguments, say, spread
from .harness.members import Root, Site

CHALLENGE = bytes(32)
EPOCH = bytes(16)


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes."""
    gc.collect()
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


class Federation:
    """One opener and its sites, who have their pre-keys."""

    def __init__(self, suite: Suite, sites: int) -> None:
        root = Root()
        self.suite = suite
        self.server = Site(root, "server")
        self.sites = [Site(root, f"site-{number}") for number in range(sites)]
        self.rings = [KeyRing(suite, os.urandom) for _ in self.sites]
        now = time.time()
        self.answers = [ring.answer(site, CHALLENGE, now) for ring, site in zip(self.rings, self.sites, strict=True)]

    def check(self) -> list[PreKey]:
        """Check what every site has answered."""
        now = time.time()
        return [
            check_prekey(answer, site.name, CHALLENGE, self.server, self.suite, now)
            for answer, site in zip(self.answers, self.sites, strict=True)
        ]

    def open(self, prekeys: list[PreKey]) -> tuple[OpenerSession, list[bytes]]:
        """Open a stream to every site."""
        names = [site.name for site in self.sites]
        session = OpenerSession(
            self.server, self.suite, os.urandom, stream=os.urandom(16), epoch=EPOCH, channel="models", topic="weights",
            targets=names, context=bytes(1000), now=time.time(),
        )  # fmt: skip
        return session, [session.invite(name, prekey) for name, prekey in zip(names, prekeys, strict=True)]

    def accept(self, session: OpenerSession, invitation: bytes) -> ReceiverSession:
        """Open it at the first of them."""
        return ReceiverSession(
            self.rings[0], self.sites[0], self.suite, invitation, stream=session.header.stream, opener="server",
            channel="models", topic="weights", now=time.time(),
        )  # fmt: skip


def open_everywhere(federation: Federation, sites: int, rounds: int) -> dict[str, Any]:
    """Check the sites' pre-keys and open a stream to all of them, in ms."""
    checking, opening = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        prekeys = federation.check()
        checked = time.perf_counter()
        federation.open(prekeys)
        checking.append(1000 * (checked - started))
        opening.append(1000 * (time.perf_counter() - checked))
    return {"suite": federation.suite.name, "sites": sites, "check_ms": spread(checking), "open_ms": spread(opening)}


def seal_and_open(federation: Federation, size: int, count: int, rounds: int) -> dict[str, Any]:
    """Seal and open *count* arrays of *size* bytes one after the other, in GB/s."""
    session, invitations = federation.open(federation.check())
    receiver = federation.accept(session, invitations[0])
    array = memoryview(bytearray(os.urandom(MIB) * -(-size // MIB)))[:size]
    memory = memoryview(bytearray(session.size_of(b"envelope", [size])))
    landed = memoryview(bytearray(b"\1") * size)
    sealed: SealedObject
    seq = 0

    def seal() -> None:
        nonlocal sealed, seq
        for _ in range(count):
            sealed = session.seal(Place(seq), b"envelope", [array], memory)
            seq += 1

    def open_all() -> None:
        for _ in range(count):
            opening = receiver.open_object(Place(seq - 1), *sealed)
            opening.head()
            opening.into([landed])

    key, out = AESGCM(bytes(32)), memory[: MIB + 16]

    def primitives() -> None:
        digest = federation.suite.digest()
        for _ in range(count):
            for begin in range(0, size, MIB):
                piece = array[begin : begin + MIB]
                key.encrypt_into(bytes(12), piece, None, out[: len(piece) + 16])
                digest.update(out[: len(piece) + 16])

    sealing, opening, best = [], [], []
    for number in range(rounds + 1):
        took = seconds(seal), seconds(open_all), seconds(primitives)
        if number:  # the first touches the memory
            sealing.append(size * count / took[0] / 1e9)
            opening.append(size * count / took[1] / 1e9)
            best.append(took[2] / took[0])
    if landed != array:
        raise RuntimeError("what came out is not what was sealed")
    return {"seal_gb_per_s": spread(sealing), "open_gb_per_s": spread(opening), "of_primitives": spread(best)}


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser)
    add_sites(parser, 500)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.sites = 1, [2]
    rows: list[dict[str, Any]] = []
    for name in ("pq", "pq-sha256", "fips"):
        if name == "pq" and find_spec("blake3") is None:
            continue
        suite = suite_named(name)
        rows += [open_everywhere(Federation(suite, sites), sites, options.rounds) for sites in options.sites]
        for size, count in ((MIB, 1), (64 * KIB, 2)) if options.quick else ((256 * MIB, 1), (64 * KIB, 500)):
            figures = seal_and_open(Federation(suite, 1), size, count, options.rounds)
            rows.append({"suite": name, "size": size, **figures})
    say("sealed", options, rows, distributions=["cryptography", "blake3"])


if __name__ == "__main__":
    main()
