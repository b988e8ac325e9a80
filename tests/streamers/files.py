"""A site that receives files, and a server that sends them; and the parts of a file by hand."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from fanstream import EngineSettings, Shareable, StreamEngine
from fanstream.streamers import register_files


@asynccontextmanager
async def pair(settings: EngineSettings | None = None) -> AsyncIterator[tuple[StreamEngine, StreamEngine]]:
    with anyio.fail_after(20):
        async with StreamEngine("server") as server, StreamEngine("site-1", settings=settings) as site:
            await server.wait_for_sites(["site-1"])
            yield server, site


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def modes_in(directory: Path) -> list[int]:
    return [stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()]


def content(path: Path) -> bytes:
    return path.read_bytes()


def fill(path: Path, size: int) -> None:
    path.write_bytes(os.urandom(size))


def rename(path: Path, name: str) -> Path:
    return path.rename(path.with_name(name))


def put_link_in_place(directory: Path, target: Path) -> None:
    directory.rmdir()
    directory.symlink_to(target)


DIGEST = hashlib.blake2b(b"abc", digest_size=32).digest()


BEGIN = {"part": "begin", "label": "x", "size": 3, "algorithm": "blake2b"}


CHUNK = {"part": "chunk", "data": b"abc"}


END = {"part": "end", "size": 3, "digest": DIGEST}


async def receive(parts: list[dict[str, Any]], inbox: Path, on_file: Any = None, **limits: int) -> Any:
    async def sender() -> Any:
        for part in parts:
            yield Shareable(part), 5.0

    async with pair() as (server, site):
        register_files(site, "files", "one", inbox, on_file, **limits)
        return await server.stream_objects("files", "one", {}, ["site-1"], sender(), server.new_context())
