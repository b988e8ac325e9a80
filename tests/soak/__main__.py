"""Stream for a long time between real processes, and see what grows: ``python -m tests.soak --minutes 60``.

A hub, an opener and three sites stream small objects, bulk data and files; streams are aborted, links are cut and reset
through a proxy, one site is killed or ended and comes back. Prints one JSON line, and fails where memory, descriptors
or tasks grow, or where a stream does not end as it has to.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any, Final

import anyio

from fanstream.testing import FaultProxy
from tests.processes.lab import Lab, lab

from .slope import Sample, verdict

SITES: Final = ("site-1", "site-2", "site-3")
WATCHED: Final = ("hub", "opener", "site-1", "site-2")
"""Those that are never started anew."""
_LINKS: Final = 1 + len(SITES)
_MIB: Final = 1024 * 1024
_QUIET: Final = 30.0  # seconds for all streams and links to be as before
_ROUND: Final = 180.0


class Soak:
    """One run.

    Args:
        made: the processes.
        proxies: before the hub, one for each site.
        seed: of what happens.
    """

    def __init__(self, made: Lab, proxies: dict[str, FaultProxy], seed: int) -> None:
        self._lab = made
        self._proxies = proxies
        self._rng = random.Random(seed)
        self._run = 0
        self._began = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.samples: dict[str, list[Sample]] = {name: [] for name in WATCHED}
        self.objections: list[str] = []

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self._began

    async def round(self) -> None:
        """Do one of everything, and take samples."""
        with anyio.fail_after(_ROUND):
            await self._stream("small", objects=400, size=self._rng.choice([0, 100, 5000]), window=16)
            await self._stream("bulk", objects=4, size=8 * _MIB, window=2)
            await self._file()
            async with anyio.create_task_group() as tg:  # side by side
                tg.start_soon(lambda: self._stream("small", objects=200, size=1000, window=4))
                tg.start_soon(lambda: self._stream("bulk", objects=2, size=3 * _MIB, window=1))
            await self._stream("aborted", objects=10_000, size=10_000, window=8, abort_after=0.1)
            await self._cut()
            if self.counts["cuts"] % 5 == 0:
                await self._restart()
            await self._sample()
            self.counts["rounds"] += 1

    async def _stream(self, kind: str, *, disturbed: bool = False, **how: Any) -> None:
        self._run += 1
        run = self._run
        opener = self._lab.processes["opener"]
        await opener.tell("stream", run=run, targets=list(SITES), timeout=20.0, **how)
        self._judge(kind, await opener.result(run), disturbed=disturbed or kind == "aborted")

    async def _file(self) -> None:
        self._run += 1
        path = self._lab.folder / "sent"
        path.write_bytes(os.urandom(self._rng.randrange(3 * _MIB)))
        opener = self._lab.processes["opener"]
        await opener.tell("file", run=self._run, targets=list(SITES), path=str(path))
        self._judge("file", await opener.result(self._run), disturbed=False)

    def _judge(self, kind: str, result: dict[str, Any], *, disturbed: bool) -> None:
        self.counts[f"{kind} streams"] += 1
        if result.get("rc") == "cancelled":
            return
        for site, account in result.get("sites", {}).items():
            total = sum(number for outcome, number in account.items() if outcome != "rc")
            if total != result["objects"]:
                self.objections.append(f"{kind}: {site} has {account} for {result['objects']} objects")
        self.counts["objects"] += result.get("objects", 0) * len(SITES)
        if not disturbed and not result.get("complete"):
            self.objections.append(f"{kind}: undisturbed, and {result}")

    async def _cut(self) -> None:
        """Break one site's link in the middle of a stream."""
        site = self._rng.choice(SITES)
        connection = self._proxies[site].connections[-1]

        async def break_it() -> None:
            at = connection.up.carried + self._rng.randrange(20_000)
            while connection.alive and connection.up.carried < at:  # noqa: ASYNC110 - bytes have no event
                await anyio.sleep(0.002)
            self._rng.choice([connection.cut, connection.reset])()

        async with anyio.create_task_group() as tg:
            tg.start_soon(break_it)
            await self._stream("cut", objects=2000, size=100, window=8, disturbed=True)
            tg.cancel_scope.cancel()
        self.counts["cuts"] += 1
        self._proxies[site].connections[:-1] = []

    async def _restart(self) -> None:
        site = self._lab.processes["site-3"]
        if self._rng.random() < 0.5:
            await site.kill()
        else:
            await site.aclose()
        await self._lab.start("site-3", connect=self._proxies["site-3"].address)
        self.counts["restarts"] += 1

    async def _sample(self) -> None:
        """Wait until nothing is under way, and note what each process holds."""
        hub = self._lab.processes["hub"]
        with anyio.fail_after(_QUIET):
            while True:
                held = await hub.statistics()
                if (held["links"], held["legs"]) == (_LINKS, 0):
                    break
                await anyio.sleep(0.1)
        for name in WATCHED:
            held = await self._lab.processes[name].statistics()
            self.samples[name].append(Sample(self.seconds, held["resident"], held["descriptors"], held["tasks"]))
        for process in self._lab.processes.values():
            process.heard.clear()


async def soak(minutes: float, seed: int) -> int:
    """Run for so long; return 1 if anything is not as promised."""
    async with lab("--unsynced", "--quiet", sites=0) as made, AsyncExitStack() as stack:
        proxies: dict[str, FaultProxy] = {}
        for site in SITES:
            proxies[site] = await stack.enter_async_context(FaultProxy(made.address))
            await made.start(site, connect=proxies[site].address)
        run = Soak(made, proxies, seed)
        while run.seconds < minutes * 60:
            await run.round()
            if len(run.objections) > 20:
                break
        figures, objections = verdict(run.samples, run.seconds)
        objections = run.objections + objections
        outcome = {
            "minutes": round(run.seconds / 60, 1),
            **run.counts,
            "processes": figures,
            "failed": objections,
        }
        sys.stdout.write(json.dumps(outcome) + "\n")
        for process in made.processes.values():
            await process.aclose()
    return min(len(objections), 1)


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    return anyio.run(soak, arguments.minutes, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
