"""One long stream whose link is killed again and again: ``python -m tests.processes.link_kills --gib 10 --kills 1000``.

The opener listens over TCP, the site dials it through a proxy, and each connection but the last is cut or reset after
so many bytes. Nothing may be lost and nothing may come twice. Prints one JSON line: among others, how many bytes were
sent again for each kill, which a window bounds.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import anyio

from fanstream.options import Limits
from fanstream.testing import Fault, FaultProxy, Faults

from .lab import lab

_MIB: Final = 1024 * 1024
_PATIENCE: Final = 3600.0  # seconds for one object, and for all of them


def kills(number: int, apart: int, seed: int) -> Iterator[Faults]:
    """Break connections by cuts and resets in turn, about *apart* bytes after they began."""
    rng = random.Random(seed)
    for index in range(number):
        after = rng.randrange(apart // 2, apart * 3 // 2)
        yield Faults(down=Fault(reset_after=after) if index % 2 else Fault(cut_after=after))


async def run(arguments: argparse.Namespace) -> int:
    """Stream it all; return 1 if anything did not hold."""
    size = int(arguments.object_mib * _MIB)
    objects = max(1, int(arguments.gib * 1024 * _MIB) // size)
    total = objects * size
    script = kills(arguments.kills, max(2, total // (arguments.kills + 1)), arguments.seed)
    async with lab("--unsynced", "--quiet", sites=0, listen="tcp://127.0.0.1:0") as made:
        opener = made.processes["hub"]
        async with FaultProxy(made.address, script) as proxy:
            site = await made.start("site-1", connect=proxy.address)
            began = time.monotonic()
            await opener.tell(
                "stream", run=1, targets=["site-1"], objects=objects, size=size, window=arguments.window,
                timeout=_PATIENCE, patience=_PATIENCE,
            )  # fmt: skip
            result = await opener.result(1, seconds=_PATIENCE)
            seconds = time.monotonic() - began
            held = {name: (await made.processes[name].statistics())["resident"] for name in ("hub", "site-1")}
            carried = sum(connection.down.carried for connection in proxy.connections)
            broken = sum(not connection.alive for connection in proxy.connections)
            await site.aclose()
        objections = _objections(made.logged("site-1", "consumed"), objects, result)
    outcome: dict[str, Any] = {
        "gib": round(total / 1024 / _MIB, 2),
        "objects": objects,
        "kills": broken,
        "seconds": round(seconds, 1),
        "mib_per_s": round(total / _MIB / seconds, 1),
        "sent_again_mib_per_kill": round((carried - total) / _MIB / max(1, broken), 2),
        "window_mib": Limits().window // _MIB,
        "resident_mib": {name: round(resident / _MIB) for name, resident in held.items()},
        "result": result["rc"],
        "failed": objections,
    }
    sys.stdout.write(json.dumps(outcome) + "\n")
    return min(1, len(objections))


def _objections(consumed: list[dict[str, Any]], objects: int, result: dict[str, Any]) -> list[str]:
    """Say what does not hold."""
    found: list[str] = []
    numbers = [entry["consumed"][1] for entry in consumed]
    if not all(entry["whole"] for entry in consumed):
        found.append("damaged objects were consumed")
    if len(set(numbers)) != len(numbers):
        found.append(f"{len(numbers) - len(set(numbers))} objects were consumed twice")
    if set(numbers) != set(range(objects)):
        found.append(f"{objects - len(set(numbers))} objects were lost")
    if numbers != sorted(numbers):
        found.append("objects were consumed out of their order")
    if not result.get("complete"):
        found.append(f"the stream is not complete: {result}")
    return found


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.processes.link_kills", description=__doc__)
    parser.add_argument("--gib", type=float, default=10.0)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--object-mib", type=float, default=4.0)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    return anyio.run(run, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
