from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanstream.policies import Quorum
from fanstream.protocol.gather import Flight, Gathering, Outcome, Standing
from fanstream.shareable import ReturnCode, Shareable

Policy = Literal["all", "first"] | Quorum
OK = ReturnCode.OK


def make(policy: Policy = "all", sites: str = "abc", backlog: int = 4) -> Gathering:
    return Gathering(list(sites), policy, backlog)


def answer(gathering: Gathering, sites: str, seq: int = 0) -> None:
    for name in sites:
        gathering.reply(name, seq, Shareable({"from": name}))


def codes(flight: Flight) -> dict[str, str]:
    return {name: reply.get_return_code() for name, reply in flight.replies.items()}


@pytest.mark.parametrize(("policy", "needed"), [("all", 3), ("first", 1), (Quorum(2), 2)])
def test_a_gather_is_complete_when_its_policy_is_met(policy: Policy, needed: int) -> None:
    gathering = make(policy)
    flight = gathering.launch(10)
    told: list[str] = []
    flight.on_reply = lambda: told.append("reply")
    flight.on_complete = lambda: told.append("complete")
    for count, name in enumerate("abc", 1):
        assert gathering.reply(name, 0, Shareable({"from": name}))
        assert flight.complete == (count >= needed)
    assert flight.met
    assert set(flight.replies) == set("abc"[:needed])
    assert told == ["reply"] * needed + ["complete"]
    assert (gathering.objects, gathering.bytes, gathering.first_failure) == (1, 10, None)
    gathering.close()


def test_a_flight_is_forgotten_once_judged_and_answered_by_all() -> None:
    gathering = make("first")
    flight = gathering.launch(1)
    answer(gathering, "a")
    gathering.judged(flight)
    assert flight.replies == {}
    answer(gathering, "b")
    assert gathering.flights == {0: flight}
    answer(gathering, "c")
    assert gathering.flights == {}
    with pytest.raises(KeyError, match="object 0 has no flight"):
        answer(gathering, "c")


def test_whoever_has_not_answered_by_the_deadline_has_timed_out() -> None:
    gathering = make()
    flight = gathering.launch(1)
    answer(gathering, "b")
    assert {site.name for site in gathering.expire(flight, "slow")} == {"a", "c"}
    assert codes(flight) == {"a": "TIMEOUT", "b": "OK", "c": "TIMEOUT"}
    assert (flight.complete, flight.met, gathering.first_failure) == (True, False, "TIMEOUT")
    assert gathering.expire(flight, "slow") == []
    gathering.close()


def test_a_quorum_may_be_met_before_others_time_out() -> None:
    gathering = make(Quorum(2))
    flight = gathering.launch(1)
    answer(gathering, "ab")
    gathering.expire(flight, "slow")
    assert (flight.met, codes(flight), gathering.first_failure) == (True, {"a": "OK", "b": "OK"}, None)
    assert gathering.sites["c"].counts == {Outcome.TIMED_OUT: 1}


def test_a_late_reply_is_counted_and_frees_the_site() -> None:
    gathering = make(sites="ab", backlog=1)
    flight = gathering.launch(1)
    assert gathering.at_limit == {"a", "b"}
    answer(gathering, "a")
    gathering.expire(flight, "slow")
    gathering.judged(flight)
    assert gathering.at_limit == {"b"}
    assert not gathering.reply("b", 0, Shareable())
    site = gathering.sites["b"]
    assert (site.late, site.misses, site.counts, site.backlog) == (1, 1, {Outcome.TIMED_OUT: 1}, 0)
    assert (gathering.at_limit, gathering.flights) == (set(), {})
    gathering.close()


def test_misses_in_a_row_end_with_a_reply_in_time() -> None:
    gathering = make(sites="a")
    for _ in range(2):
        gathering.expire(gathering.launch(1), "slow")
    assert gathering.sites["a"].misses == 2
    answer(gathering, "a", 0)
    answer(gathering, "a", 1)
    assert gathering.sites["a"].misses == 2
    gathering.launch(1)
    answer(gathering, "a", 2)
    assert gathering.sites["a"].misses == 0


@pytest.mark.parametrize(
    ("standing", "outcome", "rc", "met", "seen"),
    [
        (Standing.FINISHED, Outcome.NOT_SENT, OK, True, {"b": "OK"}),
        (Standing.SKIPPED, Outcome.NOT_SENT, OK, True, {"b": "OK"}),
        (Standing.UNREACHABLE, Outcome.LOST, "COMMUNICATION_ERROR", False, {"a": "COMMUNICATION_ERROR", "b": "OK"}),
        (Standing.REFUSED, Outcome.REFUSED, "TOPIC_UNKNOWN", False, {"a": "TOPIC_UNKNOWN", "b": "OK"}),
        (Standing.DROPPED, Outcome.ABORTED, "TIMEOUT", False, {"a": "TIMEOUT", "b": "OK"}),
    ],
)
def test_a_site_that_leaves_ends_its_open_pairs(
    standing: Standing, outcome: Outcome, rc: str, met: bool, seen: dict[str, str]
) -> None:
    gathering = make(sites="ab")
    flight = gathering.launch(1)
    gathering.leave("a", standing, rc, outcome, "why")
    gathering.leave("a", Standing.DROPPED, "ERROR", Outcome.ABORTED)
    answer(gathering, "b")
    site = gathering.sites["a"]
    assert (site.standing, site.rc, site.reason, site.counts) == (standing, rc, "why", {outcome: 1})
    assert (flight.complete, flight.met, codes(flight)) == (True, met, seen)
    gathering.judged(flight)
    assert gathering.flights == {}
    gathering.close()


@pytest.mark.parametrize(
    ("standing", "outcome", "later", "met"),
    [
        (Standing.FINISHED, Outcome.NOT_SENT, Outcome.NOT_SENT, True),
        (Standing.DROPPED, Outcome.ABORTED, Outcome.NOT_SENT, True),
        (Standing.UNREACHABLE, Outcome.LOST, Outcome.UNREACHABLE, False),
        (Standing.REFUSED, Outcome.REFUSED, Outcome.REFUSED, False),
    ],
)
def test_objects_after_a_site_left_are_accounted_for(
    standing: Standing, outcome: Outcome, later: Outcome, met: bool
) -> None:
    gathering = make(sites="ab")
    gathering.leave("a", standing, "ERROR", outcome)
    flight = gathering.launch(1)
    answer(gathering, "b")
    assert gathering.sites["a"].counts == {later: 1}
    assert (flight.complete, flight.met, "a" in flight.replies) == (True, met, not met)
    gathering.close()


def test_with_nobody_left_a_gather_is_over_at_once() -> None:
    gathering = make("first", sites="a")
    gathering.leave("a", Standing.UNREACHABLE, "COMMUNICATION_ERROR", Outcome.LOST)
    flight = gathering.launch(1)
    assert (flight.complete, flight.met, gathering.first_failure) == (True, False, "COMMUNICATION_ERROR")
    assert not gathering.finished
    gathering.judged(flight)
    assert gathering.flights == {}


def test_a_quorum_that_can_no_longer_be_met_fails() -> None:
    gathering = make(Quorum(2), sites="ab")
    flight = gathering.launch(1)
    gathering.leave("a", Standing.FINISHED, OK, Outcome.NOT_SENT)
    answer(gathering, "b")
    assert (flight.complete, flight.met, gathering.first_failure) == (True, False, "EARLY_TERMINATION")


def test_a_stream_is_finished_when_all_have_finished_of_themselves() -> None:
    gathering = make(sites="ab")
    gathering.leave("a", Standing.FINISHED, OK, Outcome.NOT_SENT)
    assert not gathering.finished
    gathering.leave("b", Standing.DROPPED, "TIMEOUT", Outcome.ABORTED)
    assert gathering.finished


def test_a_site_at_its_backlog_holds_the_stream_until_it_answers_or_leaves() -> None:
    gathering = make(sites="ab", backlog=2)
    gathering.launch(1)
    assert gathering.at_limit == set()
    gathering.launch(1)
    assert gathering.at_limit == {"a", "b"}
    answer(gathering, "a", 0)
    gathering.leave("b", Standing.DROPPED, "TIMEOUT", Outcome.ABORTED)
    assert gathering.at_limit == set()


def test_the_end_of_a_site_is_kept() -> None:
    gathering = make(sites="a")
    gathering.end("a", "OK", {"x": 1}, "done")
    site = gathering.sites["a"]
    assert (site.ended, site.rc, site.end_result, site.reason) == (True, "OK", {"x": 1}, "done")


def test_an_account_that_does_not_close_is_a_defect() -> None:
    gathering = make(sites="a")
    gathering.launch(1)
    with pytest.raises(AssertionError, match="0 outcomes for 1 objects at a"):
        gathering.close()


LEAVINGS = [
    (Standing.FINISHED, OK, Outcome.NOT_SENT),
    (Standing.UNREACHABLE, "COMMUNICATION_ERROR", Outcome.LOST),
    (Standing.DROPPED, "TIMEOUT", Outcome.ABORTED),
]


@given(st.data(), st.sampled_from(["all", "first", Quorum(2)]))
def test_each_pair_ends_once_whatever_happens(data: st.DataObject, policy: Any) -> None:
    gathering = make(policy, backlog=3)
    launched: list[Flight] = []
    completed: list[int] = []
    for step in data.draw(st.lists(st.sampled_from(["launch", "reply", "expire", "leave", "judge"]), max_size=40)):
        if step == "launch" and not gathering.at_limit:
            flight = gathering.launch(1)
            launched.append(flight)
            if flight.complete:
                completed.append(flight.seq)
            else:
                flight.on_complete = lambda seq=flight.seq: completed.append(seq)
        elif step == "reply":
            behind = [site for site in gathering.active.values() if site.backlog]
            if behind:
                site = data.draw(st.sampled_from(behind))
                gathering.reply(site.name, site.answered, Shareable())
        elif step == "expire" and launched:
            gathering.expire(data.draw(st.sampled_from(launched)), "slow")
        elif step == "leave" and gathering.active:
            name = data.draw(st.sampled_from(sorted(gathering.active)))
            gathering.leave(name, *data.draw(st.sampled_from(LEAVINGS)))
        elif step == "judge":
            for flight in launched:
                if flight.complete and not flight.judged:
                    gathering.judged(flight)
        assert all(site.backlog <= 3 for site in gathering.sites.values())
    for name in list(gathering.active):
        gathering.leave(name, Standing.UNREACHABLE, "COMMUNICATION_ERROR", Outcome.LOST)
    for flight in launched:
        if not flight.judged:
            gathering.judged(flight)
    gathering.close()
    assert sorted(completed) == list(range(gathering.objects))
    assert gathering.flights == {}


# --- patience ---


def patient(sites: str = "abcde", patience: float = 3.0) -> Gathering:
    return make(Quorum(3, patience), sites=sites)


def answer_at(gathering: Gathering, arrivals: dict[str, float], flight: Flight) -> None:
    for name, seconds in arrivals.items():
        gathering.reply(name, flight.seq, Shareable(), flight.sent + seconds)


def test_with_patience_a_gather_that_has_enough_stays_open_for_a_while() -> None:
    gathering = patient()
    flight = gathering.launch(1)
    flight.sent = 100.0
    answer_at(gathering, {"a": 1.0, "b": 2.0}, flight)
    assert (flight.complete, flight.closes) == (False, float("inf"))
    answer_at(gathering, {"c": 3.0}, flight)
    assert (flight.complete, flight.closes) == (False, 100 + 2 + 3 * 1)
    answer_at(gathering, {"d": 4.0}, flight)
    gathering.lose_patience(flight)
    assert (flight.complete, flight.met, set(flight.replies)) == (True, True, set("abcd"))
    assert gathering.reply("e", 0, Shareable(), 300.0)
    assert gathering.sites["e"].counts == {Outcome.REPLIED: 1}


def test_with_patience_a_gather_is_complete_when_all_have_answered() -> None:
    gathering = patient(sites="abcd")
    flight = gathering.launch(1)
    answer_at(gathering, dict.fromkeys("abcd", 1.0), flight)
    assert (flight.complete, flight.met) == (True, True)
    gathering.lose_patience(flight)
    gathering.judged(flight)
    assert gathering.flights == {}


def test_when_enough_replies_come_late_themselves_there_is_no_patience_left() -> None:
    gathering = patient()
    for _ in range(10):
        answer_at(gathering, dict.fromkeys("abcde", 1.0), gathering.launch(1))
    flight = gathering.launch(1)
    answer_at(gathering, {"a": 1.0, "b": 1.0, "c": 9.0}, flight)
    assert (flight.complete, flight.met, set(flight.replies)) == (True, True, set("abc"))


def test_the_deadline_ends_patience_too() -> None:
    gathering = patient()
    flight = gathering.launch(1)
    answer_at(gathering, {"a": 1.0, "b": 50.0, "c": 99.0}, flight)
    assert flight.closes > 150
    gathering.expire(flight, "slow")
    assert (flight.complete, flight.met) == (True, True)
    assert codes(flight) == {"a": "OK", "b": "OK", "c": "OK", "d": "TIMEOUT", "e": "TIMEOUT"}


def test_one_site_may_time_out_alone_and_its_entry_says_why() -> None:
    gathering = make(sites="ab")
    flight = gathering.launch(1)
    assert [site.name for site in gathering.expire(flight, "no progress", ["a"])] == ["a"]
    assert (flight.complete, flight.waiting) == (False, {"b"})
    answer(gathering, "b")
    assert flight.complete
    assert flight.replies["a"].get_header("reason") == "no progress"
