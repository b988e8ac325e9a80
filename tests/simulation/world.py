"""One simulated run: engines, links, streams and faults on virtual time, and what has to hold of all of them."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import random
from collections.abc import Callable
from typing import Any, Final

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
from fanstream.options import Limits
from fanstream.outgoing import OutgoingStream
from fanstream.policies import Drop, Quorum
from fanstream.protocol.opener import OpenerLeg
from fanstream.testing import FaultyNetwork, LinkControl, asyncio_backend, trio_backend
from tests.simulation.actors import ENGINES_OWN, Actors, Factory, ScriptedError
from tests.simulation.scenario import SERVER, Absence, Fault, Scenario, StreamScript, scenario

FINALIZE: Final = 2.0
ABORT: Final = 2.0
SHUTDOWN: Final = 30.0
SILENCE: Final = 15.0
HELLO: Final = 10.0
QUIET: Final = 200.0
"""Seconds after the last stream's end by which nothing may be left: stalled links, silence, finalize, all together."""

_EPSILON: Final = 0.001


class _Objections(logging.Handler):
    """What the package's own log says of a run in which everybody is honest."""

    def __init__(self, objections: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._objections = objections

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "defect" in message or "protocol" in message:
            cause = f": {record.exc_info[1]!r}" if record.exc_info else ""
            self._objections.append(f"the log says: {message}{cause}")


class World:
    """One scenario at work.

    Args:
        plan: what is to happen.
        objections: where what must not happen is written.
    """

    def __init__(self, plan: Scenario, objections: list[str]) -> None:
        self.plan = plan
        self.objections = objections
        self.engines: dict[str, StreamEngine] = {}
        self.actors = [Actors(number, script, objections) for number, script in enumerate(plan.streams)]
        self.network = FaultyNetwork(self.new_link)
        self.faulted = False  # a link was harmed, or an engine has ended
        self.over = anyio.Event()
        self.began = anyio.current_time()
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

    async def until(self, moment: float) -> None:
        await anyio.sleep(max(0.0, self.began + moment - anyio.current_time()))

    # -- engines --

    async def live(self, name: str) -> None:
        """Run an engine, and another of the same name after each of its absences."""
        absences = sorted((one for one in self.plan.absences if one.site == name), key=lambda one: one.at)
        for absence in (*absences, None):
            kwargs: dict[str, Any] = {}
            if self.plan.topology == "hub":
                kwargs["listen" if name == SERVER else "connect"] = "memory://hub"
            async with StreamEngine(name, settings=self.settings, **kwargs) as engine:
                self.engines[name] = engine
                async with anyio.create_task_group() as tg:
                    for actors in self.actors:
                        if name in actors.sites:
                            tg.start_soon(self.register, engine, actors, name)
                    await self.stay(absence)
                    tg.cancel_scope.cancel()
                del self.engines[name]
                leaving = anyio.current_time()
            if anyio.current_time() - leaving > SHUTDOWN + _EPSILON:
                self.objections.append(f"{name} took {anyio.current_time() - leaving} s to end")
            if self.over.is_set():
                return
            if absence is not None:
                await anyio.sleep(absence.seconds)

    async def stay(self, absence: Absence | None) -> None:
        if absence is None:
            await self.over.wait()
            return
        with anyio.move_on_after(max(0.0, self.began + absence.at - anyio.current_time())):
            await self.over.wait()
        self.faulted = True

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
        links = [link for link in self.network.links if fault.site in (link.dialler, link.address.rpartition("/")[2])]
        links = [link for link in links if link.alive]
        if self.plan.topology == "hub" and fault.site == SERVER:
            links = [link for link in self.network.links if link.alive]
        if not links:
            return
        self.faulted = True
        link = links[-1]
        if fault.kind == "cut":
            link.cut()
        elif fault.kind == "cut after":
            link.up.cut_after(fault.count)
        elif fault.kind == "slow":
            link.down.rate = link.up.rate = 10_000.0 + fault.count
        else:
            link.stall()
            await anyio.sleep(fault.seconds)
            link.resume()

    # -- streams --

    async def stream(self, actors: Actors) -> None:
        script = actors.script
        await self.until(script.start)
        engine = self.engines.get(script.opener)
        if engine is None:
            return
        if self.plan.calm:
            await engine.wait_for_sites(script.targets)
        gather: Any = script.gather
        options = StreamOptions(
            window=script.window,
            gather=Quorum(gather) if isinstance(gather, int) else gather,
            straggler=Drop(script.drop) if script.drop else "wait",
            max_lag=script.max_lag,
            stall_timeout=script.stall_timeout,
            end_timeout=script.end_timeout,
            connect_grace=script.connect_grace,
            resume_window=script.resume_window,
        )
        signal = engine.run_abort_signal.child()
        scope = anyio.CancelScope()
        began = anyio.current_time()
        bound = longest(script)
        result: StreamResult | None = None
        error: Exception | None = None
        async with anyio.create_task_group() as tg:
            tg.start_soon(self.stop, script, signal, scope)
            with anyio.move_on_after(bound) as in_time, scope:
                try:
                    result = await engine.stream_objects(
                        "models", f"stream-{actors.number}", {"number": actors.number}, list(script.targets),
                        actors.producer, engine.new_context("job", abort_signal=signal), script.optional,
                        options=options,
                    )  # fmt: skip
                except Exception as exc:  # noqa: BLE001 - judged below
                    error = exc
            tg.cancel_scope.cancel()
        now = anyio.current_time()
        if in_time.cancelled_caught:
            actors.object(f"stream_objects took longer than {bound} s")
        stop_at = max(began, self.began + script.stop_at)
        if script.stop and now > stop_at + ABORT + _EPSILON:
            actors.object(f"stream_objects took {now - stop_at} s to end after {script.stop}")
        if scope.cancelled_caught != (result is None and error is None) and not in_time.cancelled_caught:
            actors.object(f"cancelled: {scope.cancelled_caught}, but the result is {result}, the error {error!r}")
        self.check_forgotten(engine, actors)
        left = self.engines.get(script.opener) is not engine
        Verdict(self, actors).opener(result, error, stopped=signal.triggered or left)

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

    async def run(self) -> None:
        plan = self.plan
        with self.network:
            async with anyio.create_task_group() as tg:
                for name in (SERVER, *plan.sites):
                    tg.start_soon(self.live, name)
                async with anyio.create_task_group() as work:
                    for actors in self.actors:
                        work.start_soon(self.stream, actors)
                    for fault in plan.faults:
                        work.start_soon(self.harm, fault)
                    work.start_soon(self.until, max((one.at for one in plan.absences), default=0.0) + 40.0)
                await self.settle()
                for actors in self.actors:
                    Verdict(self, actors).sites()
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
        return found

    async def settle(self) -> None:
        """Wait until no stream has left anything behind."""
        for _ in range(int(QUIET)):
            if not self.leftovers():
                return
            await anyio.sleep(1)
        self.objections += [f"left behind: {what}" for what in self.leftovers()]

    async def once_more(self) -> None:
        """When all faults are over, a plain stream to all sites ends well."""
        if set(self.engines) != {SERVER, *self.plan.sites}:
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


async def _consume(shareable: Shareable, stream_ctx: Any, fl_ctx: Any) -> None:
    """Answer OK."""


def longest(script: StreamScript) -> float:
    """How long ``stream_objects`` may take: the sum of all that it may wait for, in seconds."""
    number = len(script.sizes)
    opening = script.connect_grace + HELLO * len(script.targets) + 60.0
    holding = script.stall_timeout * number
    return (
        opening + sum(script.makes) + sum(script.judges) + sum(script.timeouts) + holding + script.end_timeout + ABORT
    )


class Verdict:
    """What the contract says of one stream, against what happened."""

    def __init__(self, world: World, actors: Actors) -> None:
        self.world = world
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
        if error is not None:
            self.claim(producer.raised, f"{error!r} reached the caller")
            if self.script.ending.startswith("raise"):
                self.claim(isinstance(error, ScriptedError), f"{error!r} reached the caller, not what was raised")
            return
        if result is None:
            return
        self.claim(not producer.raised or stopped, f"the producer raised, and the result is {result}")
        for name, site in result.sites.items():
            account = sum(site.outcomes.values())
            self.claim(account == result.objects, f"{account} outcomes of {result.objects} at {name}")
            self.claim(0 not in site.outcomes.values(), f"an empty outcome at {name}")
        self.claim(set(result.sites) == set(self.script.targets), "other sites than the targets")
        if result.rc == "TASK_ABORTED" and (stopped or not self.world.faulted):
            self.claim(stopped, f"aborted by nobody: {result}")
            self.claim((result.value, result.complete) == (None, False), f"aborted, yet {result}")
            return
        self.claim(not producer.busy, f"{producer.busy} runs after the end")
        self.claim(result.objects == producer.made, f"{result.objects} objects, {producer.made} were produced")
        self.claim(result.value == producer.value, f"value {result.value}, process_replies said {producer.value}")
        if producer.value is None:
            self.claim(len(producer.seen) == producer.made, f"{len(producer.seen)} of {producer.made} were judged")
            self.code(result)
        else:
            self.claim(result.rc == ("OK" if producer.value else "ERROR"), f"{result.rc} for {producer.value}")
        self.pairs(result)

    def code(self, result: StreamResult) -> None:
        """Find ``rc`` as the contract does."""
        blamed: set[str] = set()
        for replies in self.producer.seen:
            failures = [code for code in replies.values() if code in ENGINES_OWN]
            given = len(replies) - len(failures)
            gather = self.script.gather
            needed = len(replies) if gather == "all" else 1 if gather == "first" else gather
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
        if self.world.plan.calm and self.producer.value is None:
            self.claim(result.complete and result.rc == "OK", f"all was calm, yet {result}")
        faulted = self.world.faulted
        for name, site in result.sites.items():
            if name not in self.actors.books:
                self.claim(set(site.outcomes) <= {"unreachable"}, f"{name} has {site}")
                continue
            book, script = self.actors.books[name], self.actors.sites[name]
            replied = site.outcomes.get("replied", 0)
            failing = script.fails in ("raise in consume", "nonsense", "raise in get_consumer")
            self.claim(replied <= book.answered + failing, f"{replied} replies counted, {name} gave {book.answered}")
            shown = sum(codes.get(name, "TIMEOUT") not in ENGINES_OWN for codes in self.producer.seen)
            self.claim(shown <= replied, f"{shown} replies of {name} were judged, {replied} counted")
            if not faulted or self.goes_on:
                self.claim("lost" not in site.outcomes, f"{name} was lost, but no link was: {site}")
            if script.registered == 0.0 and not faulted:
                self.claim("refused" not in site.outcomes, f"{name} refused what is registered: {site}")
            if site.rc == "OK" and result.complete:
                self.claim(not book.log or book.rc == "OK", f"{name} ended with {book.rc}, told OK")
                wanted = script.end_result if book.log else None
                self.claim(site.end_result == wanted, f"{name} gave {wanted}, told {site.end_result}")

    @property
    def goes_on(self) -> bool:
        """Whether every link that breaks is there again long before the stream's window is over."""
        plan = self.world.plan
        return self.script.resume_window == 60 and not plan.absences and all(one.kind != "slow" for one in plan.faults)

    def sites(self) -> None:
        """Judge what happened at the sites, once nothing runs any more."""
        for name, book in self.actors.books.items():
            self.site(name, book.log, book.rc)
            self.claim(len(book.contexts) <= 1, f"{name} saw {len(book.contexts)} contexts")
            self.claim(not book.running, f"consume still runs at {name}")

    def site(self, name: str, log: list[str], rc: str | None) -> None:
        script, book = self.actors.sites[name], self.actors.books[name]
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
        self.claim(book.consumed == list(range(len(book.consumed))), f"{name} consumed {book.consumed}")
        if rc is None:
            return
        result = self.actors.result
        idle = self.world.plan.idle_timeout is not None
        dropped = result is not None and result.sites[name].rc == "TIMEOUT"
        stopped = self.actors.stopped or dropped or self.world.faulted
        left = script.fails == "leave" and script.at < len(book.consumed)
        failed = script.fails in ("raise in consume", "nonsense") and script.at < len(book.consumed)
        ended = self.producer.exhausted or self.producer.value is not None or result is not None
        possible: dict[str, Callable[[], object]] = {
            "OK": lambda: ended or (left and script.leaves_with == "OK"),
            "TASK_ABORTED": lambda: stopped,
            "COMMUNICATION_ERROR": lambda: self.world.faulted and not self.goes_on,
            "TIMEOUT": lambda: idle,
            "EXECUTION_EXCEPTION": lambda: failed,
            "EMPTY_RESULT": lambda: left and script.leaves_with == "EMPTY_RESULT",
        }
        self.claim(possible.get(rc, bool)(), f"{name} ended with {rc}")
        if rc == "OK" and result is not None and not left and result.value is None and not stopped:
            self.claim(len(book.consumed) == result.objects, f"{name} ended well after {len(book.consumed)} objects")


def run(seed: int, backend: str) -> list[str]:
    """Run one seed's scenario on virtual time.

    Args:
        seed: of the scenario, and of all that is random in the run.
        backend: ``asyncio`` or ``trio``.

    Returns:
        What happened and must not; empty when all is well.
    """
    objections: list[str] = []
    handler = _Objections(objections)
    log = logging.getLogger("fanstream")
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.propagate = False
    name, options = asyncio_backend() if backend == "asyncio" else trio_backend()
    random.seed(seed)
    if backend == "trio":
        import trio._core._run

        trio._core._run._r.seed(seed)

    async def main() -> None:
        with anyio.fail_after(5000):
            await World(scenario(seed), objections).run()

    try:
        anyio.run(main, backend=name, backend_options=options)
    except BaseExceptionGroup as group:
        objections.append(f"raised: {[repr(each) for each in _leaves(group)]}")
    except Exception as exc:  # noqa: BLE001 - told with the rest
        objections.append(f"raised: {exc!r}")
    finally:
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
