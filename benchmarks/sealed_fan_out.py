"""How near do sealed streams come to the same ones in the clear?

1 GiB in two objects of 100 arrays each, and arrays of 1 MiB with a window of 16, to 4 sites over TCP: sealed once, and
opened at every site. Opener and sites are a process each and share the cores, so with 2 of these it is CPU time that
counts: 1 part for sealing, and 4 for opening. Warmed up as ``large_objects`` is.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec

from .harness.certificates import certificates
from .harness.figures import GIB, MIB, add_rounds, add_sites, arguments, say, spread
from .harness.teams import Team, cost, ratios, take_turns
from .peers import Work

OBJECTS = {
    "100 arrays, 512 MiB": Work(GIB // 800 * 400, 2, tensors=100),
    "1 MiB arrays, window 16": Work(MIB, 256, window=16, tensors=1),
}
QUICK = {"1 MiB arrays, window 16": Work(MIB, 8, window=4, tensors=1)}


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser, 3)
    add_sites(parser, 4)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.sites = 1, [1]
    suites = {"not sealed": "", **({"pq": "pq"} if find_spec("blake3") else {}), "pq-sha256": "pq-sha256"}
    rows = []
    for name, work in (QUICK if options.quick else OBJECTS).items():
        for sites in options.sites:
            with ExitStack() as stack:
                env = stack.enter_context(certificates(sites))
                teams = {
                    cell: stack.enter_context(Team("fanstream", sites, env={**env, "FANSTREAM_BENCH_SUITE": suite}))
                    for cell, suite in suites.items()
                }
                work = Work(work.size, work.count, work.window, sites, work.tensors)
                cells = {cell: partial(team.run, work) for cell, team in teams.items()}
                take_turns(1, cells)  # warms up
                runs = take_turns(options.rounds, cells)
            rows += [
                {
                    "object": name,
                    "sites": sites,
                    "suite": cell,
                    "gb_per_s": spread(run.gb_per_s for run in found),
                    "of_plain": spread(ratios(found, runs["not sealed"], "gb_per_s")),
                    **cost(found),
                }
                for cell, found in runs.items()
            ]
    say("sealed_fan_out", options, rows, distributions=["cryptography", "blake3"])


if __name__ == "__main__":
    main()
