"""What the contract says of one stream, against what happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fanstream import StreamResult
from fanstream.errors import JournalError
from tests.simulation.actors import ENGINES_OWN, Actors, Book, ScriptedError
from tests.simulation.scenario import HUB, Scenario


@dataclass
class Course:
    """What has befallen the links and engines of a run so far.

    Attributes:
        plan: what is to happen.
        faulted: a link was harmed, or an engine has ended.
        usurped: a site's name was another engine's for a while.
        full: engines that could not write their journals for a while.
        garbled: a bit was flipped on the way: then nothing is known of contents and codes, only how often, in which
            order, how long, and what is left.
    """

    plan: Scenario
    faulted: bool = False
    usurped: bool = False
    full: set[str] = field(default_factory=set)
    garbled: bool = False


class Verdict:
    """Judges one stream.

    Args:
        course: of the run.
        actors: what is known of the stream.
    """

    def __init__(self, course: Course, actors: Actors) -> None:
        self.course = course
        self.actors = actors
        self.script = actors.script
        self.producer = actors.producer

    def claim(self, holds: object, what: str) -> None:
        if not holds:
            self.actors.object(what)

    def opener(self, result: StreamResult | None, error: Exception | None, *, stopped: bool) -> None:
        """Judge what ``stream_objects`` returned or raised."""
        self.actors.result = result
        self.actors.stopped = stopped or result is None
        producer = self.producer
        if isinstance(error, JournalError):
            self.claim(self.script.durable and self.script.opener in self.course.full, f"{error!r} reached the caller")
            return
        if error is not None:
            self.claim(producer.raised, f"{error!r} reached the caller")
            if self.script.ending.startswith("raise"):
                self.claim(isinstance(error, ScriptedError), f"{error!r} reached the caller, not what was raised")
            return
        if result is None:
            return
        unheard = self.script.shape == "generator" and self.script.ending in ("wrong type", "bad timeout")
        self.claim(not producer.raised or stopped or unheard, f"the producer raised, and the result is {result}")
        for name, site in result.sites.items():
            account = sum(site.outcomes.values())
            self.claim(account == result.objects, f"{account} outcomes of {result.objects} at {name}")
            self.claim(0 not in site.outcomes.values(), f"an empty outcome at {name}")
        self.claim(set(result.sites) == set(self.script.targets), "other sites than the targets")
        if self.course.garbled:
            return
        if result.rc == "TASK_ABORTED" and (stopped or not self.course.faulted):
            self.claim(stopped, f"aborted by nobody: {result}")
            self.claim((result.value, result.complete) == (None, False), f"aborted, yet {result}")
            return
        self.claim(not producer.busy, f"{producer.busy} runs after the end")
        # What a generator yields once every site has finished goes nowhere, as what is sent on a finished stream.
        nowhere = {"class": 0, "generator": 1, "open": producer.made}[self.script.shape]
        self.claim(
            result.objects <= producer.made - producer.first <= result.objects + nowhere,
            f"{result.objects} objects from {producer.first} on, {producer.made} were produced",
        )
        self.claim(result.first == producer.first, f"it goes on at {producer.first}, the result at {result.first}")
        # What an earlier life has ended it with is not asked for again, once that is on the disk.
        value = self.actors.value if producer.value is None and self.actors.resumed else producer.value
        self.claim(result.value in (producer.value, value), f"value {result.value}, process_replies said {value}")
        if result.value is None:
            self.claim(len(producer.seen) == result.objects, f"{len(producer.seen)} of {result.objects} were judged")
            self.code(result)
        else:
            self.claim(result.rc == ("OK" if value else "ERROR"), f"{result.rc} for {value}")
        self.pairs(result)

    def code(self, result: StreamResult) -> None:
        """Find ``rc`` as the contract does."""
        blamed: set[str] = set()
        for replies in self.producer.seen:
            failures = [code for code in replies.values() if code in ENGINES_OWN]
            given = len(replies) - len(failures)
            gather = self.script.gather
            needed = len(replies) if gather == "all" else 1 if gather == "first" else gather
            if self.script.patience is None:
                self.claim(given <= needed, f"{given} replies were waited for, {needed} are enough for {gather}")
            if given < needed:
                blamed |= set(failures) or {"EARLY_TERMINATION"}
        if blamed:
            self.claim(result.rc in blamed, f"rc {result.rc}, gathers failed for {blamed}")
            return
        ends = [site.rc for name, site in result.sites.items()]
        expected = next((rc for rc in ends if rc != "OK"), "OK")
        self.claim(result.rc == expected, f"rc {result.rc}, expected {expected}")

    def pairs(self, result: StreamResult) -> None:
        """Compare the account with what the sites and the producer have seen."""
        total = {"replied": result.objects}
        good = all(site.rc == "OK" and site.outcomes in (total, {}) for site in result.sites.values())
        self.claim(good or not result.complete, f"complete, yet {result}")
        if self.course.plan.calm and self.producer.value is None:
            self.claim(result.complete and result.rc == "OK", f"all was calm, yet {result}")
        faulted = self.course.faulted
        for name, site in result.sites.items():
            if name not in self.actors.books:
                # A resumed stream waits for a way to those that it has not had one to.
                possible = {"unreachable", "timed_out", "aborted", "lost"} if self.actors.resumed else {"unreachable"}
                self.claim(set(site.outcomes) <= possible, f"{name} has {site}")
                continue
            books, script = self.actors.books[name], self.actors.sites[name]
            book = next((one for one in reversed(books) if one.log), Book())
            answered = sum(one.answered for one in books)
            replied = site.outcomes.get("replied", 0)
            failing = script.fails in ("raise in consume", "nonsense", "raise in get_consumer")
            failing = failing or name in self.course.full
            self.claim(replied <= answered + failing, f"{replied} replies counted, {name} gave {answered}")
            shown = sum(codes.get(name, "TIMEOUT") not in ENGINES_OWN for codes in self.producer.seen)
            self.claim(shown <= replied, f"{shown} replies of {name} were judged, {replied} counted")
            # Before the first object is consumed, a site that crashes may not have heard of the stream; and an opener
            # that crashes may not have written down that a site was out of reach.
            unknown = script.registered != 0.0 or any(one.dead and not one.log for one in books)
            unknown = unknown or (self.actors.resumed and not any(one.log for one in books))
            # Nor that it had dropped one, which was told at once.
            unknown = unknown or (self.actors.resumed and "TASK_ABORTED" in {one.rc for one in books})
            unknown = unknown or name in self.course.full
            if not faulted or (self.goes_on and not unknown):
                self.claim("lost" not in site.outcomes, f"{name} was lost, but no link was: {site}")
            if script.registered == 0.0 and not faulted:
                self.claim("refused" not in site.outcomes, f"{name} refused what is registered: {site}")
            if site.rc == "OK" and result.complete:
                self.claim(not book.log or book.rc == "OK", f"{name} ended with {book.rc}, told OK")
                wanted = script.end_result if book.log else None
                self.claim(site.end_result == wanted, f"{name} gave {wanted}, told {site.end_result}")

    @property
    def goes_on(self) -> bool:
        """Whether all that breaks is there again long before the window is over, and knows what it has done."""
        plan, script = self.course.plan, self.script
        return (
            script.resume_window == 60
            and not self.course.usurped
            and not script.forsaken
            and all(one.site == HUB or (one.crash and self.keeps(one.site)) for one in plan.absences)
            and all(one.kind not in ("slow", "flip") for one in plan.faults)
            and all(one.seconds < 0 for one in plan.jumps)
        )

    def hears(self, name: str) -> bool:
        """Whether a site hears how the stream has ended: where it could not be reached then, from that life alone."""
        actors, result = self.actors, self.actors.result
        unheard = actors.stopped or result is None or result.sites[name].rc != "OK"
        return not (unheard and any(one.site == self.script.opener for one in self.course.plan.absences))

    def keeps(self, name: str) -> bool:
        """Whether an engine has a journal, and the stream is in it."""
        return name in self.course.plan.journals and (name != self.script.opener or self.script.durable)

    def sites(self) -> None:
        """Judge what happened at the sites, once nothing runs any more."""
        for name, books in self.actors.books.items():
            for book in books:
                self.site(name, book)
                self.claim(len(book.contexts) <= 1, f"{name} saw {len(book.contexts)} contexts")
                self.claim(not book.running, f"consume still runs at {name}")

    def site(self, name: str, book: Book) -> None:
        script, log, rc = self.actors.sites[name], book.log, book.rc
        if not log:
            self.claim(not book.consumed, f"{name} consumed without a consumer")
            return
        full = ["get_consumer", "finalize", "done", "return_consumer"]
        if script.fails == "raise in get_consumer":
            full = ["get_consumer"]
        elif script.fails in ("hang in finalize", "hang in done"):
            full = full[: full.index(script.fails.removeprefix("hang in ")) + 1]
            log = log[: len(full)]
        self.claim(log == full, f"{name} was called {log}, expected {full}")
        first = book.consumed[0] if book.consumed else 0
        last = book.consumed[-1] if book.consumed else -1
        self.claim(book.consumed == list(range(first, last + 1)), f"{name} consumed {book.consumed}")
        if rc is None or self.course.garbled:
            return
        result = self.actors.result
        idle = self.course.plan.idle_timeout is not None
        dropped = result is not None and result.sites[name].rc == "TIMEOUT"
        stopped = self.actors.stopped or dropped or self.course.faulted
        left = script.fails == "leave" and script.at <= last
        roomless = name in self.course.full  # what it has said then, its next life may not know
        failed = script.fails in ("raise in consume", "nonsense") and script.at <= last
        quits = script.fails in ("end in consume", "end and answer") and script.at <= last
        ended = self.actors.said_end or result is not None
        possible: dict[str, Callable[[], object]] = {
            "OK": lambda: ended or (left and script.leaves_with == "OK"),
            "TASK_ABORTED": lambda: stopped,
            "COMMUNICATION_ERROR": lambda: (
                self.course.faulted and not (self.goes_on and self.hears(name) and not roomless)
            ),
            "TIMEOUT": lambda: idle,
            "EXECUTION_EXCEPTION": lambda: failed or roomless,
            "EMPTY_RESULT": lambda: left and script.leaves_with == "EMPTY_RESULT",
            script.ends_with: lambda: quits,
        }
        self.claim(possible.get(rc, bool)(), f"{name} ended with {rc}")
        cut_short = self.actors.stopped or dropped or (self.course.faulted and not self.goes_on)
        if rc == "OK" and result is not None and not left and result.value is None and not cut_short:
            ends = [one.consumed[-1] for one in self.actors.books[name] if one.consumed]
            consumed = max(ends, default=-1) + 1
            self.claim(consumed == result.first + result.objects, f"{name} ended well after {consumed} objects")
