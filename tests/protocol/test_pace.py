from __future__ import annotations

import math
from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanstream.options import MIB
from fanstream.protocol.gather import Flight, Gathering, Outcome, Standing
from fanstream.protocol.pace import Pace, Pacing
from fanstream.shareable import Shareable

IDLE = 8.0


class Stream:
    """A stream under a pacing of 8 s; ``moved`` holds what each site has been seen to take."""

    def __init__(self, sites: str = "a") -> None:
        self.gathering = Gathering(list(sites), "all", 8)
        self.moved: dict[str, Hashable] = dict.fromkeys(sites, 0)
        self.pacing = Pacing(self.gathering, IDLE, lambda name: self.moved[name])

    def send(self, size: int, now: float) -> Flight:
        flight = self.gathering.launch(size)
        flight.sent = now
        assert self.pacing.sent(flight) == now + IDLE / 4
        return flight

    def answer(self, name: str, now: float) -> None:
        flight = self.gathering.flights[self.gathering.sites[name].answered]
        self.gathering.reply(name, flight.seq, Shareable())
        self.pacing.answered(name, flight, now)

    def overdue(self, now: float) -> list[tuple[int, str]]:
        found, again = self.pacing.overdue(now)
        assert again > now
        return [(flight.seq, name) for flight, name, _ in found]

    def found_at(self, start: float, limit: float) -> float:
        """Look as often as one is told to, and return when anything is found."""
        now = start
        while now < limit:
            found, again = self.pacing.overdue(now)
            if found:
                return now
            now = again
        return math.inf


def test_the_pace_is_learnt_from_large_answers_and_the_last_few_count_most() -> None:
    pace = Pace()
    pace.answered(1000, 0.0, 5.0)
    assert (pace.known, pace.expected(MIB)) == (False, 0.0)
    pace.answered(10 * MIB, 5.0, 15.0)
    assert pace.expected(20 * MIB) == pytest.approx(20)
    for number in range(20):
        pace.answered(10 * MIB, 15.0 + 5 * number, 20.0 + 5 * number)
    assert pace.expected(20 * MIB) == pytest.approx(10, rel=0.02)


def test_an_object_that_waited_for_the_one_before_is_not_slow() -> None:
    pace = Pace()
    for number in range(8):  # all sent at once, answered every second
        pace.answered(MIB, 0.0, 1.0 + number)
    assert pace.expected(MIB) == pytest.approx(1)


@given(st.integers(64 * 1024 + 1, 2**40), st.floats(0.001, 1e5), st.integers(1, 10))
def test_a_steady_site_is_expected_to_take_what_it_took(size: int, seconds: float, objects: int) -> None:
    pace = Pace()
    for number in range(objects):
        pace.answered(size, number * seconds, (number + 1) * seconds)
    assert pace.expected(size) == pytest.approx(seconds, rel=1e-6)
    assert pace.expected(3 * size) == pytest.approx(3 * seconds, rel=1e-6)


def test_before_anything_was_answered_only_progress_counts() -> None:
    stream = Stream()
    stream.send(2000 * MIB, 0.0)
    assert stream.pacing.budget("a", MIB) == math.inf
    for second in range(1, 1000):
        stream.moved["a"] = second
        assert stream.overdue(second) == []
    assert 999 + IDLE <= stream.found_at(999, 2000) <= 999 + 1.25 * IDLE


@pytest.mark.parametrize("sent", [0.0, 100.0])
def test_a_site_that_never_moves_is_found_after_the_timeout(sent: float) -> None:
    stream = Stream("ab")
    stream.send(2000 * MIB, sent)
    assert stream.overdue(sent + 1) == []
    stream.answer("b", sent + 1)
    assert stream.overdue(sent + IDLE - 0.1) == []
    assert stream.overdue(sent + IDLE) == [(0, "a")]


def test_a_site_has_what_its_pace_makes_of_the_size_and_the_timeout_on_top() -> None:
    stream = Stream("ab")
    stream.send(100 * MIB, 0.0)
    stream.answer("a", 10.0)  # 10 MiB/s
    stream.answer("b", 100.0)  # 1 MiB/s
    assert stream.pacing.budget("a", 1000 * MIB) == pytest.approx(108)
    assert stream.pacing.budget("b", 1000 * MIB) == pytest.approx(1008)
    stream.send(1000 * MIB, 100.0)
    assert stream.pacing.budget("a", MIB) == pytest.approx(108.1)  # behind the one before
    assert stream.found_at(100.0, 3000) == pytest.approx(208)
    found, _ = stream.pacing.overdue(208.1)
    assert [(name, reason) for _, name, reason in found] == [
        (
            "a",
            "no progress for 108 s, the progress timeout is 8 s; 108 s for what takes 100 s at this site's pace",
        )
    ]


def test_a_site_that_got_slower_has_time_for_as_long_as_it_moves() -> None:
    stream = Stream()
    stream.send(100 * MIB, 0.0)
    stream.answer("a", 1.0)
    stream.send(100 * MIB, 1.0)
    for second in range(2, 500):
        stream.moved["a"] = second
        assert stream.overdue(second) == []


def test_a_site_that_waits_for_room_here_is_not_slow() -> None:
    stream = Stream()
    stream.send(100 * MIB, 0.0)
    stream.moved["a"] = None
    assert [stream.overdue(second) for second in range(0, 100, 2)] == [[]] * 50


def test_objects_behind_another_have_its_time_too() -> None:
    stream = Stream()
    stream.send(100 * MIB, 0.0)
    stream.answer("a", 100.0)
    first, second = stream.send(100 * MIB, 100.0), stream.send(100 * MIB, 100.0)
    assert stream.overdue(100 + 100 + IDLE) == [(first.seq, "a")]
    stream.gathering.expire(first, "slow", ["a"])
    assert stream.overdue(300 + IDLE - 1) == []
    assert stream.overdue(300 + IDLE) == [(second.seq, "a")]


def test_a_late_answer_tells_a_pace_too() -> None:
    stream = Stream()
    flight = stream.send(100 * MIB, 0.0)
    assert stream.overdue(IDLE) == [(0, "a")]
    stream.gathering.expire(flight, "slow", ["a"])
    stream.answer("a", 100.0)
    assert stream.pacing.budget("a", 100 * MIB) == pytest.approx(100 + IDLE)


def test_nobody_is_looked_at_who_has_nothing_to_answer_or_has_left() -> None:
    stream = Stream("ab")
    assert stream.pacing.overdue(0.0) == ([], math.inf)
    stream.send(MIB, 0.0)
    stream.answer("a", 1.0)
    stream.gathering.leave("b", Standing.DROPPED, "TIMEOUT", Outcome.ABORTED)
    assert stream.pacing.overdue(100.0) == ([], math.inf)
