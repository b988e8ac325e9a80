"""How near do large objects come to the rate of a raw socket, and how does that change with sites?

One array of 64 MiB, a model of 200 arrays that are 1 GiB in all, and arrays of 1 MiB with a window of 16, on each event
loop; rates are over all sites. In each round the raw socket moves as many bytes to as many sites, once for each object.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from .harness.figures import GIB, MIB, add_loops, add_rounds, add_sites, arguments, loops, say
from .harness.teams import Run, Team, describe, named, take_turns
from .peers import Work


def objects(quick: bool) -> dict[str, Work]:
    """What is sent to one site."""
    if quick:
        return {"1 MiB arrays, window 16": Work(MIB, 16, window=16, tensors=1)}
    return {
        "64 MiB array": Work(64 * MIB, 16, tensors=1),
        "200 arrays, 1 GiB": Work(GIB // 800 * 800, 1, tensors=200),
        "1 MiB arrays, window 16": Work(MIB, 1024, window=16, tensors=1),
    }


def spread_over(work: Work, sites: int) -> Work:
    """About the same bytes in all, and at least one object to each site."""
    return Work(work.size, max(1, work.count // sites), work.window, sites, work.tensors)


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser)
    add_loops(parser)
    add_sites(parser, 1, 2, 4, 8)
    parser.add_argument("--transport", choices=("tcp", "unix"), default="tcp")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.sites = 1, [1, 2]
    chosen = options.loops or loops()
    most = max(options.sites)

    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        raw = stack.enter_context(Team("raw", most, transport=options.transport))
        teams = {
            loop: stack.enter_context(Team("fanstream", most, loop=loop, transport=options.transport))
            for loop in chosen
        }
        for name, each in objects(options.quick).items():
            for sites in options.sites:
                work = spread_over(each, sites)
                cells: dict[str, Callable[[], Run]] = {"raw": partial(raw.run, work)}
                cells |= {loop: partial(team.run, work) for loop, team in teams.items()}
                take_turns(1, cells)  # warms up
                runs = take_turns(options.rounds, cells)
                for cell, found in runs.items():
                    row = {"object": name, "sites": sites, **named(cell)}
                    rows.append(row | describe(found, runs["raw"], "gb_per_s"))
    say("large_objects", options, rows)


if __name__ == "__main__":
    main()
