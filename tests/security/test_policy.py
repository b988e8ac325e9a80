"""What a policy decides: rules from the top, a denial by default; and no file means something else than it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fanstream.errors import KitError
from fanstream.security.policy import NO_RULE, Decision, Party, Policy

HUB = Party("server", "hub")
ONE = Party("site-1", "site")
TWO = Party("site-2", "site")

FILE = """\
[groups]
trainers = ["site-1", "site-2"]

[[streams]]
name = "weights go out"
effect = "allow"
from = "role:hub"
to = "group:trainers"
channel = "models"
topic = ["weights", "update"]

[[streams]]
name = "nobody else sends models"
effect = "deny"
from = "*"
to = "*"
channel = "models"
topic = "*"

[[streams]]
name = "sites report"
effect = "allow"
from = "role:site"
to = "server"
channel = ["metrics", "logs"]
topic = "*"

[[registrations]]
name = "no secrets"
effect = "deny"
site = "*"
channel = "secrets"
topic = "*"

[[registrations]]
name = "trainers take models"
effect = "allow"
site = "group:trainers"
channel = "models"
topic = "*"

[[registrations]]
name = "the hub takes all"
effect = "allow"
site = "role:hub"
channel = "*"
topic = "*"
"""


def stream(name: str, effect: str = "allow", **changes: Any) -> dict[str, Any]:
    return {"name": name, "effect": effect, "from": "*", "to": "*", "channel": "*", "topic": "*", **changes}


def registration(name: str, effect: str = "allow", **changes: Any) -> dict[str, Any]:
    return {"name": name, "effect": effect, "site": "*", "channel": "*", "topic": "*", **changes}


def made(**parts: Any) -> Policy:
    return Policy.model_validate(parts)


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    path = tmp_path / "policy.toml"
    path.write_text(FILE)
    return Policy.load(path)


@pytest.mark.parametrize(
    ("opener", "target", "channel", "topic", "allowed", "rule"),
    [
        (HUB, ONE, "models", "weights", True, "weights go out"),
        (HUB, TWO, "models", "update", True, "weights go out"),
        (HUB, Party("site-3", "site"), "models", "weights", False, "nobody else sends models"),
        (HUB, ONE, "models", "Weights", False, "nobody else sends models"),
        (HUB, ONE, "models", "weights ", False, "nobody else sends models"),
        (HUB, ONE, "models", "*", False, "nobody else sends models"),
        (HUB, ONE, "Models", "weights", False, None),
        (HUB, ONE, "*", "weights", False, None),
        (HUB, ONE, "", "", False, None),
        (ONE, HUB, "models", "weights", False, "nobody else sends models"),
        (ONE, HUB, "metrics", "anything", True, "sites report"),
        (ONE, HUB, "logs", "x", True, "sites report"),
        (ONE, TWO, "metrics", "x", False, None),
        (HUB, HUB, "metrics", "x", False, None),
        (Party("server", "site"), ONE, "models", "weights", False, "nobody else sends models"),
        (Party("SERVER", "site"), Party("Server", "site"), "metrics", "x", False, None),
    ],
)
def test_the_first_rule_that_fits_decides(
    policy: Policy, opener: Party, target: Party, channel: str, topic: str, allowed: bool, rule: str | None
) -> None:
    decision = policy.judge_stream(opener, target, channel, topic)
    assert decision == Decision(allowed, rule)
    assert decision.reason == (NO_RULE if rule is None else f"rule {rule!r}")


@pytest.mark.parametrize(
    ("site", "channel", "topic", "allowed", "rule"),
    [
        (ONE, "models", "weights", True, "trainers take models"),
        (ONE, "models", "*", True, "trainers take models"),
        (ONE, "*", "*", False, "no secrets"),
        (ONE, "secrets", "key", False, "no secrets"),
        (ONE, "metrics", "x", False, None),
        (HUB, "metrics", "*", True, "the hub takes all"),
        (HUB, "*", "*", False, "no secrets"),
        (Party("site-3", "site"), "models", "weights", False, None),
    ],
)
def test_a_registration_is_allowed_in_whole_and_denied_in_part(
    policy: Policy, site: Party, channel: str, topic: str, allowed: bool, rule: str | None
) -> None:
    assert policy.judge_registration(site, channel, topic) == Decision(allowed, rule)


@pytest.mark.parametrize(
    ("opener", "target", "allowed"), [(HUB, ONE, True), (ONE, HUB, True), (ONE, TWO, False), (TWO, ONE, False)]
)
def test_whether_there_is_anything_between_two_sites(
    policy: Policy, opener: Party, target: Party, allowed: bool
) -> None:
    assert policy.judge_any_stream(opener, target).allowed is allowed


def test_a_denial_of_everything_between_two_ends_the_search() -> None:
    policy = made(streams=[stream("not these", "deny", **{"from": "site-1"}), stream("all")])
    assert policy.judge_any_stream(ONE, TWO) == Decision(False, "not these")
    assert policy.judge_any_stream(TWO, ONE) == Decision(True, "all")


# --- files that mean something else than they say ---

BROKEN: dict[str, tuple[str, str]] = {
    "no TOML": ("a = 1\nb ==\n", "is no TOML: .*line 2"),
    "nothing": ("", "has no rules, and would deny everything"),
    "no rule": ("[groups]\na = ['site-1']\n", "has no rules"),
    "an unknown table": (FILE + "\n[other]\nx = 1\n", "is refused: other: Extra inputs are not permitted"),
    "an unknown key": (FILE.replace("topic = \"*\"", "topic = \"*\"\ntopics = 1", 1), r"streams\[1\].topics: Extra"),
    "a missing key": (FILE.replace('effect = "deny"\n', "", 1), r"streams\[1\].effect: Field required"),
    "a missing topic": (FILE.replace('topic = "*"\n', "", 1), r"streams\[1\].topic: Field required"),
    "another effect": (FILE.replace('"deny"', '"Deny"', 1), r"streams\[1\].effect: Input should be 'allow' or 'deny'"),
    "no site": (FILE.replace('to = "server"', 'to = "a server"'), r"streams\[2\].to\[0\]: .*'a server'"),
    "a pattern": (FILE.replace('to = "server"', 'to = "site-*"'), r"streams\[2\].to\[0\]: .*'site-\*'"),
    "a look-alike": (FILE.replace('to = "server"', 'to = "s\u0435rver"'), r"streams\[2\].to\[0\]: "),
    "another case": (FILE.replace('to = "server"', 'to = "Site-1"'), "Site-1 and site-1 differ in case alone"),
    "a role": (FILE.replace("role:hub", "role:admin", 1), r"streams\[0\].from\[0\]: 'role:admin' is no role"),
    "a group": (FILE.replace("group:trainers", "group:x", 1), "'weights go out': to: .*no group 'x'; .*trainers"),
    "an empty group": (FILE.replace('["site-1", "site-2"]', "[]"), "groups.trainers: .*at least 1"),
    "a member twice": (FILE.replace('"site-2"]', '"site-1"]'), "groups.trainers: 'site-1' is there twice"),
    "a member that is no site": (FILE.replace('"site-2"]', '"*"]'), r"groups.trainers\[1\]: .*'\*'"),
    "nobody": (FILE.replace('to = "server"', "to = []"), r"streams\[2\].to: .*at least 1"),
    "all and more": (FILE.replace('to = "server"', 'to = ["*", "server"]'), r"streams\[2\].to: '\*' is everything"),
    "all topics and more": (FILE.replace('"update"', '"*"'), r"streams\[0\].topic: '\*' is everything"),
    "the engine's own": (FILE.replace('"logs"', '"_sealed"'), r"streams\[2\].channel\[1\]: .*'_sealed'.*engine's own"),
    "no name": (FILE.replace("sites report", "", 1), r"streams\[2\].name: .*1 to 100"),
    "a name of two lines": (FILE.replace("sites report", "a\\nb", 1), r"streams\[2\].name: .*in one line"),
    "a name twice": (FILE.replace("no secrets", "sites report"), "two rules have the name 'sites report'"),
    "never reached": (
        FILE.replace("role:hub", "*", 1).replace("group:trainers", "*", 1).replace('["weights", "update"]', '"*"'),
        r"streams\[1\] 'nobody else sends models' is never reached: 'weights go out' before it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_file_that_makes_no_sense_is_refused(fault: str, tmp_path: Path) -> None:
    text, reason = BROKEN[fault]
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(KitError, match=reason) as caught:
        Policy.load(path)
    assert caught.value.path == str(path)
    assert caught.value.fix == "Mend it, or copy it again"


def test_a_file_that_is_missing_or_open_to_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    with pytest.raises(KitError, match=r"is not there. Copy the policy again"):
        Policy.load(path)
    path.write_bytes(b"\xff")
    with pytest.raises(KitError, match="is no text in UTF-8"):
        Policy.load(path)
    path.chmod(0o666)
    with pytest.raises(KitError, match="other users may change it"):
        Policy.load(path)


@pytest.mark.parametrize(
    ("first", "second", "reached"),
    [
        ({"channel": "a"}, {"channel": "a"}, False),
        ({"channel": "*"}, {"channel": "a"}, False),
        ({"channel": "a"}, {"channel": "*"}, True),
        ({"channel": ["a", "b"]}, {"channel": "b"}, False),
        ({"channel": ["a", "b"]}, {"channel": ["b", "c"]}, True),
        ({"from": "role:hub"}, {"from": "server"}, True),
        ({"from": ["role:hub", "role:site"]}, {"from": "server"}, False),
        ({"from": "*"}, {"from": "role:hub"}, False),
        ({"from": ["server", "role:site"]}, {"from": ["role:site"]}, False),
        ({"topic": "a", "channel": "*"}, {"topic": "*", "channel": "a"}, True),
    ],
)
def test_which_rules_are_reached(first: dict[str, Any], second: dict[str, Any], reached: bool) -> None:
    rules = [stream("first", **first), stream("second", "deny", **second)]
    if reached:
        made(streams=rules)
    else:
        with pytest.raises(ValidationError, match="never reached"):
            made(streams=rules)


def test_a_registration_with_wildcards_reaches_a_denial_behind_a_narrow_allowance() -> None:
    policy = made(
        registrations=[
            registration("this one", channel="secrets"),
            registration("no other", "deny", channel="secrets"),
            registration("all"),
        ]
    )
    assert policy.judge_registration(ONE, "secrets", "key").rule == "this one"
    assert policy.judge_registration(ONE, "*", "*") == Decision(False, "no other")
    with pytest.raises(ValidationError, match="never reached"):
        made(registrations=[registration("all"), registration("no secrets", "deny", channel="secrets")])


# --- whatever the rules are ---

SITES = ("server", "site-1", "site-2", "site-3")
ADDRESSES = ("a", "b", "c")
selectors = st.sampled_from(
    [("*",), ("role:hub",), ("role:site",), ("group:g",), *((name,) for name in SITES), SITES[1:3]]
)
addresses = st.sampled_from([("*",), *((name,) for name in ADDRESSES), ADDRESSES[:2]])
parties = st.builds(Party, st.sampled_from(SITES), st.sampled_from(["hub", "site"]))
effects = st.sampled_from(["allow", "deny"])
bodies = st.tuples(effects, selectors, selectors, addresses, addresses)
questions = st.lists(st.tuples(parties, parties, *[st.sampled_from([*ADDRESSES, "*", "A", "", "_a"])] * 2), min_size=1)


def build(rules: list[tuple[Any, ...]]) -> Policy | None:
    """Make a policy of rules, both of streams and registrations; None if one is never reached."""
    streams = [
        {"name": f"s{index}", "effect": effect, "from": who, "to": to, "channel": channel, "topic": topic}
        for index, (effect, who, to, channel, topic) in enumerate(rules)
    ]
    registrations = [
        {"name": f"r{index}", "effect": effect, "site": who, "channel": channel, "topic": topic}
        for index, (effect, who, _to, channel, topic) in enumerate(rules)
    ]
    found = {}
    for table, made_rules in (("streams", streams), ("registrations", registrations)):
        kept: list[dict[str, Any]] = []
        for rule in made_rules:
            try:
                made(groups={"g": SITES[2:]}, **{table: [*kept, rule]})
            except ValidationError:
                continue  # it is never reached, and so decides nothing
            kept.append(rule)
        found[table] = kept
    return made(groups={"g": SITES[2:]}, **found)


def allowed(policy: Policy, question: Any) -> tuple[bool, bool, bool]:
    opener, target, channel, topic = question
    return (
        policy.judge_stream(opener, target, channel, topic).allowed,
        policy.judge_any_stream(opener, target).allowed,
        policy.judge_registration(opener, channel, topic).allowed,
    )


@settings(max_examples=40)
@given(st.lists(bodies, max_size=5), st.integers(0, 5), bodies, questions)
def test_another_denial_never_allows_more(rules: list[Any], place: int, denial: Any, asked: list[Any]) -> None:
    before, after = build(rules), build([*rules[:place], ("deny", *denial[1:]), *rules[place:]])
    assert before is not None
    assert after is not None
    for question in asked:
        assert all(old or not new for old, new in zip(allowed(before, question), allowed(after, question), strict=True))


@settings(max_examples=40)
@given(st.lists(bodies, max_size=5), st.integers(0, 5), questions)
def test_the_beginning_of_a_policy_never_allows_more_than_the_whole(
    rules: list[Any], cut: int, asked: list[Any]
) -> None:
    whole, part = build(rules), build(rules[:cut])
    assert whole is not None
    assert part is not None
    for question in asked:
        for of_part, of_whole in zip(allowed(part, question), allowed(whole, question), strict=True):
            assert of_whole or not of_part


@given(questions)
def test_what_no_rule_allows_is_denied(asked: list[Any]) -> None:
    for question in asked:
        assert allowed(Policy(), question) == (False, False, False)
        only_denials = made(streams=[stream("no", "deny")], registrations=[registration("none", "deny")])
        assert allowed(only_denials, question) == (False, False, False)


@settings(max_examples=40)
@given(st.lists(bodies, max_size=5), questions)
def test_what_is_allowed_on_a_topic_is_something_between_the_two(rules: list[Any], asked: list[Any]) -> None:
    policy = build(rules)
    assert policy is not None
    for opener, target, channel, topic in asked:
        if policy.judge_stream(opener, target, channel, topic).allowed:
            assert policy.judge_any_stream(opener, target).allowed


def test_a_file_cut_short_is_refused_or_allows_no_more(tmp_path: Path, policy: Policy) -> None:
    asked = [
        (opener, target, channel, topic)
        for opener in (HUB, ONE, TWO)
        for target in (HUB, ONE, TWO)
        for channel in ("models", "metrics", "secrets", "other")
        for topic in ("weights", "*", "other")
    ]
    path = tmp_path / "cut.toml"
    taken = 0
    for size in range(len(FILE)):
        path.write_text(FILE[:size])
        try:
            part = Policy.load(path)
        except KitError:
            continue
        taken += 1
        for question in asked:
            for of_part, of_whole in zip(allowed(part, question), allowed(policy, question), strict=True):
                assert of_whole or not of_part, (size, question)
    assert taken >= 5
