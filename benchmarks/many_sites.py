"""What does an opener with 200 sites cost, where each site is a process of its own, over TLS 1.3?

All on one machine, so the cores are shared by all of them, and what is told of time is the machine's; memory and the
opener's CPU time are the engine's. Objects of 100 bytes with windows of 1 and 16, and arrays of 1 MiB. Each row
tells how long it took until all processes had started and were linked, and what memory a site has then.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from .harness.certificates import certificates
from .harness.figures import MIB, add_loops, add_rounds, add_sites, arguments, loops, say, spread
from .harness.teams import Team, cost
from .peers import Work

WORKS = {
    "100 bytes": Work(100, 200),
    "100 bytes, window 16": Work(100, 800, window=16),
    "1 MiB array, window 4": Work(MIB, 8, window=4, tensors=1),
}


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser, 3)
    add_loops(parser)
    add_sites(parser, 200)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.sites = 1, [2]

    rows: list[dict[str, Any]] = []
    for loop in options.loops or loops()[-1:]:
        for sites in options.sites:
            with certificates(sites) as env:
                started = time.perf_counter()
                with Team("fanstream", sites, loop=loop, transport="tls", env=env) as team:
                    linked = time.perf_counter() - started
                    held = [meter.resident() / MIB for meter in team.sites]
                    for name, work in WORKS.items():
                        work = replace(work, sites=sites, count=4 if options.quick else work.count)
                        team.run(work.first())
                        runs = [team.run(work) for _ in range(options.rounds)]
                        rows.append(
                            {
                                "sites": sites,
                                "loop": loop,
                                "object": name,
                                "linked_s": round(linked, 1),
                                "site_mib": spread(held),
                                "us_per_object_and_site": spread(1e6 / run.replies_per_s for run in runs),
                                **cost(runs),
                            }
                        )
    say("many_sites", options, rows)


if __name__ == "__main__":
    main()
