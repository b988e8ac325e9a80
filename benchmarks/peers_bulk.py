"""How fast do objects of 1 MiB go to 1 and 4 sites, by fanstream and by each peer?

Window 16, every reply gathered, rates over all sites, over TCP. All of it twice: with the C library as installed, and
with ``MALLOC_MMAP_THRESHOLD_`` and ``MALLOC_TRIM_THRESHOLD_`` raised, so that the memory of large messages is not given
back to the kernel and touched anew for each of them, which is what many a peer's time goes into.
"""

from __future__ import annotations

from typing import Any, Final

from .harness.against import add_peers, check, chosen_peers, compare, distributions
from .harness.figures import GIB, MIB, add_rounds, add_sites, arguments, say
from .peers import Work

MALLOC: Final = {
    "as installed": {},
    # 32 MiB is the most that glibc takes for the first; see mallopt(3), M_MMAP_THRESHOLD.
    "raised": {"MALLOC_MMAP_THRESHOLD_": str(32 * MIB), "MALLOC_TRIM_THRESHOLD_": str(GIB)},
}


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser, 4)
    add_sites(parser, 1, 4)
    add_peers(parser)
    parser.add_argument("--malloc", nargs="+", choices=MALLOC, default=list(MALLOC))
    options = parser.parse_args()
    seconds = 0.25
    if options.quick:
        options.rounds, options.sites, options.malloc, seconds = 1, [1], ["as installed"], 0.02
    peers = chosen_peers(options)
    works = [Work(MIB, 8, window=16, sites=sites, tensors=1) for sites in options.sites]
    rows: list[dict[str, Any]] = []
    for malloc in options.malloc:
        found = compare(peers, works, "gb_per_s", rounds=options.rounds, seconds=seconds, env=MALLOC[malloc])
        rows += [{"malloc": malloc, **row} for row in found]
    say("peers_bulk", options, rows, distributions=distributions(peers))
    check(rows)


if __name__ == "__main__":
    main()
