"""What is done to processes that stream, and what has to hold afterwards.

Each scenario is one stream of its own run number in a lab that goes on; it raises an AssertionError for what does not
hold. Whether a broken stream goes on or ends, the account has to add up, what was acknowledged has to have happened,
and nothing may happen twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Final

import anyio

from fanstream import StreamOptions

from .lab import Lab, Process

RESUMES: Final = StreamOptions().resume_window > 0
"""Whether streams go on once a broken link has come back."""
SITES: Final = ("site-1", "site-2")
OBJECTS: Final = 60


async def _begin(lab: Lab, opener: Process, run: int, **how: Any) -> None:
    """Begin a stream to both sites."""
    await opener.tell("stream", run=run, targets=list(SITES), objects=OBJECTS, **how)
    await opener.hear("begun", lambda told: told == run)


async def _reach(lab: Lab, site: str, run: int, rng: Random) -> None:
    """Wait until a site has come to some object of a stream, and a moment longer."""
    n = rng.randrange(OBJECTS // 2)
    await lab.processes[site].hear("consumed", lambda told: told[0] == run and told[1] >= n)
    await anyio.sleep(rng.uniform(0, 0.01))


async def _recovered(lab: Lab, opener: Process, run: int) -> None:
    """A further stream to all sites is whole."""
    await opener.tell("stream", run=-run, targets=list(SITES), objects=5)
    result = await opener.result(-run)
    assert result.get("complete"), f"run {run}: afterwards, {result}"


def _check_account(result: dict[str, Any], run: int) -> None:
    assert "error" not in result, f"run {run}: {result}"
    for site, account in result["sites"].items():
        total = sum(number for outcome, number in account.items() if outcome != "rc")
        assert total == result["objects"], f"run {run}: {site} has {account} for {result['objects']} objects"


def _check_whole(result: dict[str, Any], consumed: dict[str, list[int]], run: int) -> None:
    """The stream went on as if nothing had happened."""
    assert result["complete"], f"run {run}: {result}"
    for site in SITES:
        assert consumed[site] == list(range(OBJECTS)), f"run {run}: {site} consumed {consumed[site]}"


def check_effects(lab: Lab, opener: str, run: int, *, redelivered: int = 1) -> dict[str, list[int]]:
    """Check the logs of one stream.

    Args:
        lab: where they are.
        opener: who logged the replies.
        run: the stream.
        redelivered: how many objects may have been consumed by two lives of a site.

    Returns:
        What each site has consumed, in order.
    """
    consumed: dict[str, list[int]] = {}
    for site in SITES:
        entries = [entry for entry in lab.logged(site, "consumed") if entry["consumed"][0] == run]
        assert all(entry["whole"] for entry in entries), f"run {run}: damaged at {site}"
        consumed[site] = numbers = [entry["consumed"][1] for entry in entries]
        for life in {entry["life"] for entry in entries}:
            of_life = [entry["consumed"][1] for entry in entries if entry["life"] == life]
            assert of_life == sorted(set(of_life)), f"run {run}: {site} consumed {of_life} in one life"
        twice = sum(count - 1 for count in Counter(numbers).values())
        assert twice <= redelivered, f"run {run}: {site} consumed {twice} objects twice"
    for entry in lab.logged(opener, "replied"):
        if entry["replied"][0] != run:
            continue
        n = entry["replied"][1]
        for site, (rc, answer) in entry["answers"].items():
            if rc == "OK":
                assert answer == n, f"run {run}: {site} answered {answer} to object {n}"
                assert n in consumed[site], f"run {run}: {site} acknowledged object {n}, and has not consumed it"
    return consumed


async def receiver_killed(lab: Lab, run: int, rng: Random) -> None:
    """A site is killed; it comes back as another."""
    opener = lab.processes["hub" if run % 2 else "opener"]
    await _begin(lab, opener, run, window=rng.choice([1, 4, 16]), timeout=5.0)
    await _reach(lab, "site-1", run, rng)
    await lab.processes["site-1"].kill()
    await lab.start("site-1")
    result = await opener.result(run)
    _check_account(result, run)
    assert result["sites"]["site-2"] == {"rc": "OK", "replied": result["objects"]}, f"run {run}: {result}"
    consumed = check_effects(lab, opener.name, run)
    assert consumed["site-2"] == list(range(OBJECTS)), f"run {run}: the other site was to be left alone"
    await _recovered(lab, opener, run)


async def opener_killed(lab: Lab, run: int, rng: Random) -> None:
    """The opener is killed, and comes back as another: its streams end at the sites."""
    await _begin(lab, lab.processes["opener"], run, window=rng.choice([1, 4, 16]))
    await _reach(lab, "site-1", run, rng)
    await lab.processes["opener"].kill()
    opener = await lab.start("opener")
    for site in SITES:
        # A site to which nothing had come yet has nothing to end.
        begun = any(entry["consumed"][0] == run for entry in lab.logged(site, "consumed"))
        if begun:
            await lab.processes[site].hear("ended", lambda told: told == run)
    await _recovered(lab, opener, run)
    check_effects(lab, "opener", run, redelivered=0)
    for site in SITES:
        ends = [entry["rc"] for entry in lab.logged(site, "ended") if entry["ended"] == run]
        assert ends in ([], ["COMMUNICATION_ERROR"]), f"run {run}: ended at {site} as {ends}"


async def hub_killed(lab: Lab, run: int, rng: Random) -> None:
    """The hub is killed, and comes back: a stream through it goes on, or ends; nothing happens twice."""
    opener = lab.processes["opener"]
    await _begin(lab, opener, run, window=rng.choice([1, 4, 16]), timeout=30.0)
    await _reach(lab, "site-1", run, rng)
    await lab.processes["hub"].kill()
    await lab.start("hub")
    result = await opener.result(run)
    _check_account(result, run)
    consumed = check_effects(lab, "opener", run, redelivered=0)
    if RESUMES:
        _check_whole(result, consumed, run)
    await _recovered(lab, opener, run)


async def receiver_frozen(lab: Lab, run: int, rng: Random) -> None:
    """A site freezes: it is noticed in time, and once it thaws it is reached again."""
    opener = lab.processes["hub" if run % 2 else "opener"]
    hub, site = lab.processes["hub"], lab.processes["site-1"]
    await _begin(lab, opener, run, window=4, timeout=30.0)
    await _reach(lab, "site-1", run, rng)
    before = len(hub.heard)
    site.freeze()
    await hub.hear("left", lambda told: told == "site-1", after=before)
    site.thaw()
    result = await opener.result(run)
    _check_account(result, run)
    assert result["sites"]["site-2"] == {"rc": "OK", "replied": result["objects"]}, f"run {run}: {result}"
    consumed = check_effects(lab, opener.name, run, redelivered=0)
    if RESUMES:
        _check_whole(result, consumed, run)
    await _recovered(lab, opener, run)


async def receiver_restarted(lab: Lab, run: int, rng: Random) -> None:
    """A site with a journal is killed up to three times in one stream, at any moment: each life goes on with it."""
    opener = lab.processes["hub" if run % 2 else "opener"]
    kills = rng.randint(1, 3)
    await _begin(lab, opener, run, window=rng.choice([1, 4, 16]), timeout=60.0, patience=60.0)
    for _ in range(kills):
        await _reach(lab, "site-1", run, rng)
        await lab.processes["site-1"].kill()
        await lab.start("site-1")
    result = await opener.result(run)
    _check_account(result, run)
    assert result["complete"], f"run {run}, {kills} kills: {result}"
    consumed = check_effects(lab, opener.name, run, redelivered=kills)
    assert sorted(set(consumed["site-1"])) == list(range(OBJECTS)), f"run {run}: {consumed['site-1']}"
    assert consumed["site-2"] == list(range(OBJECTS)), f"run {run}: the other site was to be left alone"
    ends = [entry["rc"] for entry in lab.logged("site-1", "ended") if entry["ended"] == run]
    assert ends, f"run {run}: site-1 has not finalized"
    assert set(ends) == {"OK"}, f"run {run}: site-1 ended as {ends}"
    await _recovered(lab, opener, run)


async def opener_restarted(lab: Lab, run: int, rng: Random) -> None:
    """The opener of a durable stream is killed up to three times, at any moment: each life resumes it."""
    kills = rng.randint(1, 3)
    how: dict[str, Any] = {"window": rng.choice([1, 4, 16]), "timeout": 60.0, "patience": 60.0, "durable": True}
    opener = lab.processes["opener"]
    await _begin(lab, opener, run, **how)
    for kill in range(kills):
        await _judge(lab, opener, run, rng, kill / kills)
        opener = await _next_opener(lab, run, how)
    await _check_resumed(lab, opener, run, kills)


async def opener_and_receiver_restarted(lab: Lab, run: int, rng: Random) -> None:
    """The same, and a site with a journal is killed around the same time, in either order."""
    how: dict[str, Any] = {"window": rng.choice([1, 4, 16]), "timeout": 60.0, "patience": 60.0, "durable": True}
    opener = lab.processes["opener"]
    await _begin(lab, opener, run, **how)
    await _judge(lab, opener, run, rng, 0.0)
    victims = ["site-1", "opener"]
    rng.shuffle(victims)
    for victim in victims:
        await lab.processes[victim].kill()
        await anyio.sleep(rng.uniform(0, 0.05))
    if victims[0] == "site-1" or rng.random() < 0.5:
        await lab.start("site-1")
        opener = await _resume(lab, run, how)
    else:
        opener = await _resume(lab, run, how, wait=False)
        await anyio.sleep(rng.uniform(0, 0.5))
        await lab.start("site-1")
    await _check_resumed(lab, opener, run, 1, redelivered=1)


async def _judge(lab: Lab, opener: Process, run: int, rng: Random, share: float) -> None:
    """Wait until an opener has seen the replies to some object, later ones for later kills, and a moment longer."""
    n = rng.randrange(int(share * OBJECTS), int(share * OBJECTS) + OBJECTS // 4)

    def judged() -> bool:
        return any(entry["replied"][0] == run and entry["replied"][1] >= n for entry in lab.logged("opener", "replied"))

    with anyio.fail_after(60):
        while not judged() and not opener.said("result", lambda told: told["run"] == run):  # noqa: ASYNC110 - a file
            await anyio.sleep(0.002)
    await anyio.sleep(rng.uniform(0, 0.01))


async def _next_opener(lab: Lab, run: int, how: dict[str, Any]) -> Process:
    await lab.processes["opener"].kill()
    return await _resume(lab, run, how)


async def _resume(lab: Lab, run: int, how: dict[str, Any], *, wait: bool = True) -> Process:
    """Start the next life of the opener, and have it resume the stream, if that is unfinished."""
    opener = await lab.start("opener")
    await opener.tell("unfinished")
    left = await opener.hear("unfinished", lambda _left: True)
    assert len(left) <= 1, f"run {run}: {left}"
    if left:
        targets = list(SITES) if wait else ["site-2"]
        await opener.tell(
            "stream", run=run, targets=list(SITES), objects=OBJECTS, resume=left[0]["stream_id"], wait=targets, **how
        )
        await opener.hear("begun", lambda told: told == run)
    return opener


async def _check_resumed(lab: Lab, opener: Process, run: int, kills: int, *, redelivered: int = 0) -> None:
    """Every site has consumed every object, and every object was judged, in order within each life."""
    if opener.said("begun", lambda told: told == run):
        result = await opener.result(run)
        _check_account(result, run)
        assert result["complete"], f"run {run}, {kills} kills: {result}"
        assert result["first"] + result["objects"] == OBJECTS, f"run {run}: {result}"
    consumed = check_effects(lab, "opener", run, redelivered=redelivered)
    for site in SITES:
        whole = sorted(set(consumed[site])) if redelivered else consumed[site]
        assert whole == list(range(OBJECTS)), f"run {run}: {site} consumed {consumed[site]}"
        ends = [entry["rc"] for entry in lab.logged(site, "ended") if entry["ended"] == run]
        assert ends, f"run {run}: {site} has not finalized"
        assert set(ends) == {"OK"}, f"run {run}: ended at {site} as {ends}"
    judged = [
        (entry["life"], entry["replied"][1]) for entry in lab.logged("opener", "replied") if entry["replied"][0] == run
    ]
    assert {n for _, n in judged} == set(range(OBJECTS)), f"run {run}: judged {judged}"
    for life in {life for life, _ in judged}:
        of_life = [n for its, n in judged if its == life]
        assert of_life == list(range(of_life[0], of_life[0] + len(of_life))), f"run {run}: judged {of_life} in one life"
    twice = len(judged) - OBJECTS
    assert twice <= kills * 17, f"run {run}: judged {twice} objects twice"  # a window, and what was being written
    before = len(opener.heard)
    await opener.tell("unfinished")
    left = await opener.hear("unfinished", lambda _left: True, after=before)
    assert left == [], f"run {run}: {left} stays in the journal"
    await _recovered(lab, opener, run)


Scenario = Callable[[Lab, int, Random], Awaitable[None]]
SCENARIOS: Final[dict[str, Scenario]] = {
    scenario.__name__: scenario for scenario in (receiver_killed, opener_killed, hub_killed, receiver_frozen)
}
WITH_JOURNALS: Final[dict[str, Scenario]] = {
    scenario.__name__: scenario for scenario in (receiver_restarted, opener_restarted, opener_and_receiver_restarted)
}
"""Those whose workers are to keep journals."""
DURABLE: Final[dict[str, Scenario]] = {"opener_restarted_alone": opener_restarted}
"""Those whose opener alone is to keep one."""
