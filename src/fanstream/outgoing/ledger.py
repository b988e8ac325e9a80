"""The ledger: how far the durable streams are that this engine has opened, so that its next life can resume them.

It is the opener's half of the journal's file. What a stream's row says is never more than what is true of it: an object
counts as settled once nothing will be asked of it again, and a site as finished once all that it has said is settled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec

from ..deadlines import Deadline, Deadlines
from ..errors import UnknownStreamError
from ..journal import Journal, Record
from ..protocol import bodies
from ..store import DamageError, Store, check, checked
from ..streaming import UnfinishedStream
from ..wakeup import Face


class SiteState(msgspec.Struct, array_like=True, frozen=True):
    """What is known of one site of a stream.

    ``life`` is the incarnation to which the stream was opened, ``props`` the site's public props, encoded. ``standing``
    is the name of a ``gather.Standing``, empty while it takes part; ``rc`` and ``reason`` belong to it, or, where the
    site has ``ended``, to the end, with ``result``, encoded.
    """

    life: bytes = b""
    props: bytes = b""
    standing: str = ""
    rc: str = ""
    reason: str = ""
    ended: bool = False
    result: bytes = b""

    def __repr__(self) -> str:
        return f"<SiteState {self.standing or 'ACTIVE'} rc={self.rc}>"  # threat T24


class Verdict(msgspec.Struct, array_like=True, frozen=True):
    """That a stream's opener has ended it, after so many objects; ``value`` is what ended it, encoded.

    It is empty where there were no more objects.
    """

    objects: int
    value: bytes = b""

    def __repr__(self) -> str:
        return f"<Verdict after {self.objects} objects>"  # threat T24


Sites = dict[str, SiteState]

_encode: Final = msgspec.msgpack.Encoder().encode
_decode_sites: Final = msgspec.msgpack.Decoder(Sites).decode
_decode_verdict: Final = msgspec.msgpack.Decoder(Verdict | None).decode


def _nothing() -> None:
    """Nobody waits for a step."""


@dataclass(frozen=True, slots=True)
class Left:
    """A durable stream as an earlier life of its opener has left it.

    Attributes:
        number: the journal's, of the stream.
        opening: what that life said to open it, or would have; with all targets.
        body: what was sent along with OPEN.
        sites: what is known of each target.
        settled: how many objects are behind it.
        verdict: how that life has ended it, if it has.
    """

    number: int
    opening: bodies.Opening
    body: bytes = field(repr=False)
    sites: Sites
    settled: int
    verdict: Verdict | None


class Ledger:
    """The durable streams of one engine.

    Args:
        journal: the engine's.
        face: the running event loop.
        deadlines: the engine's.
    """

    def __init__(self, journal: Journal, face: Face, deadlines: Deadlines) -> None:
        self._journal = journal
        self._face = face
        self._deadlines = deadlines
        self._left: dict[str, Left] = {}
        self._leases: dict[str, Deadline] = {}

    def load(self, store: Store) -> None:
        """Read what earlier lives have left.

        Raises:
            JournalError: the file is damaged.
        """

        def read() -> dict[str, Left]:
            columns = "id, opening, body, sites, settled, verdict"
            rows = store.execute(f"SELECT {columns} FROM outgoing ORDER BY id").fetchall()  # noqa: S608 - names of ours
            left = {}
            for number, opening, body, sites, settled, verdict in rows:
                told = bodies.decode(bodies.Opening, checked(opening))
                if not isinstance(settled, int) or settled < 0:
                    raise DamageError(f"stream {number} has {settled} objects")
                left[told.stream.hex()] = Left(
                    number, told, checked(body), _decode_sites(checked(sites)), settled,
                    _decode_verdict(checked(verdict)),
                )  # fmt: skip
            return left

        self._left = store.read(read)

    def begin_leases(self) -> None:
        """Give what is left its resume window from now on: nothing stays for ever.

        Anew in each life, for it is this program that is to resume them, and it has to live for that.
        """
        for stream, left in self._left.items():
            self._journal.skip(left.number)
            when = self._face.time() + left.opening.resume / 1000
            self._leases[stream] = self._deadlines.at(when, partial(self._expired, stream))

    def _expired(self, stream: str, now: float) -> None:
        del self._leases[stream]
        Entry(self._journal, self._left.pop(stream).number, self._face).forget()

    def unfinished(self) -> list[UnfinishedStream]:
        """Return the streams that may be resumed, oldest first."""
        return [
            UnfinishedStream(
                stream, left.opening.channel, left.opening.topic, tuple(left.opening.targets), left.settled
            )
            for stream, left in self._left.items()
        ]

    def find(self, stream: str) -> Left:
        """Return a stream that may be resumed.

        Raises:
            UnknownStreamError: there is none of this id.
        """
        left = self._left.get(stream)
        if left is None:
            raise UnknownStreamError(stream, self._journal.site)
        return left

    def begin(self, opening: bodies.Opening, body: bytes, sites: Sites) -> Entry:
        """Keep a new stream."""
        entry = Entry(self._journal, self._journal.number(), self._face)
        row = (entry.number, check(bodies.encode(opening)), check(body), check(_encode(sites)), 0, check(_encode(None)))
        entry.ask(lambda store: store.execute("INSERT INTO outgoing VALUES (?, ?, ?, ?, ?, ?)", row))
        return entry

    def resume(self, opening: bodies.Opening) -> Entry:
        """Take up a stream of an earlier life; *opening* has this life and its epoch."""
        stream = opening.stream.hex()
        self._deadlines.cancel(self._leases.pop(stream))
        entry = Entry(self._journal, self._left.pop(stream).number, self._face)
        row = (check(bodies.encode(opening)), entry.number)
        entry.ask(lambda store: store.execute("UPDATE outgoing SET opening = ? WHERE id = ?", row))
        return entry


class Entry(Record):
    """One durable stream in the ledger; used by that stream's task alone.

    What is given along with a step is called, in order, when that is on the disk, or could not be written.
    """

    def __init__(self, journal: Journal, number: int, face: Face) -> None:
        super().__init__(journal, number, face)
        self._after: deque[Callable[[], object]] = deque()  # of each step asked for

    def ask(self, step: Callable[[Store], object], after: Callable[[], object] = _nothing) -> None:
        """Have a step made soon."""
        self._after.append(after)
        super().ask(step)

    def settled(self) -> None:
        """Hear that a step was made, or failed."""
        super().settled()
        self._after.popleft()()

    def settle(self, objects: int, sites: Sites | None, after: Callable[[], object]) -> None:
        """Note how many objects are settled, and what has become of the sites, unless that is None."""
        if sites is None:
            row: tuple[object, ...] = (objects, self.number)
            self.ask(lambda store: store.execute("UPDATE outgoing SET settled = ? WHERE id = ?", row), after)
        else:
            row = (objects, check(_encode(sites)), self.number)
            statement = "UPDATE outgoing SET settled = ?, sites = ? WHERE id = ?"
            self.ask(lambda store: store.execute(statement, row), after)

    def end(self, verdict: Verdict) -> None:
        """Note that the opener ends the stream, and how."""
        row = (check(_encode(verdict)), self.number)
        self.ask(lambda store: store.execute("UPDATE outgoing SET verdict = ? WHERE id = ?", row))

    def forget(self, after: Callable[[], object] = _nothing) -> None:
        """Drop the stream: it has ended. What was asked for already is not asked for again."""
        if not self.forgotten:
            self.last = lambda store: store.execute("DELETE FROM outgoing WHERE id = ?", (self.number,))
            self.ask(self.last, after)

    async def written(self) -> None:
        """Return once all that was asked for is on the disk.

        Raises:
            JournalError: something of it could not be written.
        """
        await self._settle()
