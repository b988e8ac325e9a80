"""How long does ``import fanstream`` take, and what does it load?

Each import is a new process, with its byte code in the cache; the clock starts when the interpreter is up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from .harness.figures import MIB, add_rounds, arguments, say, spread

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

    # What it stands on is imported too, to see whose time it is.
    modules = ["fanstream", "pydantic", "anyio", "msgspec", "asyncio"]
    for module in modules:
        probe(module)  # fills the cache
    found: dict[str, list[tuple[float, list[str], int]]] = {module: [] for module in modules}
    for _ in range(options.rounds):
        for module in modules:
            found[module].append(probe(module))

    rows: list[dict[str, Any]] = []
    for module, probes in found.items():
        _, loaded, peak = probes[-1]
        rows.append(
            {
                "import": module,
                "ms": spread(seconds * 1000 for seconds, _, _ in probes),
                "modules": len(loaded),
                "heavy": [name for name in HEAVY if name in loaded],
                "peak_mib": round(peak / MIB, 1),
            }
        )
    say("start_up", options, rows, distributions=["pydantic"])


if __name__ == "__main__":
    main()
