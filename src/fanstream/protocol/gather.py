"""Who has answered what: each object's gather, each site's standing, the account of every (object, site) pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from enum import Enum, StrEnum, auto
from typing import Any, Final, Literal

from ..policies import Quorum
from ..shareable import ReturnCode, Shareable, make_reply
from .patience import Patience


class Outcome(StrEnum):
    """How one (object, site) pair ended; each ends exactly once."""

    REPLIED = "replied"
    TIMED_OUT = "timed_out"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    ABORTED = "aborted"
    LOST = "lost"
    NOT_SENT = "not_sent"


class Standing(Enum):
    """What a site is to a stream."""

    ACTIVE = auto()
    FINISHED = auto()
    """It wants no more objects, or has ended the stream."""
    UNREACHABLE = auto()
    """It cannot be reached, or not any more."""
    REFUSED = auto()
    """It does not take this stream."""
    SKIPPED = auto()
    """It does not take this stream, which is optional."""
    DROPPED = auto()
    """It fell too far behind."""


class SiteLedger:
    """One site's account in one stream.

    Attributes:
        sent, answered: objects sent to it; replies that came from it, in order.
        replied: how many of those came in time.
        misses: objects in a row that it has not answered in time.
        rc: the code that its failed pairs get, and with which it ended.
    """

    __slots__ = (
        "_failed",
        "answered",
        "end_result",
        "ended",
        "late",
        "misses",
        "name",
        "rc",
        "reason",
        "replied",
        "resumed",
        "sent",
        "standing",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.standing = Standing.ACTIVE
        self._failed: dict[Outcome, int] = {}
        self.sent = 0
        self.answered = 0
        self.replied = 0
        self.misses = 0
        self.late = 0
        self.resumed = 0
        self.rc: str = ReturnCode.OK
        self.reason = ""
        self.end_result: Any = None
        self.ended = False

    @property
    def backlog(self) -> int:
        """Objects that it has been sent and has not answered, timed-out ones included."""
        return self.sent - self.answered

    @property
    def counts(self) -> dict[Outcome, int]:
        """How many of its pairs have ended in which way."""
        replied = {Outcome.REPLIED: self.replied} if self.replied else {}
        return {**replied, **self._failed}

    def count(self, outcome: Outcome) -> None:
        """Account for one pair that ended without a reply."""
        self._failed[outcome] = self._failed.get(outcome, 0) + 1


class Flight:
    """One object on its way: who is still to answer, and what the others said.

    Attributes:
        waiting: sites whose pair has not ended.
        replies: what ``process_replies`` will see.
        unanswered: sites that were sent the object and have neither answered nor gone.
        complete: the gather is over; ``met`` says whether its policy was met.
        on_complete: called once, when it is; ``on_reply`` with each reply before.
        sent: when it was sent; loop clock, seconds.
        due: when whoever has not answered has timed out.
        closes: when a gather that has enough replies is over; infinite while it has not, or has no patience.
        payload: the encoded object, for as long as a site may need it again; ``final``: none follows.
        judged: the application has seen the replies.
    """

    __slots__ = (
        "closes", "complete", "due", "failure", "final", "judged", "met", "needed", "on_complete", "on_reply",
        "payload", "replied", "replies", "sent", "seq", "size", "unanswered", "waiting",
    )  # fmt: skip

    def __init__(self, seq: int, size: int) -> None:
        self.seq = seq
        self.size = size
        self.waiting: set[str] = set()
        self.replies: dict[str, Shareable] = {}
        self.unanswered = 0
        self.replied = 0
        self.needed = 0
        self.complete = False
        self.met = False
        self.judged = False
        self.failure: str | None = None
        self.on_complete: Callable[[], object] | None = None
        self.on_reply: Callable[[], object] | None = None
        self.sent = 0.0
        self.due = 0.0
        self.closes = math.inf
        self.payload: Any = None
        self.final = False


_GONE: Final = {
    Standing.UNREACHABLE: Outcome.UNREACHABLE,
    Standing.REFUSED: Outcome.REFUSED,
}


class Gathering:
    """All the gathers of one stream.

    Args:
        targets: the sites, in the caller's order.
        policy: when a gather is complete.
        backlog: the most objects that one site may leave unanswered.

    Attributes:
        flights: objects that somebody may still answer, or whose replies have not been judged, by number.
        at_limit: sites whose backlog is full.
        first_failure: the code of the first site for which a gather did not meet its policy.
        first: the number of the first object that is accounted for; 0 unless an earlier life has settled some.
    """

    def __init__(self, targets: Sequence[str], policy: Literal["all", "first"] | Quorum, backlog: int) -> None:
        self.sites = {name: SiteLedger(name) for name in targets}
        self._needed = 1 if policy == "first" else policy.k if isinstance(policy, Quorum) else None
        self._patience: Patience | None = None
        if isinstance(policy, Quorum) and policy.patience is not None:
            self._patience = Patience(policy.patience, len(targets))
        self._backlog = backlog
        self.active: dict[str, SiteLedger] = dict(self.sites)
        self.flights: dict[int, Flight] = {}
        self.at_limit: set[str] = set()
        self.first_failure: str | None = None
        self.first = 0
        self.objects = 0
        self.bytes = 0

    def begin_at(self, first: int) -> None:
        """Begin with object *first*: those before it are settled."""
        self.first = self.objects = first
        for site in self.sites.values():
            site.sent = site.answered = first

    @property
    def settled(self) -> int:
        """How many objects need nothing more: judged, and answered by every site that takes part."""
        return next(iter(self.flights), self.objects)

    @property
    def patient(self) -> bool:
        """Whether gathers that have enough replies stay open for the others."""
        return self._patience is not None

    @property
    def finished(self) -> bool:
        """Whether every site has finished of itself, or was skipped or dropped: nobody is left to be sent anything."""
        if self.active:
            return False
        return not any(site.standing in _GONE for site in self.sites.values())

    def launch(self, size: int) -> Flight:
        """Account for the next object; the caller then sends it to the active sites.

        Args:
            size: of the object, in bytes.
        """
        flight = Flight(self.objects, size)
        self.objects += 1
        self.bytes += size
        self.flights[flight.seq] = flight
        active = self.active
        for name, site in active.items():
            site.sent += 1
            if site.sent - site.answered >= self._backlog:
                self.at_limit.add(name)
        flight.waiting.update(active)
        flight.unanswered = participants = len(active)
        if participants < len(self.sites):
            for name, site in self.sites.items():
                if name in active:
                    continue
                outcome = _GONE.get(site.standing)
                site.count(outcome or Outcome.NOT_SENT)
                if outcome is not None:
                    participants += 1
                    flight.replies[name] = make_reply(site.rc)
                    flight.failure = flight.failure or site.rc
        flight.needed = participants if self._needed is None else self._needed
        if not flight.waiting:
            self._complete(flight)
        return flight

    def reply(self, name: str, seq: int, reply: Shareable, now: float = 0.0) -> bool:
        """Take a site's reply to an object; replies of a site come in order, one for each object.

        Args:
            name: the site.
            seq: the object's number.
            reply: the reply.
            now: the time; read only where the policy has patience.

        Returns:
            Whether it came in time.
        """
        site = self.sites[name]
        site.answered = seq + 1
        if site.sent - site.answered < self._backlog:
            self.at_limit.discard(name)
        flight = self.flights.get(seq)
        if flight is None:  # every flight stays until all its sites have answered
            raise KeyError(f"object {seq} has no flight")
        flight.unanswered -= 1
        if not flight.unanswered:
            flight.payload = None
        waiting = flight.waiting
        if self._patience is not None:
            self._patience.observe(now - flight.sent)
        if name not in waiting:
            site.late += 1
            self._forget_if_done(flight)
            return False
        waiting.remove(name)
        site.misses = 0
        site.replied += 1
        flight.replied += 1
        if not flight.complete:
            flight.replies[name] = reply
            if flight.on_reply is not None:
                flight.on_reply()
            if not waiting:
                self._complete(flight)
            elif flight.replied >= flight.needed:
                self._enough(flight, now)
        self._forget_if_done(flight)
        return True

    def _enough(self, flight: Flight, now: float) -> None:
        """The policy is met: the gather is over, unless there is patience with the others."""
        if self._patience is not None:
            if flight.closes == math.inf:
                flight.closes = flight.sent + self._patience.limit()
            if flight.closes > now:
                return
        self._complete(flight)

    def lose_patience(self, flight: Flight) -> None:
        """The gather has enough replies, and has waited for the others for long enough."""
        if not flight.complete:
            self._complete(flight)

    def expire(self, flight: Flight, reason: str, names: Collection[str] | None = None) -> list[SiteLedger]:
        """The object's deadline has come: whoever has not answered has timed out.

        Args:
            flight: the object.
            reason: what the replies that stand for those missing say.
            names: sites whose own deadline it is; None for all.

        Returns:
            The sites that have.
        """
        late = [self.sites[name] for name in flight.waiting if names is None or name in names]
        for site in late:
            site.misses += 1
            self._settle(flight, site, Outcome.TIMED_OUT, ReturnCode.TIMEOUT, reason)
        self._forget_if_done(flight)
        return late

    def _settle(self, flight: Flight, site: SiteLedger, outcome: Outcome, rc: str | None, reason: str = "") -> None:
        """End one pair without a reply; *rc* None leaves the site out of the replies."""
        flight.waiting.discard(site.name)
        site.count(outcome)
        if flight.complete:
            return
        if rc is not None:
            flight.replies[site.name] = make_reply(rc, {"reason": reason} if reason else None)
            flight.failure = flight.failure or rc
        elif self._needed is None:
            flight.needed -= 1
        if not flight.waiting:
            self._complete(flight)

    def _complete(self, flight: Flight) -> None:
        flight.complete = True
        flight.met = flight.replied >= flight.needed
        if not flight.met and self.first_failure is None:
            self.first_failure = flight.failure or ReturnCode.EARLY_TERMINATION
        if flight.on_complete is not None:
            flight.on_complete()

    def judged(self, flight: Flight) -> None:
        """The application has seen a flight's replies."""
        flight.judged = True
        flight.replies = {}
        self._forget_if_done(flight)

    def _forget_if_done(self, flight: Flight) -> None:
        if flight.unanswered == 0 and flight.judged and not flight.waiting:
            self.flights.pop(flight.seq, None)

    def leave(self, name: str, standing: Standing, rc: str, outcome: Outcome, reason: str = "") -> None:
        """A site takes no more part in the stream.

        Args:
            name: the site.
            standing: what it is now.
            rc: the code of its failed pairs; OK when it simply wants no more.
            outcome: how its open pairs end.
            reason: what was said about it.
        """
        site = self.sites[name]
        if self.active.pop(name, None) is None:
            return
        site.standing = standing
        site.rc = rc
        site.reason = reason
        self.at_limit.discard(name)
        absent = standing in (Standing.FINISHED, Standing.SKIPPED)
        self._abandon(site, outcome, None if absent else rc)

    def _abandon(self, site: SiteLedger, outcome: Outcome, rc: str | None) -> None:
        for flight in list(self.flights.values()):
            if flight.seq >= site.answered and flight.seq < site.sent:
                flight.unanswered -= 1
                if not flight.unanswered:
                    flight.payload = None
                if site.name in flight.waiting:
                    self._settle(flight, site, outcome, rc)
                self._forget_if_done(flight)
        site.answered = site.sent

    def end(self, name: str, rc: str, result: Any, reason: str) -> None:
        """A site has acknowledged the end, or the wait for it is over."""
        site = self.sites[name]
        site.ended = True
        site.rc = rc
        site.end_result = result
        site.reason = reason

    def close(self) -> None:
        """Check the account: each produced object has ended once at each site.

        Raises:
            AssertionError: it has not; a defect of this package.
        """
        for site in self.sites.values():
            ended = sum(site.counts.values())
            if ended != self.objects - self.first:
                raise AssertionError(
                    f"{ended} outcomes for {self.objects - self.first} objects at {site.name}: {site.counts}"
                )
