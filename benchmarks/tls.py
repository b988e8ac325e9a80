"""How near do large objects come to blocking ``ssl`` sockets, over TLS 1.3?

One array of 64 MiB, and arrays of 1 MiB with a window of 16, to 1 and 4 sites, on each event loop; rates are over all
sites. In each round the raw sockets move as many bytes to as many sites with the same certificates and cipher, which
all of them leave to OpenSSL. Warmed up as ``large_objects`` is. Where ``aiofastnet`` is installed, with and without it.
"""

from __future__ import annotations

from importlib.util import find_spec

from .harness.against import compare_loops
from .harness.certificates import certificates
from .harness.figures import MIB, add_loops, add_rounds, add_sites, arguments, loops, say
from .peers import Work

OBJECTS = {
    "64 MiB array": Work(64 * MIB, 4, tensors=1),
    "1 MiB arrays, window 16": Work(MIB, 256, window=16, tensors=1),
}
QUICK = {"1 MiB arrays, window 16": Work(MIB, 16, window=16, tensors=1)}


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser)
    add_loops(parser)
    add_sites(parser, 1, 4)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.sites = 1, [2]
    objects = QUICK if options.quick else OBJECTS
    works = [(name, work.to(sites)) for name, work in objects.items() for sites in options.sites]
    ways = {"": {"FANSTREAM_BENCH_TLS": "asyncio"}}
    if find_spec("aiofastnet"):
        ways["aiofastnet"] = {}
    with certificates(max(options.sites)) as env:
        rows = compare_loops(
            works, options.loops or loops(), rounds=options.rounds, transport="tls", env=env, ways=ways
        )
    say("tls", options, rows, distributions=["aiofastnet"])


if __name__ == "__main__":
    main()
