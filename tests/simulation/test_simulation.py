"""Whole engines on virtual time, a few hundred scenarios of them; ``nox -s simulate`` runs thousands."""

from __future__ import annotations

from typing import Final

import pytest

from tests.simulation.scenario import scenario
from tests.simulation.world import run, story

BLOCK: Final = 25
ASYNCIO: Final = range(200)
TRIO: Final = range(200, 300)

KNOWN: Final = {
    seed: reason
    for reason, seeds in {
        "an object that is complete when it is sent wakes nobody to judge it": (4, 15, 172, 199, 225, 237, 295),
        "room is made before the value is known: produce is called once more": (23, 75, 193, 261),
    }.items()
    for seed in seeds
}
"""Seeds whose scenarios meet a defect that is there: test_found.py has each of those alone."""


def check(seeds: range, backend: str) -> None:
    stories = []
    for seed in seeds:
        if seed not in KNOWN:
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


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.xfail(strict=True, reason=KNOWN[seed])) for seed in KNOWN]
)
def test_scenarios_that_meet_what_is_known(seed: int) -> None:
    backend = "asyncio" if seed in ASYNCIO else "trio"
    objections = run(seed, backend)
    assert not objections, story(seed, backend, objections)


def test_a_seed_is_one_scenario() -> None:
    assert repr(scenario(7)) == repr(scenario(7)) != repr(scenario(8))
