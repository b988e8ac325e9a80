"""T19: who sends a file names no path: not by its label, and not with the help of a neighbour at the receiver."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path
from typing import Any

import pytest

from fanstream import Shareable
from fanstream.streamers import ReceivedFile, file, register_files, stream_file
from tests.streamers.files import (
    BEGIN,
    CHUNK,
    END,
    content,
    modes_in,
    names_in,
    pair,
    put_link_in_place,
    receive,
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


@pytest.mark.parametrize(
    "label", ["../../evil", "..", ".", "", "/etc/passwd", "a/b", "a\0b", "C:\\evil", "\u202etxt.exe", "x" * 255]
)
async def test_the_senders_name_is_only_a_label(label: str, tmp_path: Path, inbox: Path) -> None:
    got: list[ReceivedFile] = []
    parts: list[dict[str, Any]] = [{**BEGIN, "label": label}, CHUNK, END]
    result = await receive(parts, inbox, lambda file, *_: got.append(file))
    assert result.complete
    assert got[0].label == label
    assert got[0].path.parent == inbox
    assert len(got[0].path.name) == 32
    assert set(got[0].path.name) <= set("0123456789abcdef")
    assert names_in(tmp_path) == ["in"]


@pytest.mark.parametrize("kind", ["file", "link to a file", "dangling link"])
async def test_what_is_planted_under_the_coming_name_is_never_written_through(
    kind: str, tmp_path: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody can foresee the name; so that somebody has, it is made foreseeable here.
    monkeypatch.setattr(secrets, "token_hex", lambda size: "a" * 2 * size)
    planted, victim = inbox / ("a" * 32 + ".part"), tmp_path / "victim"
    if kind == "file":
        planted.write_text("mine")
    else:
        planted.symlink_to(victim)
        if kind == "link to a file":
            victim.write_text("mine")
    result = await receive([BEGIN, CHUNK, END], inbox)
    assert result.rc == "EXECUTION_EXCEPTION"
    assert names_in(inbox) == [planted.name], "what was there before stays"
    assert planted.is_symlink() == (kind != "file")
    assert victim.exists() == (kind == "link to a file")
    if kind != "dangling link":
        assert planted.read_text() == "mine"


async def test_a_directory_that_was_swapped_for_a_link_is_not_followed(tmp_path: Path, inbox: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    async def sender() -> Any:
        put_link_in_place(inbox, elsewhere)
        yield Shareable(BEGIN), 5.0

    async with pair() as (server, site):
        register_files(site, "files", "one", inbox)
        result = await server.stream_objects("files", "one", {}, ["site-1"], sender(), server.new_context())
    assert result.rc == "EXECUTION_EXCEPTION"
    assert names_in(elsewhere) == []


async def test_only_the_owner_may_read_a_received_file(source: Path, inbox: Path) -> None:
    before = os.umask(0)
    try:
        async with pair() as (server, site):
            register_files(site, "files", "one", inbox)
            result, _ = await stream_file(server, "files", "one", ["site-1"], source, server.new_context())
    finally:
        os.umask(before)
    assert result.complete
    assert modes_in(inbox) == [0o600]


@pytest.mark.parametrize("kind", ["file", "link to a file", "dangling link", "directory"])
async def test_what_has_the_final_name_already_is_not_replaced(
    kind: str, tmp_path: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda size: "a" * 2 * size)
    planted, victim = inbox / ("a" * 32), tmp_path / "victim"
    victim.write_text("mine")
    if kind == "file":
        planted.write_text("mine")
    elif kind == "directory":
        planted.mkdir()
    else:
        planted.symlink_to(victim if kind == "link to a file" else tmp_path / "nowhere")
    result = await receive([BEGIN, CHUNK, END], inbox)
    assert result.rc == "EXECUTION_EXCEPTION"
    assert result.sites["site-1"].reason.endswith("the file cannot be kept here: File exists")
    assert names_in(inbox) == [planted.name], "the temporary file is gone, and what was there stays"
    assert planted.is_symlink() == ("link" in kind)
    assert victim.read_text() == "mine"
    if kind == "file":
        assert planted.read_text() == "mine"


async def test_a_file_system_without_hard_links_takes_files_too(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_args: Any, **_kwargs: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "supports_dir_fd", {*os.supports_dir_fd, link})
    got: list[ReceivedFile] = []
    result = await receive([BEGIN, CHUNK, END], inbox, lambda file, *_: got.append(file))
    assert result.complete
    assert content(got[0].path) == b"abc"
    assert names_in(inbox) == [got[0].path.name]


async def test_the_file_is_where_it_belongs_on_disk_before_the_application_hears_of_it(
    inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    watched = Watched(steps)

    async def sender() -> Any:
        for part in (BEGIN, CHUNK, END):
            yield Shareable(part), 5.0

    async with pair() as (server, site):
        register_files(site, "files", "one", inbox, lambda *_: steps.append("on_file"))
        monkeypatch.setattr(file, "os", watched)
        result = await server.stream_objects("files", "one", {}, ["site-1"], sender(), server.new_context())
    assert result.complete
    assert steps == ["open", "open", "write", "fsync", "link", "unlink", "fsync", "close", "on_file", "close"]
    assert watched.flags[0] & os.O_DIRECTORY
    assert watched.flags[0] & os.O_NOFOLLOW
    assert watched.flags[1] & os.O_EXCL
    assert watched.flags[1] & os.O_NOFOLLOW


class Watched:
    """The os module, whose calls that matter are written down."""

    def __init__(self, steps: list[str]) -> None:
        self._steps = steps
        self.flags: list[int] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in ("open", "write", "fsync", "link", "unlink", "close"):
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            self._steps.append(name)
            if name == "open":
                self.flags.append(args[1])
            return real(*args, **kwargs)

        return call
