"""fanstream, the raw socket and each peer in turn, doing the same work in the same minutes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Final

from ..peers import LOCK_STEP, PEERS, Work, installed
from .figures import spread
from .teams import Run, Team, describe, named, ratios, take_turns

OWN: Final = ("raw", "fanstream")
OTHERS: Final = tuple(peer for peer in PEERS if peer not in OWN)


def add_peers(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses peers."""
    parser.add_argument("--peers", nargs="*", choices=OTHERS, help="those that are installed, by default")


def chosen_peers(options: argparse.Namespace) -> list[str]:
    """The peers that were asked for, or are there.

    Raises:
        SystemExit: one that was asked for is not installed.
    """
    if options.peers is None:
        return [peer for peer in OTHERS if installed(peer)]
    for peer in options.peers:
        if not installed(peer):
            raise SystemExit(f"peer {peer} needs {' and '.join(PEERS[peer])}, which is not installed")
    return list(options.peers)


def distributions(peers: Sequence[str]) -> list[str]:
    """The packages whose versions belong to the result."""
    return sorted({name for peer in peers for name in PEERS[peer]})


def compare_loops(
    works: Iterable[tuple[str, Work]],
    loops: Sequence[str],
    *,
    rounds: int,
    transport: str,
    env: Mapping[str, str] | None = None,
    ways: Mapping[str, Mapping[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """Measure large objects by fanstream on each event loop and by the raw socket, each piece of work in new processes.

    Args:
        works: what is done, and what to call its object.
        loops: names of event loops.
        rounds: how often each is measured, after a first window of objects, which touches new memory, and a run.
        transport: ``"tcp"``, ``"unix"`` or ``"tls"``.
        env: environment variables of all the processes.
        ways: what else each loop is measured with, by a name for it: environment variables of those processes.

    Returns:
        A row for each piece of work, loop and way, and for each the raw socket's.
    """
    rows: list[dict[str, Any]] = []
    for name, work in works:
        with ExitStack() as stack:
            teams = {"raw": Team("raw", work.sites, transport=transport, env=env)}
            for loop in loops:
                for way, more in (ways or {"": {}}).items():
                    each = {**(env or {}), **more}
                    team = Team("fanstream", work.sites, loop=loop, transport=transport, env=each)
                    teams[f"{loop}, {way}" if way else loop] = team
            for team in teams.values():
                stack.enter_context(team)
            first = take_turns(1, {cell: partial(team.run, work.first()) for cell, team in teams.items()})
            cells = {cell: partial(team.run, work) for cell, team in teams.items()}
            take_turns(1, cells)  # warms up
            runs = take_turns(rounds, cells)
        for cell, found in runs.items():
            row = {"object": name, "sites": work.sites, **named(cell), **describe(found, runs["raw"], "gb_per_s")}
            rows.append(row | {"first_gb_per_s": float(f"{first[cell][0].gb_per_s:.3g}")})
    return rows


def compare(
    peers: Sequence[str],
    works: Sequence[Work],
    figure: str,
    *,
    rounds: int,
    seconds: float,
    env: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Measure each peer in rounds of its own: the raw socket, fanstream, and the peer.

    Args:
        peers: names of peers beside the raw socket and fanstream, whose processes live throughout.
        works: what is done; how often an object is sent is found out for each of them.
        figure: the name of the property of a Run that is compared.
        rounds: how often each is measured.
        seconds: how long one run should take, about.
        env: environment variables of all the processes.

    Returns:
        A row for each piece of work and peer, with the figure, its ratio to the raw socket's in the same round, and how
        many times as much fanstream reached in the same round; the fastest first. A peer that failed has a row that
        says so.
    """
    most = max(work.sites for work in works)
    rows: list[dict[str, Any]] = []
    everyone: dict[tuple[int, str], list[Run]] = {}
    fitted: dict[tuple[int, str], Work] = {}
    with ExitStack() as stack:
        own = {name: stack.enter_context(Team(name, most, env=env)) for name in OWN}

        def measure(teams: Mapping[str, Team], index: int) -> dict[str, list[Run]]:
            cells: dict[str, Callable[[], Run]] = {}
            for name, team in teams.items():
                if (index, name) not in fitted:
                    # FLARE slows down with the number of objects; see its module.
                    share = seconds / 3 if name in LOCK_STEP else seconds
                    fitted[index, name] = team.fit(works[index], share)
                cells[name] = partial(team.run, fitted[index, name])
            runs = take_turns(rounds, cells)
            for name in OWN:
                everyone.setdefault((index, name), []).extend(runs[name])
            return runs

        if not peers:
            for index in range(len(works)):
                measure(own, index)
        for peer in peers:
            try:
                with Team(peer, most, env=env) as team:
                    for index, work in enumerate(works):
                        if peer in LOCK_STEP and work.window > 1:
                            work = replace(work, window=1)
                            if work in works:
                                continue
                        runs = measure({**own, peer: team}, index)
                        times = spread(ratios(runs["fanstream"], runs[peer], figure))
                        rows.append(
                            {
                                **_row(peer, runs[peer], runs["raw"], figure),
                                "window": work.window,
                                "fanstream_times": times,
                            }
                        )
            except (RuntimeError, OSError) as exc:
                # One peer that cannot start, or stalls, must not cost the others theirs; the script says so at its end.
                rows.append({"peer": peer, "failed": f"{type(exc).__name__}: {exc}"})
    rows += [_row(name, found, everyone[index, "raw"], figure) for (index, name), found in everyone.items()]
    return sorted(rows, key=lambda row: row[figure]["median"] if figure in row else 0, reverse=True)


def _row(peer: str, runs: Sequence[Run], raws: Sequence[Run], figure: str) -> dict[str, Any]:
    return {
        "peer": peer,
        "object": runs[0].work.name,
        "sites": runs[0].work.sites,
        "window": runs[0].work.window,
        **describe(runs, raws, figure),
    }


def check(rows: Sequence[Mapping[str, Any]]) -> None:
    """End the script with an error if a peer failed.

    Raises:
        SystemExit: one did.
    """
    failed = [f"{row['peer']}: {row['failed']}" for row in rows if "failed" in row]
    if failed:
        raise SystemExit("\n".join(failed))
