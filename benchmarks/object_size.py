"""How does the cost of one object grow with its size?

From 100 bytes to 64 MiB, to one site with a window of 16, beside the raw socket in the same round. The time of one
object is that of the run by its objects, so with a window it is what an object adds, and not how long one takes.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

from .harness.figures import KIB, MIB, add_loops, add_rounds, arguments, loops, say, spread
from .harness.teams import Team, describe, named, take_turns
from .peers import Work

SIZES = [100, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB]
WINDOW = 16


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser, 3)
    add_loops(parser)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="bytes of one object, a multiple of 4 each")
    options = parser.parse_args()
    seconds = 0.2
    if options.quick:
        options.rounds, options.sizes, seconds = 1, [100, 64 * KIB], 0.02

    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        teams = {"raw": stack.enter_context(Team("raw", 1))}
        chosen = options.loops or loops()[-1:]
        teams |= {loop: stack.enter_context(Team("fanstream", 1, loop=loop)) for loop in chosen}
        for size in options.sizes:
            work = Work(size, 2, WINDOW, tensors=1)
            cells = {name: partial(team.run, team.fit(work, seconds)) for name, team in teams.items()}
            runs = take_turns(options.rounds, cells)
            for cell, found in runs.items():
                row = {"size": size, "window": WINDOW, **named(cell)}
                row["us_per_object"] = spread(1e6 / run.replies_per_s for run in found)
                rows.append(row | describe(found, runs["raw"], "gb_per_s"))
    say("object_size", options, rows)


if __name__ == "__main__":
    main()
