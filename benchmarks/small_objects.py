"""How many objects of 100 bytes a second are sent and answered, by window and sites?

One stream on each event loop; a reply of every site to every object counts. The raw socket answers as many, in the same
round, with nothing but the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from .harness.figures import add_loops, add_rounds, add_sites, arguments, loops, say
from .harness.teams import Run, Team, describe, named, take_turns
from .peers import Work

SIZE = 100
SECONDS = 0.5  # that one run takes, about


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser)
    add_loops(parser)
    add_sites(parser, 1, 8)
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 64])
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.sites = 1, [1, 2]
    seconds = 0.02 if options.quick else SECONDS
    chosen = options.loops or loops()
    most = max(options.sites)

    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        teams = {"raw": stack.enter_context(Team("raw", most))}
        teams |= {loop: stack.enter_context(Team("fanstream", most, loop=loop)) for loop in chosen}
        for window in options.windows:
            for sites in options.sites:
                cells: dict[str, Callable[[], Run]] = {}
                for name, team in teams.items():
                    cells[name] = partial(team.run, team.fit(Work(SIZE, 100, window, sites), seconds))
                runs = take_turns(options.rounds, cells)
                for cell, found in runs.items():
                    row = {"window": window, "sites": sites, **named(cell)}
                    rows.append(row | describe(found, runs["raw"], "replies_per_s"))
    say("small_objects", options, rows)


if __name__ == "__main__":
    main()
