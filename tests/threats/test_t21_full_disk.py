"""T21: a disk that is full or fails refuses one file, with a reason; the temporary file goes, and the link lives."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fanstream import Shareable
from fanstream.streamers import ReceivedFile, file, register_files
from tests.federation import until
from tests.streamers.files import (
    BEGIN,
    CHUNK,
    END,
    names_in,
    pair,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "weights.bin"
    made.write_bytes(os.urandom(5000))
    return made


FULL = """
import asyncio, logging, resource, sys
from pathlib import Path
from fanstream import StreamEngine
from fanstream.streamers import register_files, stream_file

logging.disable()
resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))  # a write beyond it fails, as on a disk that is full

async def main():
    async with StreamEngine("server") as server, StreamEngine("site-1") as site:
        register_files(site, "files", "one", sys.argv[2])
        await server.wait_for_sites(["site-1"])
        context = server.new_context()
        result, _ = await stream_file(server, "files", "one", ["site-1"], sys.argv[1], context, chunk_size=1000)
        print(result.rc, result.sites["site-1"].outcomes["replied"], *Path(sys.argv[2]).iterdir())

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of resources")
def test_a_disk_that_is_full_ends_the_stream_and_keeps_nothing(source: Path, inbox: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, source, inbox], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout.split() == ["EXECUTION_EXCEPTION", "4"], done.stderr
    assert names_in(inbox) == []


class Failing:
    """The os module, one of whose functions fails from its n-th call on; or once, where *once* is set."""

    def __init__(self, name: str, number: int, code: int) -> None:
        self._name = name
        self._left = number
        self._error = OSError(code, os.strerror(code), "/a/path/of/this/machine")

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name != self._name:
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                raise self._error
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize(
    ("name", "number", "code"),
    [
        ("open", 1, errno.EMFILE),
        ("open", 1, errno.EACCES),
        ("open", 2, errno.ENOSPC),
        ("open", 2, errno.EROFS),
        ("open", 2, errno.ENFILE),
        ("write", 1, errno.ENOSPC),
        ("write", 1, errno.EDQUOT),
        ("write", 1, errno.EIO),
        ("write", 1, errno.EFBIG),
        ("fsync", 1, errno.EIO),
        ("fsync", 1, errno.ENOSPC),
        ("fsync", 2, errno.EIO),
        ("link", 1, errno.ENOSPC),
        ("unlink", 1, errno.EIO),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) and value > 2 else str(value),
)
async def test_a_failing_disk_refuses_the_file_with_a_reason(
    name: str, number: int, code: int, inbox: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def sender() -> Any:
        for part in (BEGIN, CHUNK, END):
            yield Shareable(part), 5.0

    got: list[ReceivedFile] = []
    async with pair() as (server, site):
        register_files(site, "files", "one", inbox, lambda file, *_: got.append(file))
        with monkeypatch.context() as patch:
            patch.setattr(file, "os", Failing(name, number, code))
            result = await server.stream_objects("files", "one", {}, ["site-1"], sender(), server.new_context())
            await until(lambda: not site._incoming)
        assert result.rc == "EXECUTION_EXCEPTION"
        reason = result.sites["site-1"].reason
        assert f"the file cannot be kept here: {os.strerror(code)}" in reason
        assert "/a/path" not in reason, "what is where on this machine is nobody's business"
        assert got == []
        assert names_in(inbox) == []
        assert "a file from server cannot be kept" in caplog.text
        links = set(server._links)
        result = await server.stream_objects("files", "one", {}, ["site-1"], sender(), server.new_context())
        assert result.complete, "the link lives, and the disk has recovered"
        assert set(server._links) == links
    assert len(got) == 1
