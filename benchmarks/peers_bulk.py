"""How fast do arrays of 1 MiB and of 64 MiB go to 1 and 4 sites, by fanstream and by each peer?

Every reply gathered, rates over all sites, over TCP; float32, which the site has as a numpy array when it answers. The
window is 16 objects of 1 MiB, or 2 of 64 MiB, so that one is under way while the last is answered. Most peers carry
large objects best in pieces, each in those that suit it: an array then has memory of its own, which the next object is
put into, and the site answers when the last piece is there.

Those of 1 MiB twice: with the C library as installed, and with ``MALLOC_MMAP_THRESHOLD_`` and
``MALLOC_TRIM_THRESHOLD_`` raised, so that the memory of large messages is not given back to the kernel and touched anew
for each of them, which is what many a peer's time goes into. Blocks of 64 MiB are beyond what the thresholds can be
raised to.
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
SMALL: Final = Work(MIB, 8, window=16, tensors=1)
LARGE: Final = Work(64 * MIB, 1, window=2, tensors=1)


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser, 3)
    add_sites(parser, 1, 4)
    add_peers(parser)
    parser.add_argument("--malloc", nargs="+", choices=MALLOC, default=list(MALLOC))
    options = parser.parse_args()
    seconds = 0.25
    if options.quick:
        options.rounds, options.sites, options.malloc, seconds = 1, [1], ["as installed"], 0.02
    peers = chosen_peers(options)
    objects = {"as installed": [SMALL] if options.quick else [SMALL, LARGE], "raised": [SMALL]}
    rows: list[dict[str, Any]] = []
    for malloc in options.malloc:
        works = [work.to(sites) for work in objects[malloc] for sites in options.sites]
        found = compare(peers, works, "gb_per_s", rounds=options.rounds, seconds=seconds, env=MALLOC[malloc])
        rows += [{"malloc": malloc, **row} for row in found]
    say("peers_bulk", options, rows, distributions=distributions(peers))
    check(rows)


if __name__ == "__main__":
    main()
