"""What does an object of 256 MiB cost in memory while it is in flight, beyond the object itself?

New processes for each number of sites, warmed up with small objects. The opener holds the object before it is sent, so
all of its growth is the engine's; a site's growth less the object is. The object is then sent a second time, which
shows whether what the first has left is used again.
"""

from __future__ import annotations

from typing import Any

from .harness.figures import MIB, add_loops, add_rounds, add_sites, arguments, loops, say, spread
from .harness.teams import Run, Team
from .peers import Work


def growth(team: Team, work: Work) -> dict[str, float]:
    """MiB that the opener, and the site that grew most, held beyond the object, at the peak of one run."""
    team.run(Work(100, 200, 16, work.sites))
    team.prepare(work)
    before = {"opener": team.opener.resident()}
    before |= {f"site-{index + 1}": meter.resident() for index, meter in enumerate(team.sites)}

    def beyond(run: Run) -> dict[str, float]:
        grown = {name: (run.peaks[name] - held) / MIB for name, held in before.items()}
        opener = grown.pop("opener")
        return {"opener": opener, "site": max(grown.values()) - work.size / MIB}

    first, second = beyond(team.run(work)), beyond(team.run(work))
    return {**first, **{f"{name}_again": value for name, value in second.items()}}


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser, 3)
    add_loops(parser)
    add_sites(parser, 1, 2, 4, 8)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.sites = 1, [1, 2]
    size = (4 if options.quick else 256) * MIB

    rows: list[dict[str, Any]] = []
    for loop in options.loops or loops()[-1:]:
        for sites in options.sites:
            grown: dict[str, list[float]] = {}
            for _ in range(options.rounds):
                with Team("fanstream", sites, loop=loop) as team:
                    for name, value in growth(team, Work(size, 1, 1, sites, tensors=1)).items():
                        grown.setdefault(f"{name}_growth_mib", []).append(value)
            row = {"object_mib": size // MIB, "sites": sites, "loop": loop}
            rows.append(row | {name: spread(values) for name, values in grown.items()})
    say("memory", options, rows)


if __name__ == "__main__":
    main()
