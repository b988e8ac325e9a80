"""Scenarios: what happens in one simulated run, all of it drawn from one integer."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal

TICK: Final = 0.01
"""Seconds that all moments and durations are multiples of, so that many things happen at the same moment."""

SERVER: Final = "server"
HUB: Final = "hub"
"""Forwards, and does nothing else, where the sites have one that is none of theirs."""
GHOST: Final = "ghost"
"""A target that no engine has."""

Topology = Literal["local", "hub", "apart"]
Shape = Literal["class", "generator", "open"]


class Script:
    """Prints those of its fields that are not as usual, one scenario being long enough."""

    def __repr__(self) -> str:
        shown = [
            f"{each.name}={getattr(self, each.name)!r}"
            for each in fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
            if getattr(self, each.name) != each.default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class SiteScript(Script):
    """How one site treats one stream; numbers are those of objects.

    Attributes:
        registered: when the topic is registered; None for never.
        delays: seconds that each ``consume`` takes.
        reply_sizes: bytes in each reply.
        fails: who raises or takes for ever, if any does.
        at: at which object, where ``fails`` is a kind of ``consume``.
        leaves_with: the return code of an early end.
        end_result: what ``stream_done_cb`` returns.
        ends_with: the code that the consumer ends the stream with, for those kinds of ``fails``.
    """

    registered: float | None = 0.0
    delays: tuple[float, ...] = ()
    reply_sizes: tuple[int, ...] = ()
    fails: str = ""
    at: int = 0
    leaves_with: str = "OK"
    end_result: Any = None
    ends_with: str = "UNSAFE_JOB"


@dataclass(frozen=True, repr=False)
class StreamScript(Script):
    """One stream: its options, what its producer does, and what is done to it.

    Attributes:
        shape: whether its objects come from a producer, from a generator, or are sent one by one.
        start: when it is opened.
        sizes, timeouts, makes, judges: of each object: bytes, seconds for the reply, to be produced, and to be judged.
        ending: how the producer ends it, other than by having no more.
        at: with which object it does.
        stop: whether, and how, somebody else does.
        stop_at: when.
        durable: the next life of an opener that crashes resumes it.
        forsaken: no, it does not, though it might.
    """

    shape: Shape = "class"
    opener: str = SERVER
    targets: tuple[str, ...] = ()
    start: float = 0.0
    window: int = 1
    gather: Any = "all"
    patience: float | None = None
    progress_timeout: float | None = None
    copy: bool = False
    drop: int = 0
    max_lag: int | None = None
    stall_timeout: float = 60.0
    end_timeout: float = 10.0
    connect_grace: float = 0.0
    resume_window: float = 60.0
    optional: bool = False
    watching: bool = False
    sizes: tuple[int, ...] = ()
    timeouts: tuple[float, ...] = ()
    makes: tuple[float, ...] = ()
    judges: tuple[float, ...] = ()
    ending: str = ""
    at: int = 0
    stop: Literal["", "signal", "cancel"] = ""
    stop_at: float = 0.0
    sites: tuple[tuple[str, SiteScript], ...] = ()
    durable: bool = False
    forsaken: bool = False


FaultKind = Literal["stall", "one way", "cut", "cut after", "slow", "flap", "flip"]


@dataclass(frozen=True, repr=False)
class Fault(Script):
    """What happens to a link: to the newest that leads from or to ``site`` at that moment.

    Attributes:
        kind: ``one way``: nothing arrives in one direction; ``flip``: one bit near the beginning of a frame is changed.
        seconds: how long it stalls; infinite for good.
        count: bytes, or times; which way, which of the next frames, and which bit.
    """

    at: float
    kind: FaultKind
    site: str
    seconds: float = 0.0
    count: int = 0


@dataclass(frozen=True, repr=False)
class Absence(Script):
    """An engine ends, and a new one of the same name begins.

    Attributes:
        crash: it says nothing to anybody: its links break, and it is cancelled.
    """

    site: str
    at: float
    seconds: float
    crash: bool = False


@dataclass(frozen=True, repr=False)
class Claim(Script):
    """Another engine says for a while that it is this site."""

    site: str
    at: float
    seconds: float


@dataclass(frozen=True, repr=False)
class FullDisk(Script):
    """Nothing can be written to an engine's journal for a while."""

    site: str
    at: float
    seconds: float


@dataclass(frozen=True, repr=False)
class ClockJump(Script):
    """The wall clocks of all engines are set forward by so many seconds, or back."""

    at: float
    seconds: float


@dataclass(frozen=True, repr=False)
class Scenario(Script):
    """One run.

    Attributes:
        topology: ``local``: engines find each other by name; ``hub``: the sites dial in to the server; ``apart``:
            sites and server dial in to a hub.
        calm: nothing goes wrong, so everything has to end well.
        delays: seconds under way, of each site's links.
        journals: the engines that have one.
    """

    seed: int
    topology: Topology
    calm: bool
    sites: tuple[str, ...]
    delays: tuple[float, ...]
    limits: tuple[tuple[str, int], ...]
    registration_grace: float
    idle_timeout: float | None
    streams: tuple[StreamScript, ...]
    faults: tuple[Fault, ...]
    absences: tuple[Absence, ...]
    claims: tuple[Claim, ...]
    journals: tuple[str, ...] = ()
    full_disks: tuple[FullDisk, ...] = ()
    jumps: tuple[ClockJump, ...] = ()

    @property
    def engines(self) -> tuple[str, ...]:
        """The names of all engines."""
        return (SERVER, *self.sites) if self.topology != "apart" else (HUB, SERVER, *self.sites)

    def __repr__(self) -> str:
        lines = super().__repr__()
        for kind in (
            "StreamScript(",
            "Fault(",
            "Absence(",
            "Claim(",
            "FullDisk(",
            "ClockJump(",
            "('site-",
            "('server'",
        ):
            lines = lines.replace(kind, f"\n    {kind}")
        return lines


def scenario(seed: int) -> Scenario:
    """Draw a scenario."""
    plan = _keep(random.Random(f"journals of {seed}"), _Drawing(random.Random(seed)).scenario(seed))
    return plan if plan.calm else _worsen(random.Random(f"further faults of {seed}"), plan)


def _keep(rng: random.Random, plan: Scenario) -> Scenario:
    """Give some engines journals, and have them crash while their streams run; drawn apart from all else of a seed."""
    if rng.random() < 0.7:
        return plan
    openers = [stream.opener for stream in plan.streams if stream.shape == "class"]
    journals = {name for name in plan.engines if name != HUB and rng.random() < 0.5}
    journals.update(name for name in openers if rng.random() < 0.8)
    streams = tuple(_kept(rng, stream, journals) for stream in plan.streams)
    absences = list(plan.absences)
    for stream in () if plan.calm else streams:
        for name in (stream.opener, *stream.targets):
            if name in journals and rng.random() < 0.5:
                moment = _moment(rng, stream)
                absences.append(Absence(name, moment, _ticks(rng, rng.choice([0.05, 1.0])), crash=True))
    return replace(
        plan,
        journals=tuple(name for name in plan.engines if name in journals),
        absences=tuple(absences),
        streams=streams,
    )


def _kept(rng: random.Random, stream: StreamScript, journals: set[str]) -> StreamScript:
    """Have a stream outlive its opener, if it can; and have half of them do nothing else that is out of order."""
    if stream.shape == "class" and stream.opener in journals and stream.resume_window > 0:
        stream = replace(stream, durable=rng.random() < 0.9)
    if rng.random() < 0.5:
        sites = tuple((name, replace(site, fails="", registered=0.0)) for name, site in stream.sites)
        stream = replace(stream, ending="", stop="", drop=0, progress_timeout=None, resume_window=60.0, sites=sites)
    return stream


def _worsen(rng: random.Random, plan: Scenario) -> Scenario:
    """Have further things happen while the streams run; drawn apart, too."""
    faults = list(plan.faults)
    if rng.random() < 0.1:
        stream = rng.choice(plan.streams)
        seconds = rng.choice([_ticks(rng, 1), _ticks(rng, 20), math.inf])
        faults.append(Fault(_moment(rng, stream), "one way", stream.opener, seconds, rng.randint(0, 1)))
    if rng.random() < 0.08:
        stream = rng.choice(plan.streams)
        moment = stream.start + _ticks(rng, 0.2)
        faults.append(Fault(moment, "flip", rng.choice([stream.opener, *stream.targets]), count=rng.getrandbits(20)))
    disks = [
        FullDisk(name, _moment(rng, rng.choice(plan.streams)), rng.choice([_ticks(rng, 0.1), _ticks(rng, 1), 5.0]))
        for name in plan.journals
        if rng.random() < 0.2
    ]
    down = [absence for absence in plan.absences if absence.site in plan.journals]
    jumps: tuple[ClockJump, ...] = ()
    if down and rng.random() < 0.3:  # while an engine is down: between what it has written and what it reads
        absence = rng.choice(down)
        jumps = (ClockJump(absence.at + _ticks(rng, absence.seconds), rng.choice([-1e6, -30.0, 30.0, 1e6])),)
    streams = tuple(replace(one, forsaken=True) if one.durable and rng.random() < 0.2 else one for one in plan.streams)
    return replace(plan, streams=streams, faults=tuple(faults), full_disks=tuple(disks), jumps=jumps)


def _moment(rng: random.Random, stream: StreamScript) -> float:
    """Draw a moment while a stream runs, if all goes as usual."""
    seconds = 0.05 * len(stream.sizes) + sum(stream.makes) + sum(stream.judges)
    seconds += max(sum(site.delays) for _, site in stream.sites) if stream.sites else 0.0
    return stream.start + _ticks(rng, seconds + 0.1)


def _ticks(rng: random.Random, most: float, least: float = 0.0) -> float:
    return round(rng.randint(round(least / TICK), round(most / TICK)) * TICK, 6)


class _Drawing:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.calm = rng.random() < 0.2

    def ticks(self, most: float, least: float = 0.0) -> float:
        return _ticks(self.rng, most, least)

    def maybe(self, chance: float) -> bool:
        return not self.calm and self.rng.random() < chance

    def scenario(self, seed: int) -> Scenario:
        rng = self.rng
        names = tuple(f"site-{number}" for number in range(1, rng.choice([1, 1, 2, 3, 4, 6]) + 1))
        origin = rng.choice([64, 100, 1000, 256 * 1024]) * 1024
        limits = (
            ("frame", rng.choice([4, 16, 1024]) * 1024),
            ("window", rng.choice([1024, 32 * 1024]) * 1024),
            ("relay_window", rng.choice([64, 2048]) * 1024),
            ("origin_bytes", origin),
            ("engine_bytes", max(origin, 64 * 1024) * rng.choice([1, 4])),
        )
        topology: Topology = rng.choice(["local", "hub", "hub", "apart"])
        everyone = (SERVER, *names, *([HUB] * 2 if topology == "apart" else []))
        leavers = (HUB,) if topology == "apart" and rng.random() < 0.5 else everyone
        faulty = self.maybe(0.5)
        return Scenario(
            seed=seed,
            topology=topology,
            calm=self.calm,
            sites=names,
            delays=tuple(rng.choice([0.0, 0.0, TICK, 5 * TICK]) for _ in names),
            limits=limits,
            registration_grace=rng.choice([0.0, 1.0]),
            idle_timeout=rng.choice([0.5, 3.0]) if self.maybe(0.1) else None,
            streams=tuple(self.stream(names) for _ in range(rng.choice([1, 1, 1, 2, 3]))),
            faults=tuple(self.fault(everyone) for _ in range(rng.randint(1, 4) if faulty else 0)),
            absences=tuple(
                Absence(rng.choice(leavers), self.ticks(3), self.ticks(1), rng.random() < 0.5)
                for _ in range(rng.randint(1, 2) if self.maybe(0.25) else 0)
            ),
            claims=tuple(
                Claim(rng.choice(names), self.ticks(2, 0.5), self.ticks(5, 0.5))
                for _ in range(1 if topology != "local" and rng.random() < 0.12 else 0)
            ),
        )

    def fault(self, names: tuple[str, ...]) -> Fault:
        rng = self.rng
        kind: FaultKind = rng.choice(["stall", "cut", "cut", "cut after", "cut after", "slow", "flap", "flap"])
        seconds = rng.choice([self.ticks(1), self.ticks(20)]) if kind == "stall" else 0.0
        count = rng.randint(0, 100_000) if kind in ("cut after", "slow") else rng.randint(1, 10)
        return Fault(self.ticks(3), kind, rng.choice(names), seconds, count)

    def stream(self, names: tuple[str, ...]) -> StreamScript:
        rng = self.rng
        everyone = [SERVER, *names]
        opener = SERVER if rng.random() < 0.7 else rng.choice(names)
        others = [name for name in everyone if name != opener]
        targets = rng.sample(others, rng.randint(1, len(others)))
        if self.maybe(0.1):
            targets.insert(rng.randint(0, len(targets)), GHOST)
        number = rng.choice([0, 1, 2, 3, 5, 8, 20])
        shape: Shape = rng.choice(["class", "class", "class", "generator", "open"])
        largest = rng.choice([0, 1000, 60_000, 200_000])
        quick = rng.random() < 0.5
        gather = rng.choice(["all", "all", "first", rng.randint(1, len(targets))])
        stop: Literal["", "signal", "cancel"] = rng.choice(["signal", "cancel"]) if self.maybe(0.3) else ""
        endings = ["raise in produce", "wrong type", "bad timeout", "raise in judge"]
        if shape == "class":
            endings += ["value", "false value"]
        patience = rng.choice([None, None, 0.0, 1.0, 3.0]) if isinstance(gather, int) else None
        return StreamScript(
            shape=shape,
            opener=opener,
            targets=tuple(targets),
            start=self.ticks(1),
            window=1 if shape == "generator" else rng.choice([1, 1, 2, 3, 5, 16]),
            gather=gather,
            patience=patience,
            progress_timeout=rng.choice([None, None, 5.0 if self.calm else self.ticks(1, 0.05)]),
            copy=rng.random() < 0.2,
            drop=rng.randint(1, 3) if self.maybe(0.2) else 0,
            max_lag=rng.choice([None, 0, 1]),
            stall_timeout=self.ticks(3, 0.1) if self.maybe(0.5) else 60.0,
            end_timeout=60.0 if self.calm else rng.choice([10.0, 10.0, self.ticks(3, 0.1)]),
            connect_grace=30.0 if self.calm else rng.choice([0.0, 0.1, 1.0]),
            resume_window=rng.choice([60.0, 60.0, 60.0, 0.0, self.ticks(5, 0.1)]),
            optional=rng.random() < 0.2,
            watching=rng.random() < 0.3,
            sizes=tuple(rng.randint(0, largest) for _ in range(number)),
            timeouts=tuple(30.0 if self.calm or rng.random() < 0.3 else self.ticks(0.5, 0.01) for _ in range(number)),
            makes=tuple(0.0 if quick else self.ticks(0.1) for _ in range(number + 1)),
            judges=tuple(0.0 if quick else self.ticks(0.1) for _ in range(number)),
            ending=rng.choice(endings) if self.maybe(0.3) else "",
            at=rng.randint(0, max(0, number - 1)),
            stop=stop,
            stop_at=self.ticks(3),
            sites=tuple((name, self.site(number)) for name in targets if name != GHOST),
        )

    def site(self, number: int) -> SiteScript:
        rng = self.rng
        slow = rng.choice([0.0, 0.0, 0.1, 0.5])
        kinds = [
            "hang in consume", "raise in consume", "leave", "leave", "nonsense", "raise in get_consumer",
            "slow finalize", "hang in finalize", "raise in finalize", "raise in done", "hang in done",
            "raise in return", "end in consume", "end and answer",
        ]  # fmt: skip
        registered: float | None = 0.0
        if self.maybe(0.1):
            registered = rng.choice([None, self.ticks(2)])
        return SiteScript(
            registered=registered,
            delays=tuple(self.ticks(slow) for _ in range(number)),
            reply_sizes=tuple(rng.choice([0, 100, 50_000, 150_000]) for _ in range(number)),
            fails=rng.choice(kinds) if self.maybe(0.35) else "",
            at=rng.randint(0, max(0, number - 1)),
            leaves_with=rng.choice(["OK", "EMPTY_RESULT"]),
            end_result=rng.choice([None, None, "done", 7]),
        )
