"""One opener of durable streams, life after life.

A crash is a copy of the journal's files, with which the next life begins, and a cut link for the life before.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import numpy as np

from fanstream import (
    EngineSettings,
    FLContext,
    ReturnCode,
    Shareable,
    StreamContext,
    StreamContextKey,
    StreamEngine,
    StreamOptions,
    StreamResult,
    make_reply,
)
from fanstream.testing import FaultyNetwork
from tests.federation import Federation, Keeper, Numbers, delayed, federation, until

SETTINGS = EngineSettings(retry_max=1.0)
SITES = ["site-1", "site-2"]


class Seekable(Numbers):
    """Numbers that can begin anywhere; ``judged`` has the number of each object whose replies were seen."""

    def __init__(self, number: int, *, timeout: Any = 300.0, judge: Any = None, size: int = 0) -> None:
        super().__init__(number, timeout=timeout, judge=judge)
        self.size = size
        self.sought: list[int] = []
        self.judged: list[int] = []
        self.first = 0

    async def seek(self, seq: int, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        self.sought.append(seq)
        self.made = self.first = seq

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, Any]:
        shareable, timeout = await super().produce(stream_ctx, fl_ctx)
        if shareable is not None and self.size:
            shareable["w"] = np.full(self.size, shareable["n"], dtype=np.uint8)
        return shareable, timeout

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        n = self.first + len(self.judged)
        self.judged.append(n)
        for site, reply in replies.items():
            if reply.get_return_code() == ReturnCode.OK:
                assert reply["n"] == n, f"{site} answers {reply['n']} to object {n}"
        return await super().process_replies(replies, stream_ctx, fl_ctx)


class Running:
    """A durable stream in one life of its opener."""

    def __init__(self, engine: StreamEngine, producer: Seekable, resume: str | None, options: StreamOptions) -> None:
        self._engine = engine
        self._resume = resume
        self._options = options
        self.producer = producer
        self.context: StreamContext = {}
        self.result: StreamResult | None = None
        self.error: Exception | None = None

    @property
    def stream_id(self) -> str:
        found: str = self.context[StreamContextKey.STREAM_ID]
        return found

    async def run(self, targets: list[str]) -> None:
        try:
            self.result = await self._engine.stream_objects(
                "models", "weights", self.context, targets, self.producer, self._engine.new_context("job"),
                options=self._options, resume=self._resume,
            )  # fmt: skip
        except Exception as exc:  # noqa: BLE001 - shown by the test
            self.error = exc

    async def done(self) -> StreamResult:
        await until(lambda: self.result is not None or self.error is not None, 200)
        assert self.error is None, self.error
        assert self.result is not None
        return self.result


class Lives:
    """One opener, life after life."""

    def __init__(self, fed: Federation, network: FaultyNetwork, folder: Path, options: StreamOptions) -> None:
        self.fed = fed
        self.network = network
        self.options = options
        self.settings = SETTINGS
        self._folder = folder
        self._number = 0
        self._tasks: anyio.abc.TaskGroup

    @property
    def path(self) -> Path:
        return self._folder / f"journal-{self._number}"

    @asynccontextmanager
    async def life(self, *, crash: bool = True) -> AsyncIterator[StreamEngine]:
        """Live until the block ends: a crash, of which nobody is told, or an end in good order."""
        settings = self.settings.model_copy(update={"journal": self.path})
        over = anyio.Event()
        born: list[StreamEngine] = []

        async def live() -> None:
            async with (
                StreamEngine("opener", connect=self.fed.server.addresses[0], settings=settings) as engine,
                anyio.create_task_group() as self._tasks,
            ):
                born.append(engine)
                with anyio.CancelScope(shield=True):
                    await over.wait()
                if crash:
                    self._tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tg:
            tg.start_soon(live)
            await self.fed.server.wait_for_sites(["opener"])
            await until(lambda: born and born[0].sites() >= {*SITES, "server"})
            try:
                yield born[0]
            finally:
                if crash:
                    self.crash()
                over.set()
        self.network.refused.clear()

    def crash(self) -> None:
        before = self.path
        self._number += 1
        for file in before.parent.glob(before.name + "*"):
            shutil.copy(file, str(file).replace(before.name, self.path.name))
        self.network.refused.add("opener")
        self.network.link("opener").cut()

    def begin(self, engine: StreamEngine, producer: Seekable, resume: str | None = None, **options: Any) -> Running:
        told = self.options.model_copy(update=options)
        if resume is not None:
            told = told.model_copy(update={"durable": False})  # to resume says it all
        running = Running(engine, producer, resume, told)
        self._tasks.start_soon(running.run, SITES)
        return running


@asynccontextmanager
async def lives(folder: Path, transport: str, **options: Any) -> AsyncIterator[tuple[Lives, dict[str, Keeper]]]:
    with FaultyNetwork(delayed(0.005)) as network:
        async with federation(transport, 2, settings=SETTINGS) as fed:
            keepers = {name: Keeper().register(engine) for name, engine in fed.sites.items()}
            yield Lives(fed, network, folder, StreamOptions(durable=True, **options)), keepers
            network.refused.clear()


def hanging(keeper: Keeper, number: int) -> anyio.Event:
    """Have a site consume nothing from object *number* on, until the event that is returned is set."""
    going = anyio.Event()

    async def hang(n: int) -> None:
        if n == number:
            await going.wait()

    keeper.do = hang
    return going


async def crashed_after(opener: Lives, judged: int, producer: Seekable | None = None) -> Running:
    """Have a stream's opener die once so many objects were judged."""
    async with opener.life() as engine:
        running = opener.begin(engine, producer or Seekable(20))
        await until(lambda: len(running.producer.judged) >= judged, 60)
    return running


def bye(stream_ctx: StreamContext, fl_ctx: FLContext) -> str:
    return "bye"


async def leave_at_once(n: int) -> Any:
    reply = make_reply(ReturnCode.OK)
    reply["n"] = n
    return False, reply


def rows(path: Path) -> list[Any]:
    """What the streams are that an engine has opened, by what is on its disk."""
    copy = path.with_name("copy")
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    with closing(sqlite3.connect(copy)) as connection:
        return connection.execute("SELECT id FROM outgoing").fetchall()
