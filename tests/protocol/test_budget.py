from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fanstream.protocol.budget import Budget


class Stream:
    def __init__(self, origin: str = "a") -> None:
        self.origin = origin
        self.held = self.aside = self.standing = 0
        self.grants = 0

    def granted(self) -> None:
        self.grants += 1


def test_what_fits_is_reserved_at_once() -> None:
    budget, stream = Budget(100, 100, 0), Stream()
    assert budget.request(stream, 60)
    assert budget.request(stream, 40)
    assert (budget.used, budget.used_by("a"), stream.held, stream.grants) == (100, 100, 100, 0)


def test_what_does_not_fit_waits_for_a_release() -> None:
    budget, stream = Budget(100, 100, 0), Stream()
    budget.request(stream, 60)
    assert not budget.request(stream, 50)
    assert budget.waiting == 1
    budget.release(stream, 5)
    assert stream.grants == 0
    budget.release(stream, 5)
    assert (stream.grants, stream.held, budget.waiting) == (1, 100, 0)


def test_a_stream_that_holds_nothing_may_always_have_one_object() -> None:
    budget, first, second = Budget(100, 100, 0), Stream(), Stream()
    assert budget.request(first, 1000)
    assert budget.request(second, 1000)
    assert not budget.request(second, 1)


def test_a_streams_own_reservations_keep_their_order() -> None:
    budget, stream = Budget(100, 100, 0), Stream()
    budget.request(stream, 90)
    assert not budget.request(stream, 20)
    assert not budget.request(stream, 1)  # it would fit, and waits behind the first
    budget.release(stream, 5)
    assert stream.grants == 0
    budget.release(stream, 5)
    assert (stream.grants, stream.held) == (1, 100)
    budget.release(stream, 1)
    assert stream.grants == 2


def test_one_origin_cannot_take_anothers_room() -> None:
    budget, greedy, modest = Budget(50, 100, 0), Stream("a"), Stream("b")
    budget.request(greedy, 50)
    assert not budget.request(greedy, 10)
    assert budget.request(modest, 20)
    assert budget.request(modest, 20)
    assert (budget.used_by("a"), budget.used_by("b"), budget.used_by("c")) == (50, 40, 0)


def test_a_blocked_stream_does_not_hold_up_others() -> None:
    budget, blocked, other = Budget(50, 80, 0), Stream("a"), Stream("b")
    budget.request(blocked, 50)
    budget.request(other, 30)
    assert not budget.request(blocked, 50)
    assert not budget.request(other, 10)
    budget.release(other, 15)
    assert (blocked.grants, other.grants) == (0, 1)


def test_forgetting_a_stream_frees_what_it_holds_and_waits_for() -> None:
    budget, gone, waiting = Budget(100, 100, 0), Stream(), Stream()
    budget.charge(waiting, 10)
    budget.request(gone, 90)
    budget.request(gone, 50)
    assert not budget.request(waiting, 40)
    budget.forget(gone)
    assert (gone.held, gone.grants, waiting.grants) == (0, 0, 1)
    assert (budget.used, budget.waiting) == (50, 0)


def test_a_charge_is_let_in_without_asking() -> None:
    budget, stream = Budget(10, 10, 0), Stream()
    budget.charge(stream, 100)
    assert (budget.used, stream.held) == (100, 100)
    budget.release(stream, 100)
    assert (budget.used, budget.used_by("a")) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60), st.sampled_from(["request", "release", "forget"]))))
def test_the_account_closes_and_nobody_starves(steps: list[tuple[int, int, str]]) -> None:
    budget = Budget(60, 100, 0)
    streams = [Stream("ab"[index % 2]) for index in range(4)]
    for index, size, action in steps:
        stream = streams[index]
        if action == "request":
            budget.request(stream, size)
        elif action == "release":
            budget.release(stream, min(size, stream.held))
        else:
            budget.forget(stream)
        assert budget.used == sum(each.held for each in streams)
        for origin in "ab":
            assert budget.used_by(origin) == sum(each.held for each in streams if each.origin == origin)
    while budget.used:
        holder = max(streams, key=lambda each: each.held)
        budget.release(holder, holder.held)
    assert budget.waiting == 0


def test_nothing_is_set_aside_while_somebody_waits() -> None:
    budget, waiting, other = Budget(100, 100, 0), Stream(), Stream("b")
    budget.request(waiting, 30)
    assert not budget.request(waiting, 80)
    assert budget.set_aside(other, 4, 8) == 0
    budget.forget(waiting)
    assert budget.set_aside(other, 4, 8) == 8
