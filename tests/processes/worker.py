"""One engine in a process of its own, which a driver tells what to do: JSON lines in, JSON lines out.

It takes files on ``rig/files``, consumes what comes on ``rig/objects``, and writes each effect to an append-only log,
synced before the reply leaves; as an opener it logs each reply likewise. So what is in the logs of a process that was
killed has happened.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.abc

from fanstream import (
    ConsumerFactory,
    EngineSettings,
    FLContext,
    ObjectConsumer,
    ObjectProducer,
    ReturnCode,
    Shareable,
    StreamContext,
    StreamEngine,
    StreamOptions,
    StreamResult,
    make_reply,
)
from fanstream.streamers import ReceivedFile, register_files, stream_file

CHANNEL: Final = "rig"
TOPIC: Final = "objects"
FILES: Final = "files"
_PIECE: Final = bytes(range(251)) * 4200  # about 1 MiB, of a period that no size has
_LONGEST_LINE: Final = 1024 * 1024


def content(n: int, size: int) -> bytes:
    """Return the data of object *n*, *size* bytes that differ from those of its neighbours."""
    start = n % 251
    return (_PIECE[start:] + _PIECE * (size // len(_PIECE) + 1))[:size]


class Log:
    """An append-only log of what has happened.

    Args:
        path: of the file.
        life: which of this name's processes writes it.
        sync: whether each line is on the disk before ``write`` returns.
    """

    def __init__(self, path: Path, life: int, *, sync: bool) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._life = life
        self._sync = sync

    def write(self, **what: Any) -> None:
        """Add one line."""
        os.write(self._file, json.dumps({**what, "life": self._life}).encode() + b"\n")
        if self._sync:
            os.fsync(self._file)


def say(**what: Any) -> None:
    """Tell the driver."""
    os.write(sys.stdout.fileno(), json.dumps(what).encode() + b"\n")


class Consumers(ConsumerFactory):
    """Consumes with a log."""

    def __init__(self, log: Log, *, quiet: bool) -> None:
        self.log = log
        self.quiet = quiet
        self.work = 0.0

    async def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        return LoggingConsumer(self)


class LoggingConsumer(ObjectConsumer):
    """Checks each object, logs it, and answers with its number."""

    def __init__(self, factory: Consumers) -> None:
        self._factory = factory

    async def consume(
        self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> tuple[bool, Shareable]:
        factory = self._factory
        run, n = stream_ctx["run"], shareable["n"]
        if factory.work:
            await anyio.sleep(factory.work)
        whole = zlib.crc32(shareable["data"]) == shareable["crc"]
        factory.log.write(consumed=[run, n], whole=whole)
        if not factory.quiet:
            say(consumed=[run, n])
        reply = make_reply(ReturnCode.OK)
        reply["n"] = n
        return True, reply

    async def finalize(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        self._factory.log.write(ended=stream_ctx["run"], rc=stream_ctx["__RC__"])
        say(ended=stream_ctx["run"], rc=stream_ctx["__RC__"])


class LoggedNumbers(ObjectProducer):
    """Sends numbered objects, and logs the replies."""

    def __init__(self, log: Log, run: int, objects: int, size: int, timeout: float) -> None:
        self._log = log
        self._run = run
        self._objects = objects
        self._size = size
        self._timeout = timeout
        self._made = 0
        self._judged = 0

    async def seek(self, seq: int, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        self._made = self._judged = seq

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, float]:
        if self._made == self._objects:
            return None, 0
        n, self._made = self._made, self._made + 1
        data = content(n, self._size)
        return Shareable({"n": n, "data": data, "crc": zlib.crc32(data)}), self._timeout

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        n, self._judged = self._judged, self._judged + 1
        answers = {site: [reply.get_return_code(), reply.get("n")] for site, reply in replies.items()}
        self._log.write(replied=[self._run, n], answers=answers)
        return None


def statistics(engine: StreamEngine) -> dict[str, Any]:
    """Say what this process holds."""
    gc.collect()
    with Path("/proc/self/statm").open() as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "resident": resident,
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1,
        "tasks": len(asyncio.all_tasks()),
        "links": len(engine._links),
        "legs": sum(len(link.core.legs) for link in engine._links),
    }


class Worker:
    """Does what it is told.

    Args:
        engine: entered.
        log: what happens.
        consumers: of this engine.
        tasks: where streams run.
    """

    def __init__(self, engine: StreamEngine, log: Log, consumers: Consumers, tasks: anyio.abc.TaskGroup) -> None:
        self._engine = engine
        self._log = log
        self._consumers = consumers
        self._tasks = tasks

    def do(self, command: dict[str, Any]) -> None:
        """Begin what the driver has said."""
        handlers: dict[str, Callable[..., object]] = {
            "stream": lambda **told: self._tasks.start_soon(self._stream, told),
            "file": lambda **told: self._tasks.start_soon(self._file, told),
            "work": self._work,
            "unfinished": lambda: say(unfinished=[asdict(stream) for stream in self._engine.unfinished_streams()]),
            "statistics": lambda: say(statistics=statistics(self._engine)),
        }
        handlers[command.pop("do")](**command)

    def _work(self, seconds: float) -> None:
        self._consumers.work = seconds

    async def _stream(self, told: dict[str, Any]) -> None:
        engine, run, targets = self._engine, told["run"], told["targets"]
        try:
            with anyio.fail_after(told.get("patience", 20.0)):
                await engine.wait_for_sites(told.get("wait", targets))
        except TimeoutError:
            say(result={"run": run, "error": f"only {sorted(engine.sites())} can be reached"})
            return
        say(begun=run)
        producer = LoggedNumbers(self._log, run, told["objects"], told.get("size", 100), told.get("timeout", 10.0))
        fl_ctx = engine.new_context()
        with anyio.move_on_after(told.get("abort_after", 3600.0)) as limit:
            result = await engine.stream_objects(
                CHANNEL, TOPIC, {"run": run}, targets, producer, fl_ctx,
                options=StreamOptions(window=told.get("window", 8), durable=told.get("durable", False)),
                resume=told.get("resume"),
            )  # fmt: skip
            say(result=_told(run, result))
        if limit.cancelled_caught:
            say(result={"run": run, "rc": "cancelled"})

    async def _file(self, told: dict[str, Any]) -> None:
        engine, run = self._engine, told["run"]
        fl_ctx = engine.new_context()
        result, _replies = await stream_file(engine, CHANNEL, FILES, told["targets"], told["path"], fl_ctx)
        say(result=_told(run, result))


def _told(run: int, result: StreamResult) -> dict[str, Any]:
    """Say how a stream ended."""
    return {
        "run": run,
        "rc": result.rc,
        "first": result.first,
        "objects": result.objects,
        "complete": result.complete,
        "sites": {name: {"rc": site.rc, **site.outcomes} for name, site in result.sites.items()},
    }


async def watch_sites(engine: StreamEngine) -> None:
    """Tell who comes and goes."""
    known: set[str] = set()
    while True:
        now = engine.sites()
        for name in now - known:
            say(joined=name, at=time.monotonic())
        for name in known - now:
            say(left=name, at=time.monotonic())
        known = now
        await anyio.sleep(0.02)


def remove(file: ReceivedFile, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
    """Take a file that has arrived, whose digest was checked."""
    file.path.unlink()


async def run(arguments: argparse.Namespace) -> None:
    """Run the engine until standard input ends."""
    settings = EngineSettings(
        heartbeat=arguments.heartbeat, silence=arguments.silence, retry_first=0.02, retry_max=0.2, shutdown_timeout=5,
        journal=Path(arguments.log).with_suffix(".journal") if arguments.journal in ("", arguments.name) else None,
    )  # fmt: skip
    log = Log(Path(arguments.log), arguments.life, sync=not arguments.unsynced)
    engine = StreamEngine(arguments.name, listen=arguments.listen, connect=arguments.connect, settings=settings)
    commands = asyncio.StreamReader(limit=_LONGEST_LINE)
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    try:
        async with engine, anyio.create_task_group() as tg:
            consumers = Consumers(log, quiet=arguments.quiet)
            engine.register_stream_processing(CHANNEL, TOPIC, consumers)
            folder = Path(arguments.log).with_suffix(".files")
            folder.mkdir(exist_ok=True)
            register_files(engine, CHANNEL, FILES, folder, remove)
            worker = Worker(engine, log, consumers, tg)
            tg.start_soon(watch_sites, engine)
            say(ready=engine.addresses)
            async for line in commands:
                worker.do(json.loads(line))
            tg.cancel_scope.cancel()
    finally:
        pipe.close()


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.processes.worker", description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--listen")
    parser.add_argument("--connect")
    parser.add_argument("--log", required=True)
    parser.add_argument("--life", type=int, default=0)
    parser.add_argument("--heartbeat", type=float, default=7.0)
    parser.add_argument("--silence", type=float, default=15.0)
    parser.add_argument("--unsynced", action="store_true", help="do not wait for the disk")
    parser.add_argument(
        "--journal", nargs="?", const="", help="keep streams beside the log; with a name, where that is this worker's"
    )
    parser.add_argument("--quiet", action="store_true", help="do not tell of each object")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
