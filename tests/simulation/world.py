"""One simulated run: engines, links, streams and faults on virtual time, and what has to hold of all of them."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import random
from typing import Any, Final, Self

import anyio
from anyio.lowlevel import current_token

from fanstream import (
    AbortSignal,
    EngineSettings,
    Shareable,
    StreamEngine,
    StreamOptions,
    StreamResult,
)
from fanstream.errors import ClosedError, NameInUseError
from fanstream.options import Limits
from fanstream.outgoing.stream import OutgoingStream
from fanstream.policies import Drop, Quorum
from fanstream.protocol.frames import CHUNK_HEADER_SIZE, FrameType
from fanstream.protocol.opener import OpenerLeg
from fanstream.streaming import UnfinishedStream
from fanstream.testing import Direction, FaultyNetwork, Frame, LinkControl, asyncio_backend, trio_backend
from tests.simulation.actors import Actors, Factory
from tests.simulation.disk import SLOWEST, Disks, Threads
from tests.simulation.scenario import (
    HUB,
    SERVER,
    Absence,
    Claim,
    ClockJump,
    Fault,
    FullDisk,
    Scenario,
    StreamScript,
    scenario,
)  # fmt: skip
from tests.simulation.shapes import run_stream
from tests.simulation.verdict import Course, Verdict

ADDRESS: Final = f"memory://{HUB}"
FINALIZE: Final = 2.0
ABORT: Final = 2.0
SHUTDOWN: Final = 30.0
SILENCE: Final = 15.0
HELLO: Final = 10.0
QUIET: Final = 200.0
"""Seconds after the last stream's end by which nothing may be left: stalled links, silence, finalize, all together."""

_EPSILON: Final = 0.001
_LINGER: Final = 40.0  # seconds after which all that a stalled link has delayed has happened; they cost heartbeats
_SOON: Final = 5.0
_IN_USE: Final = (0, 1, 4, 5, 8, 12)  # bytes of a header: of length, type, flags, alias and number
_BEGINNING: Final = 96  # bytes of a frame: its header, and what control frames and envelopes say


class _Objections(logging.Handler):
    """What the package's own log says of a run: of a defect, and of who breaks the rules where nobody garbles."""

    def __init__(self, objections: list[str], *, garbled: bool) -> None:
        super().__init__(logging.WARNING)
        self._objections = objections
        self._garbled = garbled

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "defect" in message or ("protocol" in message and not self._garbled):
            cause = f": {record.exc_info[1]!r}" if record.exc_info else ""
            self._objections.append(f"the log says: {message}{cause}")


class World:
    """One scenario at work.

    Args:
        plan: what is to happen.
        disks: where journals are kept.
        objections: where what must not happen is written.
    """

    def __init__(self, plan: Scenario, disks: Disks, objections: list[str]) -> None:
        self.plan = plan
        self.disks = disks
        self.objections = objections
        self.engines: dict[str, StreamEngine] = {}
        self.actors = [Actors(number, script, objections) for number, script in enumerate(plan.streams)]
        self.network = FaultyNetwork(self.new_link)
        self.course = Course(plan)
        self.dead: set[str] = set()  # names of engines that have crashed and not begun anew
        self.crashed: set[StreamEngine] = set()  # with their journals
        self.births = anyio.Event()  # set, and made anew, as an engine begins
        self.over = anyio.Event()
        self.began = anyio.current_time()
        self.wall_is_ahead = 0.0  # seconds by which wall clocks were set forward, or back
        self.settings = EngineSettings(
            limits=Limits(**dict(plan.limits)),
            registration_grace=plan.registration_grace,
            idle_timeout=plan.idle_timeout,
            finalize_timeout=FINALIZE,
            abort_timeout=ABORT,
            shutdown_timeout=SHUTDOWN,
            silence=SILENCE,
            retry_max=1.0,
        )

    def new_link(self, link: LinkControl) -> None:
        ends = (link.dialler, link.address.rpartition("/")[2])
        for name, delay in zip(self.plan.sites, self.plan.delays, strict=True):
            if name in ends:
                link.up.delay = link.down.delay = delay
        if self.dead & {self.name_of(end) for end in ends}:
            link.cut()

    @property
    def listener(self) -> str | None:
        """The name of the engine that the others dial in to."""
        return {"hub": SERVER, "apart": HUB}.get(self.plan.topology)

    def name_of(self, end: str) -> str:
        """The name of the engine at one end of a link, which may be told by its address."""
        return self.listener or end if end == HUB else end

    def links_of(self, name: str) -> list[LinkControl]:
        """The links that lead from or to an engine now."""
        found = []
        for link in self.network.links:
            ends = (link.dialler, self.name_of(link.address.rpartition("/")[2]))
            if link.alive and name in ends:
                found.append(link)
        return found

    async def until(self, moment: float) -> None:
        await anyio.sleep(max(0.0, self.began + moment - anyio.current_time()))

    # -- engines --

    async def live(self, name: str) -> None:
        """Run an engine, and another of the same name after each of its absences."""
        absences = sorted((one for one in self.plan.absences if one.site == name), key=lambda one: one.at)
        for absence in (*absences, None):
            with anyio.CancelScope() as life:
                async with StreamEngine(name, settings=self.settings_of(name), **self.place(name)) as engine:
                    self.engines[name] = engine
                    births, self.births = self.births, anyio.Event()
                    births.set()
                    async with anyio.create_task_group() as tg:
                        for actors in self.actors:
                            if name in actors.sites:
                                tg.start_soon(self.register, engine, actors, name)
                        await self.stay(absence)
                        tg.cancel_scope.cancel()
                    del self.engines[name]
                    leaving = anyio.current_time()
                    if absence is not None and absence.crash and not self.over.is_set():
                        self.dead.add(name)
                        self.crash(engine)
                        for link in self.links_of(name):
                            link.cut()
                        life.cancel()
            self.dead.discard(name)
            if anyio.current_time() - leaving > SHUTDOWN + _EPSILON:
                self.objections.append(f"{name} took {anyio.current_time() - leaving} s to end")
            if self.over.is_set():
                return
            if absence is not None:
                await anyio.sleep(absence.seconds)

    def settings_of(self, name: str) -> EngineSettings:
        if name not in self.plan.journals:
            return self.settings
        return self.settings.model_copy(update={"journal": self.disks.path(name)})

    def crash(self, engine: StreamEngine) -> None:
        """Have what is on an engine's disk be all that its next life knows; what this one still does is never seen."""
        name = engine.name
        if name not in self.plan.journals:
            return
        self.disks.crash(name)
        self.crashed.add(engine)
        for actors in self.actors:
            for book in actors.books.get(name, ()):
                book.dead = True
            if actors.opener is engine:
                actors.producer.dead = True

    async def alive(self, name: str) -> StreamEngine:
        """Return an engine once it is there."""
        while True:
            engine = self.engines.get(name)
            if engine is not None and engine not in self.crashed:
                return engine
            await self.births.wait()

    def place(self, name: str) -> dict[str, Any]:
        """Where an engine listens, or whom it dials."""
        if self.listener is None:
            return {}
        return {"listen" if name == self.listener else "connect": ADDRESS}

    async def stay(self, absence: Absence | None) -> None:
        if absence is None:
            await self.over.wait()
            return
        with anyio.move_on_after(max(0.0, self.began + absence.at - anyio.current_time())):
            await self.over.wait()
        self.course.faulted = True

    async def claim(self, claim: Claim) -> None:
        """Run another engine of a site's name: it is turned away for as long as the site is there."""
        listener = self.listener
        assert listener is not None
        await self.until(claim.at)
        turned_away = False
        if self.plan.faults or self.plan.absences:
            self.course.usurped = True  # it may be let in for a moment, and be cut off before it knows
        async with StreamEngine(claim.site, settings=self.settings, connect=ADDRESS) as other:
            with anyio.move_on_after(claim.seconds):
                try:
                    await other.wait_for_sites([listener])
                    self.course.usurped = self.course.faulted = True
                except NameInUseError:
                    turned_away = True
                await anyio.sleep_forever()
        if not (turned_away or self.plan.faults or self.plan.absences):
            self.objections.append(f"{claim.site} was there, and another engine of that name was not turned away")

    async def register(self, engine: StreamEngine, actors: Actors, site: str) -> None:
        moment = actors.sites[site].registered
        if moment is None:
            return
        await self.until(moment)
        factory = Factory(actors, site)
        engine.register_stream_processing("models", f"stream-{actors.number}", factory, stream_done_cb=factory.done)

    async def harm(self, fault: Fault) -> None:
        await self.until(fault.at)
        if fault.kind == "flap":
            for _ in range(fault.count):
                await self.break_one(dataclasses.replace(fault, kind="cut"))
                await anyio.sleep(0.07)
        else:
            await self.break_one(fault)

    async def break_one(self, fault: Fault) -> None:
        """Do something to the newest link that leads from or to a site now."""
        links = self.links_of(fault.site)
        if not links:
            return
        self.course.faulted = True
        link = links[-1]
        if fault.kind == "cut":
            link.cut()
        elif fault.kind == "cut after":
            link.up.cut_after(fault.count)
        elif fault.kind == "slow":
            link.down.rate = link.up.rate = 10_000.0 + fault.count
        elif fault.kind == "flip":
            self.garble(link.up if fault.count % 2 else link.down, fault.count // 2)
        elif fault.kind == "one way":
            direction = link.up if fault.count else link.down
            direction.stall()
            if fault.seconds < math.inf:
                await anyio.sleep(fault.seconds)
                direction.resume()
        else:
            link.stall()
            await anyio.sleep(fault.seconds)
            link.resume()

    def garble(self, direction: Direction, draw: int) -> None:
        """Flip a bit near the beginning of one of the next frames; which, is drawn."""
        self.course.garbled = True
        for actors in self.actors:
            actors.garbled = True
        where, passing = divmod(draw, 4)

        def flip(frame: Frame) -> list[Frame]:
            nonlocal passing
            passing -= frame.kind != FrameType.HELLO
            return [_Garbled(*frame).with_flipped(where) if passing == -1 else frame]

        direction.rewrite = flip

    async def fill(self, full: FullDisk) -> None:
        """Let an engine's disk be full for a while."""
        await self.until(full.at)
        self.course.full.add(full.site)
        self.disks.full.add(full.site)
        await anyio.sleep(full.seconds)
        self.disks.full.discard(full.site)

    async def jump(self, jump: ClockJump) -> None:
        """Set all wall clocks."""
        await self.until(jump.at)
        self.wall_is_ahead += jump.seconds

    # -- streams --

    async def stream(self, actors: Actors) -> None:
        """Run a stream; where it is durable, in life after life of its opener."""
        script = actors.script
        await self.until(script.start)
        if not script.durable:
            if (opener := self.engines.get(script.opener)) is not None:
                await self.live_stream(actors, opener)
            return
        resume: str | None = None
        while not await self.live_stream(actors, await self.alive(script.opener), resume):
            if script.forsaken:
                actors.stopped = True
                return
            left = self.left_of(actors, await self.alive(script.opener))
            if left is None and actors.begun:
                return
            actors.produce_from(0 if left is None else left.first)
            resume = None if left is None else left.stream_id

    def left_of(self, actors: Actors, engine: StreamEngine) -> UnfinishedStream | None:
        """Return what an earlier life has left of a stream; None where it had ended, or had not begun."""
        topic = f"stream-{actors.number}"
        left = [one for one in engine.unfinished_streams() if one.topic == topic]
        if not left:
            self.check_ended(actors)
            return None
        (unfinished,) = left
        before = actors.producer
        if not before.first <= unfinished.first <= actors.judged:
            actors.object(
                f"{unfinished.first} objects are settled, {before.first} were before, and {actors.judged} were judged"
            )
        return unfinished

    def check_ended(self, actors: Actors) -> None:
        """Only what nobody was to take up again may be missing."""
        ended = actors.said_end or actors.producer.raised or actors.script.stop
        under_way = [
            name
            for name, books in actors.books.items()
            if any(book.log and "finalize" not in book.log and not book.dead for book in books)
        ]
        if under_way and not ended:
            actors.object(f"the next life of {actors.script.opener} knows nothing of it; it runs at {under_way}")

    async def live_stream(self, actors: Actors, engine: StreamEngine, resume: str | None = None) -> bool:
        """Run a stream for as long as its opener lives; return whether the application has seen its end."""
        script = actors.script
        actors.opener = engine
        if self.plan.calm:
            await engine.wait_for_sites(script.targets)
        gather: Any = script.gather
        options = StreamOptions(
            window=script.window,
            gather=Quorum(gather, patience=script.patience) if isinstance(gather, int) else gather,
            straggler=Drop(script.drop) if script.drop else "wait",
            max_lag=script.max_lag,
            stall_timeout=script.stall_timeout,
            end_timeout=script.end_timeout,
            connect_grace=script.connect_grace,
            resume_window=script.resume_window,
            progress_timeout=script.progress_timeout,
            copy_objects=script.copy,
            durable=script.durable,
        )
        signal = engine.run_abort_signal.child()
        scope = anyio.CancelScope()
        began = anyio.current_time()
        bound = longest(script)
        result: StreamResult | None = None
        error: Exception | None = None
        closed = False
        async with anyio.create_task_group() as tg:
            tg.start_soon(self.stop, script, signal, scope)
            with anyio.move_on_after(bound) as in_time, scope:
                try:
                    fl_ctx = engine.new_context("job", abort_signal=signal)
                    result = await run_stream(actors, engine, fl_ctx, options, resume)
                except ClosedError as exc:
                    # An open stream that is aborted before it is open has no block to return from.
                    if script.shape != "open" or not (
                        signal.triggered or self.engines.get(script.opener) is not engine
                    ):
                        error = exc
                    closed = True
                except Exception as exc:  # noqa: BLE001 - judged below
                    error = exc
            tg.cancel_scope.cancel()
        if engine in self.crashed and script.durable:
            return False
        now = anyio.current_time()
        if in_time.cancelled_caught:
            actors.object(f"stream_objects took longer than {bound} s")
        stop_at = max(began, self.began + script.stop_at)
        if script.stop and now > stop_at + ABORT + _EPSILON + (10 * SLOWEST if script.durable else 0.0):
            actors.object(f"stream_objects took {now - stop_at} s to end after {script.stop}")
        nothing = result is None and error is None
        if scope.cancelled_caught != nothing and not (in_time.cancelled_caught or closed):
            actors.object(f"cancelled: {scope.cancelled_caught}, but the result is {result}, the error {error!r}")
        self.check_forgotten(engine, actors)
        left = self.engines.get(script.opener) is not engine
        Verdict(self.course, actors).opener(result, error, stopped=signal.triggered or left)
        return True

    def check_forgotten(self, engine: StreamEngine, actors: Actors) -> None:
        """No leg and no deadline is left at the opener, at the very moment when the stream has ended."""
        owners = [leg.owner for link in engine._links for leg in link.core.legs.values() if isinstance(leg, OpenerLeg)]
        for _, _, deadline in engine.deadlines._heap:
            callback = getattr(deadline.callback, "func", deadline.callback)
            owners.append(getattr(callback, "__self__", None))
        for owner in owners:
            if isinstance(owner, OutgoingStream) and owner not in engine._outgoing:
                actors.object("a leg or a deadline is left at the opener")

    async def stop(self, script: StreamScript, signal: AbortSignal, scope: anyio.CancelScope) -> None:
        if script.stop:
            await self.until(script.stop_at)
            if script.stop == "signal":
                signal.trigger("enough")
            else:
                scope.cancel()

    # -- the whole --

    def set_wall_clock(self) -> None:
        """Have the time of day be this run's."""
        native: Any = current_token().native_token
        if isinstance(native, asyncio.AbstractEventLoop):
            clock: Any = native
        else:
            import trio

            clock = trio.lowlevel.current_clock()
        time = anyio.current_time
        clock.wall = lambda: time() + self.wall_is_ahead

    async def run(self) -> None:
        plan = self.plan
        self.set_wall_clock()
        with self.network:
            async with anyio.create_task_group() as tg:
                for name in plan.engines:
                    tg.start_soon(self.live, name)
                async with anyio.create_task_group() as work:
                    for actors in self.actors:
                        work.start_soon(self.stream, actors)
                    for fault in plan.faults:
                        work.start_soon(self.harm, fault)
                    for claim in plan.claims:
                        work.start_soon(self.claim, claim)
                    for full in plan.full_disks:
                        work.start_soon(self.fill, full)
                    for jump in plan.jumps:
                        work.start_soon(self.jump, jump)
                    ends = [one.at + one.seconds for one in plan.absences]
                    ends += [one.at + one.seconds for one in plan.claims]
                    last = max(ends, default=0.0)
                    work.start_soon(self.until, last + (_LINGER if plan.seed % 8 == 0 else _SOON))
                if self.course.garbled:
                    self.heal()
                if self.course.garbled or any(fault.seconds == math.inf for fault in plan.faults):
                    await anyio.sleep(SILENCE + _SOON)  # until the last of such links is noticed, and there is another
                await self.settle()
                for actors in self.actors:
                    Verdict(self.course, actors).sites()
                await self.once_more()
                await self.settle()
                self.over.set()
        if isinstance(native := current_token().native_token, asyncio.AbstractEventLoop):
            left = [task for task in asyncio.all_tasks(native) if task is not asyncio.current_task()]
            if left:
                self.objections.append(f"tasks are left: {left}")

    def leftovers(self) -> list[str]:
        found: list[str] = []
        for engine in self.engines.values():
            found += [f"{engine.name}: outgoing {stream.stream_id}" for stream in engine._outgoing]
            found += [f"{engine.name}: incoming {stream.stream_id}" for stream in engine._incoming]
            found += [f"{engine.name}: legs {link.core.legs}" for link in engine._links if link.core.legs]
            if engine._links._resuming:
                found.append(f"{engine.name}: {len(engine._links._resuming)} streams are suspended or remembered")
            if len(engine.deadlines) > len(engine._links):
                found.append(f"{engine.name}: {len(engine.deadlines)} deadlines, {len(engine._links)} links")
            shared, greeting = engine._links._shared, engine._links._half_open
            if shared.budget.used or shared.budget.waiting or shared.relays.used or greeting:
                found.append(
                    f"{engine.name}: {shared.budget.used} bytes reserved, {shared.budget.waiting} waiting, "
                    f"{shared.relays.used} bytes for relays, {greeting} links that have not greeted"
                )
            if engine.codec.memory.held:
                found.append(f"{engine.name}: memory is held")
            if engine._journal is not None:
                kept = "SELECT (SELECT count(*) FROM streams), (SELECT count(*) FROM outgoing)"
                rows = engine._journal._store.execute(kept).fetchone()
                if rows != (0, 0):
                    found.append(f"{engine.name}: {rows} streams of others and of its own are in its journal")
        return found

    def heal(self) -> None:
        """Cut links on which a bit was flipped: what they were told wrongly holds for as long as they do."""
        for link in self.network.links:
            if link.alive and (link.up.rewrite or link.down.rewrite):
                link.cut()

    async def settle(self) -> None:
        """Wait until no stream has left anything behind."""
        for _ in range(int(QUIET)):
            if not self.leftovers():
                return
            await anyio.sleep(1)
        self.objections += [f"left behind: {what}" for what in self.leftovers()]

    async def once_more(self) -> None:
        """When all faults are over, a plain stream to all sites ends well."""
        if set(self.engines) != set(self.plan.engines):
            self.objections.append(f"only {sorted(self.engines)} are running at the end")
            return
        for link in self.network.links:
            for direction in (link.up, link.down):
                direction.rate = math.inf
                direction.cut_after(1 << 60)
        for name in self.plan.sites:
            self.engines[name].consumer("models", "once-more")(_consume)

        async def numbers() -> Any:
            yield Shareable({"n": 0})
            yield Shareable({"n": bytes(100_000)})

        server = self.engines[SERVER]
        with anyio.move_on_after(60):
            await server.wait_for_sites(self.plan.sites)
            for name in self.plan.sites:
                await self.engines[name].wait_for_sites([SERVER])
            result = await server.stream_objects(
                "models", "once-more", {}, list(self.plan.sites), numbers(), server.new_context()
            )
            if not result.complete:
                self.objections.append(f"once more: {result}")
            return
        self.objections.append("once more: it takes longer than 60 s")


class _Garbled(Frame):
    """A frame that is packed with one bit changed, as often as not in a field of the header that is in use."""

    draw: int

    def with_flipped(self, draw: int) -> Self:
        self.draw = draw
        return self

    def pack(self) -> bytes:
        data = bytearray(super().pack())
        draw, bit = divmod(self.draw, 8)
        draw, anywhere = divmod(draw, 2)
        beginning = CHUNK_HEADER_SIZE if self.kind == FrameType.CHUNK else _BEGINNING  # in data nobody would notice
        position = draw % min(len(data), beginning) if anywhere else _IN_USE[draw % len(_IN_USE)]
        data[position] ^= 1 << bit
        return bytes(data)


async def _consume(shareable: Shareable, stream_ctx: Any, fl_ctx: Any) -> None:
    """Answer OK."""


def longest(script: StreamScript) -> float:
    """How long ``stream_objects`` may take: the sum of all that it may wait for, in seconds."""
    number = len(script.sizes)
    opening = script.connect_grace + HELLO * len(script.targets) + 60.0
    holding = script.stall_timeout * number
    keeping = (number + 4) * 8 * SLOWEST if script.durable else 0.0
    making = sum(script.makes) + sum(script.judges) + sum(script.timeouts)
    return opening + making + keeping + holding + script.end_timeout + ABORT


def run(seed: int, backend: str) -> list[str]:
    """Run one seed's scenario; see ``play``."""
    return play(scenario(seed), backend)


def play(plan: Scenario, backend: str) -> list[str]:
    """Run one scenario on virtual time.

    Args:
        plan: the scenario; its seed is that of all that is random in the run.
        backend: ``asyncio`` or ``trio``.

    Returns:
        What happened and must not; empty when all is well.
    """
    seed = plan.seed
    objections: list[str] = []
    handler = _Objections(objections, garbled=any(fault.kind == "flip" for fault in plan.faults))
    log = logging.getLogger("fanstream")
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.propagate = False
    name, options = asyncio_backend() if backend == "asyncio" else trio_backend()
    random.seed(seed)
    if backend == "trio":
        import trio._core._run

        trio._core._run._r.seed(seed)

    disks = Disks()

    async def main() -> None:
        with anyio.fail_after(5000):
            await World(plan, disks, objections).run()

    try:
        with Threads(seed).instead(), disks.instead():
            anyio.run(main, backend=name, backend_options=options)
    except BaseExceptionGroup as group:
        objections.append(f"raised: {[repr(each) for each in _leaves(group)]}")
    except Exception as exc:  # noqa: BLE001 - told with the rest
        objections.append(f"raised: {exc!r}")
    finally:
        disks.close()
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
    return objections


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    return [
        leaf
        for each in group.exceptions
        for leaf in (_leaves(each) if isinstance(each, BaseExceptionGroup) else [each])
    ]


def story(seed: int, backend: str, objections: list[str]) -> str:
    """Say what went wrong, in which scenario, and how to run it again."""
    told = "\n".join(f"  - {objection}" for objection in objections)
    again = f"python -m tests.simulation --seed {seed} --backend {backend}"
    return f"seed {seed} on {backend}:\n{told}\n{scenario(seed)!r}\nagain: {again}"
