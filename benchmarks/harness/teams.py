"""Teams: one peer's opener and its sites, each in a process of its own, told what to do over pipes."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import IO, Any, Final, Self

from ..peers import Work
from .figures import GIB, KIB, MIB, spread
from .usage import Meter

# An nvflare process needs seconds of CPU to start, and eight of them share the cores.
START_TIMEOUT: Final = 120.0
RUN_TIMEOUT: Final = 90.0
_STARTING: Final = 8  # sites at once: 200 that start together leave the opener no core to answer their handshakes with
# Objects from here on are data: what counts is bytes. Below, what counts is objects.
_BULK: Final = 64 * KIB


class Worker:
    """One process that speaks JSON lines on its standard output, and ends when its standard input closes.

    Args:
        module: what it runs.
        arguments: its command line.
        env: environment variables that it has beside this process's.
    """

    def __init__(self, module: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self._what = " ".join((module, *arguments))
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(env or {})},
        )
        self.meter = Meter(self._process.pid)

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe

    def say(self, line: Mapping[str, Any]) -> None:
        """Send one line."""
        pipe = self._pipe(self._process.stdin)
        pipe.write(json.dumps(line).encode() + b"\n")
        pipe.flush()

    def hear(self, timeout: float) -> dict[str, Any]:
        """Receive one line.

        Raises:
            TimeoutError: nothing came within *timeout* seconds.
            RuntimeError: the process has ended; its standard error says why.
        """
        pipe = self._pipe(self._process.stdout)
        # A worker says one line at a time, so nothing more than that is ever in the pipe's buffer.
        if not select.select([pipe], [], [], timeout)[0]:
            raise TimeoutError(f"{self._what}: silent for {timeout} s")
        line = pipe.readline()
        if not line:
            raise RuntimeError(f"{self._what}: ended with {self._process.wait()}")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def close(self) -> None:
        """End the process, by force where closing its input does not."""
        with suppress(BrokenPipeError):  # it has ended already, and what was last said to it was never read
            self._pipe(self._process.stdin).close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe(self._process.stdout).close()


@dataclass(frozen=True, slots=True)
class Run:
    """One piece of work done once.

    Attributes:
        work: what was done.
        seconds: from the first byte sent to the last reply gathered, on the opener's clock.
        cpu: CPU seconds of the opener, of what it started beside itself, and of each site that took part.
        peaks: the most bytes that each of these held meanwhile.
    """

    work: Work
    seconds: float
    cpu: Mapping[str, float]
    peaks: Mapping[str, int]

    @property
    def gb_per_s(self) -> float:
        """1e9 bytes per second, over all sites."""
        return self.work.moved / self.seconds / 1e9

    @property
    def replies_per_s(self) -> float:
        """Objects per second that were sent and answered, over all sites."""
        return self.work.count * self.work.sites / self.seconds


class Team:
    """The processes of one peer. A context manager.

    Args:
        peer: its name in ``benchmarks.peers.PEERS``.
        sites: how many site processes to start; a piece of work may use fewer.
        loop: the event loop of its processes; None means the one that is best for the peer.
        transport: ``"tcp"``, or ``"unix"`` or ``"tls"`` for those peers that can.
        env: environment variables for its processes.
    """

    def __init__(
        self,
        peer: str,
        sites: int,
        *,
        loop: str | None = None,
        transport: str = "tcp",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._peer = peer
        self._sites = sites
        self._options = [f"--transport={transport}", *([f"--loop={loop}"] if loop else [])]
        self._env = env
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._opener = self._start(stack, "opener", f"--sites={self._sites}")
            hello = self._opener.hear(START_TIMEOUT)
            sites: list[Worker] = []
            for index in range(self._sites):
                sites.append(self._start(stack, "site", f"--index={index}", f"--address={hello['address']}"))
                if index >= _STARTING:
                    sites[index - _STARTING].hear(START_TIMEOUT)
            for site in sites[-_STARTING:]:
                site.hear(START_TIMEOUT)
            self._opener.hear(START_TIMEOUT)
            self.opener = self._opener.meter
            self.sites = [site.meter for site in sites]
            self.helpers = [Meter(pid) for pid in hello["helpers"]]
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack, role: str, *arguments: str) -> Worker:
        worker = Worker("benchmarks.peers", self._peer, role, *arguments, *self._options, env=self._env)
        stack.callback(worker.close)
        return worker

    def prepare(self, work: Work) -> None:
        """Have the opener make the object, so that ``run`` finds it in memory that has been touched."""
        self._opener.say({"prepare": asdict(work)})
        self._opener.hear(RUN_TIMEOUT)

    def run(self, work: Work) -> Run:
        """Do a piece of work: its object out to its sites so many times, and every reply gathered."""
        self.prepare(work)
        meters = {
            "opener": self.opener,
            **{f"helper-{number + 1}": meter for number, meter in enumerate(self.helpers)},
            **{f"site-{number + 1}": meter for number, meter in enumerate(self.sites[: work.sites])},
        }
        for meter in meters.values():
            meter.reset_peak()
        before = {name: meter.cpu() for name, meter in meters.items()}
        self._opener.say({"run": asdict(work)})
        seconds = self._opener.hear(RUN_TIMEOUT)["seconds"]
        cpu = {name: meter.cpu() - before[name] for name, meter in meters.items()}
        return Run(work, seconds, cpu, {name: meter.peak() for name, meter in meters.items()})

    def fit(self, work: Work, seconds: float) -> Work:
        """Warm up, and return the same work so many times over, or less of it, that it takes about *seconds*."""
        self.run(work)
        while (run := self.run(work)).seconds < seconds / 4:
            work = replace(work, count=work.count * 4)
        return replace(work, count=max(1, int(work.count * seconds / run.seconds)))


def take_turns(rounds: int, cells: Mapping[str, Callable[[], Run]]) -> dict[str, list[Run]]:
    """Run every cell once, then every cell again, and so on: what disturbs the machine then disturbs them all.

    Returns:
        The runs of each cell; those with the same index are of the same round.
    """
    runs: dict[str, list[Run]] = {name: [] for name in cells}
    for _ in range(rounds):
        for name, cell in cells.items():
            runs[name].append(cell())
    return runs


def ratios(runs: Sequence[Run], others: Sequence[Run], figure: str) -> Iterable[float]:
    """How *runs* compare with those of the same rounds: the figure of each by that of the other."""
    return (getattr(run, figure) / getattr(other, figure) for run, other in zip(runs, others, strict=True))


def describe(runs: Sequence[Run], raws: Sequence[Run], figure: str) -> dict[str, Any]:
    """What is said of some runs: a figure, its ratio to the raw socket's in the same round, and what they cost."""
    return {
        figure: spread(getattr(run, figure) for run in runs),
        "of_raw": spread(ratios(runs, raws, figure)),
        **cost(runs),
    }


def named(cell: str) -> dict[str, Any]:
    """The peer and loop of a cell that is either the raw socket or fanstream on a loop."""
    return {"peer": "raw", "loop": None} if cell == "raw" else {"peer": "fanstream", "loop": cell}


def cost(runs: Sequence[Run]) -> dict[str, Any]:
    """What runs cost each process: CPU seconds, over all the runs, and peak memory.

    CPU is per GiB that the process moved where objects are large, and per thousand replies that it saw where they are
    small: the opener counts for all sites, a site for itself.
    """
    bulk = runs[0].work.size >= _BULK
    unit = "cpu_s_per_gib" if bulk else "cpu_s_per_1000_replies"
    done = sum(run.work.count * (run.work.size / GIB if bulk else 1 / 1000) for run in runs)
    sites = runs[0].work.sites
    cpu, peaks = {}, {}
    for name in runs[0].cpu:
        share = done if name.startswith("site-") else done * sites
        cpu[name] = float(f"{sum(run.cpu[name] for run in runs) / share:.3g}")
        peaks[name] = round(max(run.peaks[name] for run in runs) / MIB, 1)
    return {unit: cpu, "peak_mib": peaks}
