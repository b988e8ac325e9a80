"""How near do large objects come to the rate of a raw socket, and how does that change with sites?

One array of 64 MiB, a model of 200 arrays that are 1 GiB in all (to 4 sites at most, for each holds all of it), and
arrays of 1 MiB with a window of 16, on each event loop; rates are over all sites. In each round the raw socket moves as
many bytes to as many sites, once for each object.

Memory that the kernel hands out for the first time costs more than the wire. The raw socket receives into one block,
which it touches once; the engine takes a block for each object in flight, and then uses those again. So every cell is
run once with the same sizes before the rounds begin. What the very first window of objects in new processes reached is
told apart, and is a single run.
"""

from __future__ import annotations

from collections.abc import Iterator

from .harness.against import compare_loops
from .harness.figures import GIB, MIB, add_loops, add_rounds, add_sites, arguments, loops, say
from .peers import Work

MODEL = Work(GIB // 800 * 800, 1, tensors=200)
OBJECTS = {
    "64 MiB array": Work(64 * MIB, 8, tensors=1),
    "200 arrays, 1 GiB": MODEL,
    "1 MiB arrays, window 16": Work(MIB, 512, window=16, tensors=1),
}
QUICK = {"1 MiB arrays, window 16": Work(MIB, 16, window=16, tensors=1)}
MOST_COPIES = 4  # of the model, for each of two event loops


def works(quick: bool, numbers: list[int]) -> Iterator[tuple[str, Work]]:
    """What is sent, and what it is called."""
    for name, work in (QUICK if quick else OBJECTS).items():
        for sites in numbers:
            if work is not MODEL or sites <= MOST_COPIES:
                yield name, work.to(sites)


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser)
    add_loops(parser)
    add_sites(parser, 1, 2, 4, 8)
    parser.add_argument("--transport", choices=("tcp", "unix"), default="tcp")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.sites = 1, [2]
    rows = compare_loops(
        works(options.quick, options.sites),
        options.loops or loops(),
        rounds=options.rounds,
        transport=options.transport,
    )
    say("large_objects", options, rows)


if __name__ == "__main__":
    main()
