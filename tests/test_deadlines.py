from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fanstream.deadlines import Deadline, Deadlines


class Log:
    """Deadlines that write down when they came, and when the timer had to be set anew."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, float]] = []
        self.earlier = 0
        self.deadlines = Deadlines(self._earlier)

    def _earlier(self) -> None:
        self.earlier += 1

    def at(self, when: float, name: str) -> Deadline:
        return self.deadlines.at(when, lambda now: self.ran.append((name, now)))


def test_deadlines_run_in_order_of_time_and_then_of_making() -> None:
    log = Log()
    for when, name in ((3, "c"), (1, "a"), (3, "d"), (2, "b")):
        log.at(when, name)
    log.deadlines.run(2.5)
    assert log.ran == [("a", 2.5), ("b", 2.5)]
    assert (log.deadlines.next(), len(log.deadlines)) == (3, 2)
    log.deadlines.run(3)
    assert log.ran[2:] == [("c", 3), ("d", 3)]
    assert (log.deadlines.next(), len(log.deadlines)) == (None, 0)


def test_only_an_earlier_deadline_sets_the_timer_anew() -> None:
    log = Log()
    log.at(5, "first")
    log.at(6, "later")
    log.at(5, "same")
    assert log.earlier == 1
    log.at(4, "earlier")
    assert log.earlier == 2


def test_a_cancelled_deadline_does_not_come() -> None:
    log = Log()
    first, _ = log.at(1, "first"), log.at(2, "second")
    log.deadlines.cancel(first)
    log.deadlines.cancel(first)
    assert (log.deadlines.next(), len(log.deadlines)) == (2, 1)
    log.deadlines.run(9)
    assert log.ran == [("second", 9)]
    log.deadlines.cancel(first)
    assert len(log.deadlines) == 0


def test_a_deadline_may_cancel_another_of_the_same_moment() -> None:
    log = Log()
    second: list[Deadline] = []
    log.deadlines.at(1, lambda now: log.deadlines.cancel(second[0]))
    second.append(log.at(1, "second"))
    log.deadlines.run(1)
    assert (log.ran, len(log.deadlines), log.deadlines.next()) == ([], 0, None)


def test_a_deadline_made_meanwhile_waits_for_the_next_call() -> None:
    log = Log()
    log.deadlines.at(1, lambda now: log.at(0, "made"))
    log.deadlines.run(1)
    assert (log.ran, log.deadlines.next()) == ([], 0)
    log.deadlines.run(1)
    assert log.ran == [("made", 1)]


def test_cancelled_deadlines_do_not_pile_up() -> None:
    log = Log()
    log.at(1, "living")
    for _ in range(10_000):
        log.deadlines.cancel(log.at(2, "dead"))
    assert len(log.deadlines) == 1
    assert len(log.deadlines._heap) < 200


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=200), st.integers(0, 20))
def test_what_runs_is_what_is_due_and_was_not_cancelled(entries: list[tuple[int, bool]], now: int) -> None:
    log = Log()
    made = [(when, cancelled, log.at(when, str(index))) for index, (when, cancelled) in enumerate(entries)]
    for _, cancelled, deadline in made:
        if cancelled:
            log.deadlines.cancel(deadline)
    living = [(when, str(index)) for index, (when, cancelled) in enumerate(entries) if not cancelled]
    assert len(log.deadlines) == len(living)
    assert log.deadlines.next() == min((when for when, _ in living), default=None)
    log.deadlines.run(now)
    due = sorted((entry for entry in living if entry[0] <= now), key=lambda entry: entry[0])
    assert [name for name, _ in log.ran] == [name for _, name in due]
    assert len(log.deadlines) == len(living) - len(due)
