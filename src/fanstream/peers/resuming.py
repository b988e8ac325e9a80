"""Streams whose way is broken: how long they may wait, and when their openers try again; the engine's ends of all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from ..deadlines import Deadline, Deadlines
from ..errors import LocalProtocolError
from ..protocol.core import LinkCore
from ..protocol.opener import OpenerLeg
from ..protocol.receiver import ReceiverLeg

if TYPE_CHECKING:
    from ..journal import Journal

_LEASE: Final = 60.0
"""Seconds beyond its resume window for which an end remembers a stream that is over, if the other end is silent."""

AnyEnd = OpenerLeg | ReceiverLeg


class Resuming:
    """The ends of an engine's streams, with a deadline for each that no link holds (``protocol.surroundings.Keeper``).

    Args:
        deadlines: the engine's.
        time: its clock.
        longest: seconds that a peer may have this engine wait for it.
        find: returns the link that leads to a site now, if there is one.
        wanted: called with the name of a site that a suspended stream needs a way to.
        journal: where incoming streams are kept, if they are.
    """

    def __init__(
        self,
        deadlines: Deadlines,
        time: Callable[[], float],
        longest: float,
        find: Callable[[str], LinkCore | None],
        wanted: Callable[[str], object],
        journal: Journal | None = None,
    ) -> None:
        self._deadlines = deadlines
        self._time = time
        self._longest = longest
        self._find = find
        self._wanted = wanted
        self._journal = journal
        self._incoming: dict[tuple[str, bytes], ReceiverLeg] = {}
        self._counts: dict[str, int] = {}  # of them, by opener
        self._leases: dict[AnyEnd, Deadline] = {}

    def __len__(self) -> int:
        """How many streams are suspended, or have ended and are remembered."""
        return len(self._leases)

    def window(self, leg: AnyEnd) -> float:
        """Return how many seconds the way of a stream may take to come back."""
        window = leg.opening.resume / 1000
        return window if isinstance(leg, OpenerLeg) else min(window, self._longest)

    def wants(self, site: str) -> bool:
        """Whether a suspended stream needs a way to a site."""
        return any(isinstance(leg, OpenerLeg) and leg.site == site and not leg.attached for leg in self._leases)

    # What the links' cores tell.

    def opened(self, leg: ReceiverLeg) -> None:
        """A stream was opened at this site."""
        self._incoming[leg.opener, leg.opening.stream] = leg
        self._counts[leg.opener] = self._counts.get(leg.opener, 0) + 1

    def find(self, opener: str, stream: bytes) -> ReceiverLeg | None:
        """Return this site's end of a stream, if there is one."""
        return self._incoming.get((opener, stream))

    def count(self, opener: str) -> int:
        """Return how many ends of streams of *opener* this site has, suspended and ended ones included."""
        return self._counts.get(opener, 0)

    def suspended(self, leg: AnyEnd) -> None:
        """The way of a stream is broken: it has its resume window to come back; that of an earlier call goes on."""
        if leg not in self._leases:
            self._lease(leg, self.window(leg))
        if isinstance(leg, OpenerLeg):
            self._wanted(leg.site)

    def lingers(self, leg: AnyEnd) -> None:
        """A stream has ended at this end, and the other has not said yet that it knows."""
        self._end_lease(leg)
        self._lease(leg, self.window(leg) + _LEASE)

    def resumed(self, leg: AnyEnd) -> None:
        """The way has come back."""
        if not (leg.aborted if isinstance(leg, OpenerLeg) else leg.said_end):
            self._end_lease(leg)
            self._note(leg, None)

    def followed(self, leg: ReceiverLeg) -> None:
        """A later life of its opener has taken a durable stream up."""
        if self._journal is not None:
            self._journal.followed(leg.opening)

    def closed(self, leg: AnyEnd) -> None:
        """A leg is of no more use."""
        if isinstance(leg, ReceiverLeg) and self._incoming.pop((leg.opener, leg.opening.stream), None) is not None:
            left = self._counts.pop(leg.opener) - 1
            if left:
                self._counts[leg.opener] = left
            if self._journal is not None:
                self._journal.forget(leg.opener, leg.opening.stream)
        self._end_lease(leg)

    # What the engine tells.

    def restored(self, leg: ReceiverLeg, left: float) -> None:
        """An earlier life of this engine has begun to wait for a stream's opener, and has left so many seconds.

        A wall clock that was set back meanwhile gives no more time than the whole.
        """
        whole = self.window(leg) + (_LEASE if leg.said_end else 0.0)
        self._end_lease(leg)
        self._lease(leg, min(max(left, 0.0), whole))

    def ways_changed(self) -> None:
        """Other sites can be reached than before: streams that wait for one try again."""
        for leg in list(self._leases):
            if not isinstance(leg, OpenerLeg) or leg.attached or leg.resuming:
                continue
            link = self._find(leg.site)
            if link is None:
                continue
            try:
                link.resume(leg)
            except LocalProtocolError:
                continue  # that link is about to end

    def met(self, site: str, life: bytes) -> None:
        """A site is there in this life: the streams of any other have lost their opener, save those that it may resume.

        A durable stream has its resume window for that, as if only its way were broken.
        """
        for leg in list(self._incoming.values()):
            if leg.opener == site and leg.opening.life != life and not leg.opening.epoch:
                self.give_up(leg, f"{site} has begun anew")

    def give_up(self, leg: AnyEnd, reason: str) -> None:
        """End a stream at this end, and forget it; its owner hears that it is lost, if it still waits for anything."""
        self._end_lease(leg)
        lost = leg.expire(reason)
        if lost is not None and leg.owner is not None:
            leg.owner.handle(lost)

    def clear(self) -> None:
        """The engine ends: forget all. What was ended here and is not known to the opener yet stays in the journal."""
        self._journal = None
        for leg in list(self._leases):
            self.give_up(leg, "the engine ended")

    def _lease(self, leg: AnyEnd, seconds: float) -> None:
        self._leases[leg] = self._deadlines.at(self._time() + seconds, partial(self._expired, leg))
        self._note(leg, seconds)

    def _note(self, leg: AnyEnd, seconds: float | None) -> None:
        if self._journal is not None and isinstance(leg, ReceiverLeg):
            self._journal.leased(leg.opening, seconds)

    def _end_lease(self, leg: AnyEnd) -> None:
        lease = self._leases.pop(leg, None)
        if lease is not None:
            self._deadlines.cancel(lease)

    def _expired(self, leg: AnyEnd, now: float) -> None:
        self.give_up(leg, f"{leg.site} did not come back within {self.window(leg):g} s")
