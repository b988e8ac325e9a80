"""Whole engines on virtual time: 700 scenarios on each Python, other ones on each; ``nox -s simulate`` runs more."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

import pytest

from fanstream.journal import Record
from fanstream.outgoing.ledger import Entry
from tests.simulation.scenario import SERVER, TICK, Absence, Scenario, SiteScript, StreamScript, scenario
from tests.simulation.world import play, run, story

BLOCK: Final = 25
FIRST: Final = 700 * (sys.version_info.minor - 11)  # so that the three supported Pythons run 2,100 together
ASYNCIO: Final = range(FIRST, FIRST + 550)
TRIO: Final = range(FIRST + 550, FIRST + 700)


def check(seeds: range, backend: str) -> None:
    stories = []
    for seed in seeds:
        objections = run(seed, backend)
        if objections:
            stories.append(story(seed, backend, objections))
    assert not stories, "\n\n".join(stories)


@pytest.mark.parametrize("first", ASYNCIO[::BLOCK])
def test_scenarios(first: int) -> None:
    check(range(first, first + BLOCK), "asyncio")


@pytest.mark.parametrize("first", TRIO[::BLOCK])
def test_scenarios_on_trio(first: int) -> None:
    check(range(first, first + BLOCK), "trio")


def test_a_seed_is_one_scenario() -> None:
    assert repr(scenario(7)) == repr(scenario(7)) != repr(scenario(8))


# --- planted: what a crash at the wrong moment shows ---


_START: Final = 0.3  # by then both engines know each other


def crash(name: str, moment: float) -> Scenario:
    """A durable stream of five objects, and a crash of its opener or of its site; both have journals."""
    site = SiteScript(delays=(0.0,) * 5, reply_sizes=(100,) * 5)
    stream = StreamScript(
        targets=("site-1",), start=_START, window=2, sizes=(100,) * 5, timeouts=(30.0,) * 5, makes=(0.0,) * 6,
        judges=(0.0,) * 5, sites=(("site-1", site),), durable=True,
    )  # fmt: skip
    return Scenario(
        seed=1, topology="hub", calm=False, sites=("site-1",), delays=(0.0,), limits=(), registration_grace=1.0,
        idle_timeout=None, streams=(stream,), faults=(), absences=(Absence(name, moment, 0.05, crash=True),),
        claims=(), journals=(SERVER, "site-1"),
    )  # fmt: skip


def objections(name: str) -> list[str]:
    """Let an engine crash at each of many moments."""
    return [what for tick in range(40) for what in play(crash(name, _START + tick * TICK), "asyncio")]


async def _acknowledge_at_once(record: Record) -> None:
    """Stand in for waiting until all is on the disk; sites alone."""
    if isinstance(record, Entry):
        while record._pending:
            await record._wakeup.wait()


def _settle_at_once(entry: Entry, step: Callable[[Any], object], after: Callable[[], object] = lambda: None) -> None:
    """Stand in for asking for a step: say that it was made, ahead of the disk."""
    Record.ask(entry, step)
    entry._after.append(lambda: None)
    after()


@pytest.mark.parametrize("name", [SERVER, "site-1"])
def test_a_crash_at_each_moment_loses_nothing(name: str) -> None:
    assert not objections(name)


def test_a_site_that_answers_before_the_disk_has_it_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Record, "_settle", _acknowledge_at_once)
    assert any("site-1 was lost, but no link was" in what for what in objections("site-1"))


def test_an_opener_that_settles_before_the_disk_has_it_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Entry, "ask", _settle_at_once)
    assert any("site-1 was lost, but no link was" in what for what in objections(SERVER))
