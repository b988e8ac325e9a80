"""How long do ``import fanstream`` and the start of the first engine take, and what do they load?

Each is a new process, with its byte code in the cache; the clock starts when the interpreter is up. What fanstream
stands on is imported too: the time beyond asyncio, anyio and msgspec, which it cannot do without, is the difference to
theirs in the same round. The first engine needs its settings, and so pydantic.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from .harness.figures import MIB, add_rounds, arguments, say, spread

IMPORT = "import fanstream"
BASE = "import asyncio, anyio, anyio.lowlevel, msgspec"
ENGINE = """import asyncio, fanstream
async def main():
    async with fanstream.StreamEngine("site-1"):
        pass
asyncio.run(main())"""
STATEMENTS = {
    IMPORT: IMPORT,
    "import fanstream, and run an engine": ENGINE,
    BASE: BASE,
    "from pydantic import BaseModel": "from pydantic import BaseModel",
    "import asyncio": "import asyncio",
}
HEAVY = ["cryptography", "numpy", "pyarrow", "pydantic", "ssl", "torch", "trio", "uvloop"]

PROBE = """
import json, sys, time
before = set(sys.modules)
started = time.perf_counter()
{statement}
seconds = time.perf_counter() - started
loaded = sorted(set(sys.modules) - before)
import resource
print(json.dumps([seconds, loaded, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def probe(statement: str) -> tuple[float, list[str], int]:
    """Run a statement in a new process.

    Returns:
        The seconds it took, the names of the modules it loaded, and the process's peak memory in bytes.
    """
    command = [sys.executable, "-c", PROBE.format(statement=statement)]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}  # or each process would compile anew
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, loaded, peak = json.loads(done.stdout)
    return seconds, loaded, peak


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser, 11)
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1

    for statement in STATEMENTS.values():
        probe(statement)  # fills the cache
    found: dict[str, list[tuple[float, list[str], int]]] = {name: [] for name in STATEMENTS}
    for _ in range(options.rounds):
        for name, statement in STATEMENTS.items():
            found[name].append(probe(statement))

    rows: list[dict[str, Any]] = []
    for name, probes in found.items():
        _, loaded, peak = probes[-1]
        row: dict[str, Any] = {"statement": name, "ms": spread(seconds * 1000 for seconds, _, _ in probes)}
        if name == IMPORT:
            pairs = zip(probes, found[BASE], strict=True)
            row["ms_beyond_base"] = spread((own[0] - base[0]) * 1000 for own, base in pairs)
        row |= {"modules": len(loaded), "heavy": [name for name in HEAVY if name in loaded]}
        rows.append(row | {"process_mib": round(peak / MIB, 1)})
    say("start_up", options, rows, distributions=["pydantic"])


if __name__ == "__main__":
    main()
