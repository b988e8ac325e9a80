from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from .slope import MIB, Sample, growth, slope, verdict

HOUR = 3600


def samples(
    resident: Callable[[float], float], *, descriptors: Callable[[float], int] = lambda at: 10, seconds: int = HOUR
) -> list[Sample]:
    return [Sample(at, int(resident(at)), descriptors(at), 5) for at in range(0, seconds, 10)]


def test_the_slope_of_a_line() -> None:
    assert slope(samples(lambda at: 50 * MIB + at / HOUR * 3 * MIB)) == pytest.approx(3, abs=1e-3)
    assert slope(samples(lambda at: 50 * MIB)) == 0
    assert slope(samples(lambda at: 50 * MIB - at / HOUR * 2 * MIB)) == pytest.approx(-2, abs=1e-3)


def test_noise_is_no_slope() -> None:
    rng = random.Random(1)
    assert abs(slope(samples(lambda at: 50 * MIB + rng.uniform(-1, 1) * MIB))) < 0.5


@pytest.mark.parametrize("number", [0, 1])
def test_too_few_samples_have_none(number: int) -> None:
    assert slope(samples(lambda at: at * MIB)[:number]) == 0


def test_growth_overlooks_what_passes_and_sees_what_stays() -> None:
    assert growth([10, 30, 11, 10, 10, 25, 10, 12, 40]) == 0
    assert growth([10, 10, 10, 10, 11, 11, 11, 11, 11]) == 1
    assert growth([10, 11]) == 0


def test_memory_that_grows_fails_a_long_run_and_not_a_short_one() -> None:
    leaking = {"hub": samples(lambda at: 50 * MIB + at / HOUR * 1.5 * MIB)}
    _, objections = verdict(leaking, HOUR)
    assert objections == ["hub: memory grows by 1.50 MiB/h, limit 1.0"]
    short = {"hub": samples(lambda at: 50 * MIB + at / HOUR * 50 * MIB, seconds=600)}
    figures, objections = verdict(short, 600)
    assert objections == []
    assert figures["hub"]["slope_mib_per_h"] == pytest.approx(50, abs=0.1)


def test_the_warm_up_does_not_count() -> None:
    figures, objections = verdict({"hub": samples(lambda at: 50 * MIB + min(at, 700) * MIB)}, HOUR)
    assert objections == []
    assert figures["hub"]["slope_mib_per_h"] == 0


def test_descriptors_fail_a_run_of_any_length() -> None:
    leaking = samples(lambda at: 50 * MIB, descriptors=lambda at: 10 + int(at >= 400), seconds=600)
    assert verdict({"hub": leaking}, 600)[1] == ["hub: 1 descriptors more"]


def test_no_samples_are_no_success() -> None:
    assert verdict({"hub": []}, HOUR)[1] == ["hub: no samples"]
