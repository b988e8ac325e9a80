"""How many objects of 100 bytes a second are sent and answered, by fanstream and by each peer?

Windows 1 and 64, to 1 and 8 sites, over TCP; each site's reply to each object counts. A peer without a window is
measured with window 1 alone.
"""

from __future__ import annotations

from .harness.against import add_peers, check, chosen_peers, compare, distributions
from .harness.figures import add_rounds, add_sites, arguments, say
from .peers import Work

SIZE = 100


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser, 4)
    add_sites(parser, 1, 8)
    add_peers(parser)
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 64])
    options = parser.parse_args()
    seconds = 0.25
    if options.quick:
        options.rounds, options.sites, seconds = 1, [2], 0.02
    peers = chosen_peers(options)
    works = [Work(SIZE, 10, window, sites) for window in options.windows for sites in options.sites]
    rows = compare(peers, works, "replies_per_s", rounds=options.rounds, seconds=seconds)
    say("peers_small", options, rows, distributions=distributions(peers))
    check(rows)


if __name__ == "__main__":
    main()
