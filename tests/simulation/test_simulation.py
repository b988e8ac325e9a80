"""Whole engines on virtual time: 700 scenarios on each Python, other ones on each; ``nox -s simulate`` runs more."""

from __future__ import annotations

import sys
from typing import Final

import pytest

from tests.simulation.scenario import scenario
from tests.simulation.world import run, story

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
