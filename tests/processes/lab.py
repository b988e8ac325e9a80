"""Drives worker processes: starts, kills and freezes them, and reads what they have logged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

_ROOT: Final = Path(__file__).parents[2]
_START: Final = 60.0  # seconds for a process to import and listen, on a busy machine
_END: Final = 15.0


class Process:
    """One worker.

    Attributes:
        name: its site.
        heard: all that it has said, in order.
    """

    def __init__(self, lab: Lab, name: str, life: int, process: anyio.abc.Process) -> None:
        self._lab = lab
        self._process = process
        self._news = anyio.Event()
        self._ended = False
        self.name = name
        self.life = life
        self.heard: list[dict[str, Any]] = []

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        lines = BufferedByteReceiveStream(self._process.stdout)
        try:
            while True:
                self.heard.append(json.loads(await lines.receive_until(b"\n", 1 << 20)))
                self._tell()
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.ClosedResourceError, anyio.BrokenResourceError):
            self._ended = True
            self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()

    async def tell(self, do: str, **how: Any) -> None:
        """Send a command."""
        assert self._process.stdin is not None
        await self._process.stdin.send(json.dumps({"do": do, **how}).encode() + b"\n")

    async def hear(
        self, key: str, condition: Callable[[Any], bool] = bool, *, after: int = 0, seconds: float = _START
    ) -> Any:
        """Return the first thing said under *key* that meets *condition*, from the line *after* on; wait for it.

        Raises:
            RuntimeError: the process has ended, and had not said it.
            TimeoutError: it was silent for too long.
        """
        position = after
        with anyio.fail_after(seconds):
            while True:
                for line in self.heard[position:]:
                    position += 1
                    if key in line and condition(line[key]):
                        return line[key]
                if self._ended:
                    raise RuntimeError(f"{self.name} ended without saying {key!r}; its last words: {self.heard[-5:]}")
                await self._news.wait()

    def said(self, key: str, condition: Callable[[Any], bool]) -> bool:
        """Whether it has said something under *key* that meets *condition*."""
        return any(key in line and condition(line[key]) for line in self.heard)

    async def result(self, run: int, *, seconds: float = _START) -> dict[str, Any]:
        """Wait for a stream's result."""
        found: dict[str, Any] = await self.hear("result", lambda told: told["run"] == run, seconds=seconds)
        return found

    async def statistics(self) -> dict[str, Any]:
        """Ask what the process holds."""
        before = len(self.heard)
        await self.tell("statistics")
        found: dict[str, Any] = await self.hear("statistics", after=before)
        return found

    async def kill(self) -> None:
        """Kill it: it cannot clean up, nor say anything."""
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    def freeze(self) -> None:
        """Stop it: its kernel still answers for it, but it does nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    async def aclose(self) -> None:
        """End it, by force where it does not end by itself."""
        if self._process.returncode is not None:
            return
        assert self._process.stdin is not None
        self.thaw()
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self._process.stdin.aclose()
        with anyio.move_on_after(_END):
            await self._process.wait()
        if self._process.returncode is None:
            await self.kill()


class Lab:
    """A hub, an opener and sites, in processes of their own, and a folder for their logs and their hub's socket."""

    def __init__(self, folder: Path, tasks: anyio.abc.TaskGroup, arguments: list[str], listen: str | None) -> None:
        self._tasks = tasks
        self._arguments = arguments
        self._lives: Counter[str] = Counter()
        self.folder = folder
        self.processes: dict[str, Process] = {}
        self.address = listen or f"unix://{folder / 'hub'}"  # a path is free again once its process was killed

    async def start(self, name: str, *arguments: str, connect: str | None = None) -> Process:
        """Start a worker, or the next life of one; return once it is ready."""
        where = ["--listen", self.address] if name == "hub" else ["--connect", connect or self.address]
        life = self._lives[name]
        self._lives[name] += 1
        command = [
            sys.executable, "-m", "tests.processes.worker", "--name", name, "--life", str(life),
            "--log", str(self.folder / f"{name}.log"), *where, *self._arguments, *arguments,
        ]  # fmt: skip
        opened = await anyio.open_process(command, cwd=_ROOT, stderr=subprocess.DEVNULL, env=dict(os.environ))
        process = self.processes[name] = Process(self, name, life, opened)
        self._tasks.start_soon(process._listen)
        addresses = await process.hear("ready", lambda _addresses: True)
        if name == "hub":
            self.address = addresses[0]
        return process

    def logged(self, name: str, key: str) -> list[dict[str, Any]]:
        """Return what all lives of a worker have logged under *key*; the last line may be torn."""
        path = self.folder / f"{name}.log"
        found = []
        for line in path.read_text().split("\n")[:-1] if path.exists() else []:
            entry = json.loads(line)
            if key in entry:
                found.append(entry)
        return found


@asynccontextmanager
async def lab(*arguments: str, sites: int = 2, listen: str | None = None) -> AsyncIterator[Lab]:
    """Start a hub, an opener and sites; end them afterwards, whatever happened.

    Args:
        arguments: of every worker.
        sites: how many, named ``site-1`` and so on.
        listen: the hub's address; a Unix socket in the lab's folder when None.
    """
    failure: Exception | None = None
    with TemporaryDirectory(prefix="lab-") as folder:
        async with anyio.create_task_group() as tg:
            made = Lab(Path(folder), tg, list(arguments), listen)
            try:
                await made.start("hub")
                async with anyio.create_task_group() as starting:
                    for name in ("opener", *(f"site-{number}" for number in range(1, sites + 1))):
                        starting.start_soon(made.start, name)
                yield made
            except Exception as exc:  # noqa: BLE001 - raised again below, as itself and in no group
                failure = exc
            finally:
                with anyio.CancelScope(shield=True):
                    async with anyio.create_task_group() as ending:
                        for process in made.processes.values():
                            ending.start_soon(process.aclose)
                tg.cancel_scope.cancel()
    if failure is not None:
        raise failure
