"""T20: who is asked for a file sends a regular one, of the size it had, from beneath the root that it allows."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fanstream import Shareable, StreamEngine, StreamOptions
from fanstream.streamers import register_files, stream_file
from fanstream.streamers.beneath import open_beneath
from fanstream.streamers.file import FileConsumer
from tests.federation import until
from tests.streamers.files import (
    content,
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
async def test_a_named_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    async with pair() as (server, _site):
        with pytest.raises(ValueError, match="expected a regular file"):
            await stream_file(server, "files", "one", ["site-1"], tmp_path / "pipe", server.new_context())


def truncate(path: Path) -> None:
    os.truncate(path, 3500)


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def change(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, (1, 1))  # the clock of a file system may stand still for some milliseconds


@pytest.mark.parametrize("meddle", [truncate, extend, change])
@pytest.mark.parametrize("after", [1, 3])
async def test_a_file_that_changes_while_it_is_sent_reaches_nobody(
    meddle: Callable[[Path], None], after: int, source: Path, inbox: Path
) -> None:
    written = 0

    class Meddling(FileConsumer):
        def _write(self, part: Shareable) -> None:
            nonlocal written
            super()._write(part)
            written += 1
            if written == after:
                meddle(source)

    async with pair() as (server, site):
        register_files(site, "files", "one", inbox)
        swap_consumer(site, Meddling, inbox)
        context = server.new_context()
        with pytest.raises(OSError, match="changed while it was sent"):
            await stream_file(
                server, "files", "one", ["site-1"], source, context, chunk_size=1000, options=StreamOptions(window=1)
            )
        await until(lambda: names_in(inbox) == [])


def swap_consumer(site: StreamEngine, kind: type[FileConsumer], inbox: Path) -> None:
    """Have files taken by another consumer than the one that `register_files` gives them."""
    from fanstream.streamers.whole import WholeFactory

    site.register_stream_processing("files", "one", WholeFactory(lambda: kind(inbox, None, site.limiter, 10**9)))


# --- beneath a root ---


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a file in it, one in a folder of it, and a secret beside it."""
    made = tmp_path / "root"
    (made / "folder").mkdir(parents=True)
    (made / "file").write_bytes(b"public")
    (made / "folder" / "file").write_bytes(b"public")
    (tmp_path / "secret").write_bytes(b"secret")
    (made / "link").symlink_to(tmp_path / "secret")
    (made / "inner link").symlink_to(made / "file")
    (made / "folder" / "up").symlink_to("..")
    (made / "out").symlink_to(tmp_path)
    (made / "dangling").symlink_to(tmp_path / "nowhere")
    return made


def read(root: Path, path: str) -> bytes:
    with os.fdopen(open_beneath(root, path), "rb") as file:
        return file.read()


@pytest.mark.parametrize("path", ["file", "folder/file", "./file", "folder//file", "folder/./file"])
def test_what_is_beneath_the_root_is_opened(path: str, root: Path) -> None:
    assert read(root, path) == b"public"
    link = root.with_name("link to the root")
    link.symlink_to(root)
    assert read(link, path) == b"public", "the root itself may be a link, for it is ours"


def descriptors() -> int:
    """How many this process has open; 0 where there is no telling."""
    known = Path("/proc/self/fd")
    return len(list(known.iterdir())) if known.exists() else 0


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("../secret", ValueError),
        ("folder/../../secret", ValueError),
        ("folder/../file", ValueError),
        ("..", ValueError),
        (".", ValueError),
        ("", ValueError),
        ("/etc/passwd", ValueError),
        ("//etc/passwd", ValueError),
        ("file\0", ValueError),
        ("folder", ValueError),
        ("link", OSError),
        ("inner link", OSError),
        ("dangling", OSError),
        ("out/secret", OSError),
        ("folder/up/file", OSError),
        ("file/file", OSError),
        ("nothing", OSError),
        ("x" * 300, OSError),
        ("~/file", OSError),
        ("..\\secret", OSError),
    ],
)
def test_what_is_not_is_refused(path: str, error: type[Exception], root: Path) -> None:
    before = descriptors()
    with pytest.raises(error):
        open_beneath(root, path)
    assert descriptors() == before, "no descriptor is left open"


async def test_a_stream_of_a_file_beneath_a_root(root: Path, inbox: Path) -> None:
    async with pair() as (server, site):
        register_files(site, "files", "one", inbox)
        send = partial(stream_file, server, "files", "one", ["site-1"], root=root)
        result, _ = await send("folder/file", server.new_context())
        assert result.complete
        for path in ("../secret", root / "file"):
            with pytest.raises(ValueError, match="expected a relative one that does not leave its root"):
                await send(path, server.new_context())
        with pytest.raises(OSError, match="link"):
            await send("link", server.new_context())
        with pytest.raises(TypeError, match="root is 5 of type int"):
            await stream_file(server, "files", "one", ["site-1"], "file", server.new_context(), root=5)  # type: ignore[arg-type]
    assert [content(inbox / name) for name in names_in(inbox)] == [b"public"]


def test_a_platform_without_relative_opening_has_no_roots(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "supports_dir_fd", set())  # as on Windows
    with pytest.raises(NotImplementedError, match="platform"):
        open_beneath(root, "file")
