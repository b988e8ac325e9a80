"""Files, chunk by chunk, between engines of one process."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from fanstream import Shareable, StreamEngine
from fanstream.streamers import ReceivedFile, register_files, stream_file

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("size", [0, 1, 1000, 1001, 2_500_000])
async def test_a_file_arrives_whole(size: int, tmp_path: Path) -> None:
    source, target = tmp_path / "weights.bin", tmp_path / "in"
    target.mkdir()
    source.write_bytes(os.urandom(size))
    got: list[ReceivedFile] = []
    async with StreamEngine("server") as server, StreamEngine("site-1") as site:
        register_files(site, "files", "one", target, lambda file, *_: got.append(file))
        await server.wait_for_sites(["site-1"])
        context = server.new_context()
        chunk_size = 1000 if size < 5000 else 2**20
        result = await stream_file(server, "files", "one", ["site-1"], source, context, chunk_size=chunk_size)
    assert result.complete
    assert got[0].path.read_bytes() == source.read_bytes()
    assert got[0].path.parent == target
    assert (got[0].label, got[0].size) == ("weights.bin", size)
    assert got[0].digest == hashlib.blake2b(source.read_bytes(), digest_size=32).digest()
    assert list(target.iterdir()) == [got[0].path]


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


DIGEST = hashlib.blake2b(b"abc", digest_size=32).digest()
BEGIN, CHUNK = {"part": "begin", "label": "x", "size": 3}, {"part": "chunk", "data": b"abc"}
END = {"part": "end", "size": 3, "digest": DIGEST}


async def receive(parts: list[dict[str, Any]], target: Path, on_file: Any = None, **limits: int) -> Any:
    async def sender() -> Any:
        for part in parts:
            yield Shareable(part), 5.0

    async with StreamEngine("server") as server, StreamEngine("site-1") as site:
        register_files(site, "files", "one", target, on_file, **limits)
        await server.wait_for_sites(["site-1"])
        return await server.stream_objects("files", "one", {}, ["site-1"], sender(), server.new_context())


async def test_the_senders_name_is_only_a_label(tmp_path: Path) -> None:
    target = tmp_path / "in"
    target.mkdir()
    got: list[ReceivedFile] = []
    parts: list[dict[str, Any]] = [{**BEGIN, "label": "../../evil"}, CHUNK, END]
    result = await receive(parts, target, lambda file, *_: got.append(file))
    assert result.complete
    assert got[0].label == "../../evil"
    assert got[0].path.parent == target
    assert names_in(tmp_path) == ["in"]


@pytest.mark.parametrize(
    "parts",
    [
        [BEGIN, CHUNK, {**END, "digest": bytes(32)}],
        [BEGIN, CHUNK, {**END, "digest": "text"}],
        [BEGIN, CHUNK, {**END, "size": 4}],
        [BEGIN, CHUNK, CHUNK],
        [BEGIN, END],
        [BEGIN, BEGIN],
        [BEGIN, {"part": "chunk", "data": "text"}],
        [CHUNK],
        [END],
        [{**BEGIN, "size": 101}],
        [{**BEGIN, "size": -1}],
        [{**BEGIN, "label": 5}],
        [BEGIN, CHUNK, END, CHUNK],
        [{}],
    ],
)
async def test_what_is_not_the_file_is_refused(parts: list[dict[str, Any]], tmp_path: Path) -> None:
    result = await receive(parts, tmp_path, max_size=100)
    assert result.rc == "BAD_REQUEST_DATA"
    whole = parts[:3] == [BEGIN, CHUNK, END]  # what follows a whole file does not take it back
    assert len(names_in(tmp_path)) == int(whole)


async def test_a_file_that_stops_half_way_is_removed(tmp_path: Path) -> None:
    await receive([BEGIN], tmp_path)
    assert names_in(tmp_path) == []


async def test_a_file_that_the_application_fails_on_is_removed(tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no")

    result = await receive([BEGIN, CHUNK, END], tmp_path, fail)
    assert result.rc == "EXECUTION_EXCEPTION"
    assert names_in(tmp_path) == []
