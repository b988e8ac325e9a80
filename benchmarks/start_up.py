"""How long does ``import fanstream`` take, and what does it load?

Each import is a new process, with its byte code in the cache; the clock starts when the interpreter is up. What
fanstream stands on is imported too: the time beyond asyncio and pydantic, which it cannot do without, is the difference
to theirs in the same round.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from .harness.figures import MIB, add_rounds, arguments, say, spread

BASE = "asyncio, pydantic"
HEAVY = ["cryptography", "numpy", "pyarrow", "ssl", "torch", "trio", "uvloop"]

PROBE = """
import json, sys, time
before = set(sys.modules)
started = time.perf_counter()
import {module}
seconds = time.perf_counter() - started
loaded = sorted(set(sys.modules) - before)
import resource
print(json.dumps([seconds, loaded, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def probe(module: str) -> tuple[float, list[str], int]:
    """Import a module in a new process.

    Returns:
        The seconds it took, the names of the modules it loaded, and the process's peak memory in bytes.
    """
    command = [sys.executable, "-c", PROBE.format(module=module)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, loaded, peak = json.loads(done.stdout)
    return seconds, loaded, peak


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser, 11)
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1

    modules = ["fanstream", BASE, "pydantic", "anyio", "msgspec", "asyncio"]
    for module in modules:
        probe(module)  # fills the cache
    found: dict[str, list[tuple[float, list[str], int]]] = {module: [] for module in modules}
    for _ in range(options.rounds):
        for module in modules:
            found[module].append(probe(module))

    rows: list[dict[str, Any]] = []
    for module, probes in found.items():
        _, loaded, peak = probes[-1]
        row: dict[str, Any] = {"import": module, "ms": spread(seconds * 1000 for seconds, _, _ in probes)}
        if module == "fanstream":
            pairs = zip(probes, found[BASE], strict=True)
            row["ms_beyond_base"] = spread((own[0] - base[0]) * 1000 for own, base in pairs)
        row |= {"modules": len(loaded), "heavy": [name for name in HEAVY if name in loaded]}
        rows.append(row | {"process_mib": round(peak / MIB, 1)})
    say("start_up", options, rows, distributions=["pydantic"])


if __name__ == "__main__":
    main()
