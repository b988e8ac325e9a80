"""Files, chunk by chunk, between engines of one process."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import xxhash

from fanstream import (
    ConsumerFactory,
    EngineSettings,
    FLContext,
    Limits,
    ObjectConsumer,
    Quorum,
    Shareable,
    StreamContext,
    StreamEngine,
    StreamOptions,
    make_reply,
)
from fanstream.errors import SecurityError
from fanstream.streamers import ReceivedFile, register_files, stream_file
from fanstream.testing import FaultyNetwork
from tests.federation import until
from tests.streamers.files import BEGIN, CHUNK, END, content, fill, names_in, pair, receive, rename
from tests.striking import Strike

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


# --- What arrives ---


@pytest.mark.parametrize("size", [0, 1, 1000, 1001, 2_500_000])
async def test_a_file_arrives_whole(size: int, source: Path, inbox: Path) -> None:
    fill(source, size)
    got: list[ReceivedFile] = []
    async with pair() as (server, site):
        register_files(site, "files", "one", inbox, lambda file, *_: got.append(file))
        context = server.new_context()
        chunk_size = 1000 if size < 5000 else 2**20
        result, replies = await stream_file(server, "files", "one", ["site-1"], source, context, chunk_size=chunk_size)
    assert result.complete
    assert replies["site-1"].get_return_code() == "OK"
    sent = content(source)
    assert content(got[0].path) == sent
    assert got[0].path.parent == inbox
    assert (got[0].label, got[0].size) == ("weights.bin", size)
    assert (got[0].algorithm, got[0].digest) == ("blake2b", hashlib.blake2b(sent, digest_size=32).digest())
    assert names_in(inbox) == [got[0].path.name]


async def test_xxh3_checks_the_whole_where_it_is_asked_for(source: Path, inbox: Path) -> None:
    got: list[ReceivedFile] = []
    async with pair() as (server, site):
        register_files(site, "files", "one", inbox, lambda file, *_: got.append(file))
        context = server.new_context()
        result, _ = await stream_file(server, "files", "one", ["site-1"], source, context, digest="xxh3")
    assert result.complete
    assert (got[0].algorithm, got[0].digest) == ("xxh3", xxhash.xxh3_128(content(source)).digest())


async def test_the_sender_sees_what_the_application_replied(source: Path, inbox: Path) -> None:
    async with pair() as (server, site):
        register_files(site, "files", "one", inbox, lambda file, *_: Shareable({"kept as": file.path.name}))
        _, replies = await stream_file(server, "files", "one", ["site-1"], source, server.new_context())
    assert [replies["site-1"]["kept as"]] == names_in(inbox)


async def test_a_quorum_does_not_wait_for_the_slow_whose_file_is_removed(source: Path, inbox: Path) -> None:
    (inbox / "a").mkdir()
    (inbox / "b").mkdir()

    async def slow(*_: object) -> None:
        await anyio.sleep_forever()

    with anyio.fail_after(5):
        async with StreamEngine("server") as server, StreamEngine("a") as a, StreamEngine("b") as b:
            register_files(a, "files", "one", inbox / "a")
            register_files(b, "files", "one", inbox / "b", slow)
            await server.wait_for_sites(["a", "b"])
            options = StreamOptions(window=4, gather=Quorum(1))
            result, replies = await stream_file(
                server, "files", "one", ["a", "b"], source, server.new_context(), options=options
            )
    assert result.rc == "OK"
    assert list(replies) == ["a"]
    assert len(names_in(inbox / "a")) == 1
    assert names_in(inbox / "b") == []


async def test_optional_and_secure_are_passed_on(source: Path) -> None:
    async with pair(EngineSettings(registration_grace=0)) as (server, _site):
        context = server.new_context()
        result, replies = await stream_file(server, "files", "one", ["site-1"], source, context, optional=True)
        assert (result.outcomes, replies) == ({"not_sent": result.objects}, {})
        with pytest.raises(SecurityError):
            await stream_file(server, "files", "one", ["site-1"], source, context, secure=True)


# --- What a hostile sender, or a neighbour at the receiver, cannot do ---


@pytest.mark.parametrize(
    "parts",
    [
        [BEGIN, CHUNK, {**END, "digest": bytes(32)}],
        [BEGIN, CHUNK, {**END, "digest": "text"}],
        [BEGIN, CHUNK, {**END, "digest": b""}],
        [BEGIN, CHUNK, {**END, "size": 4}],
        [{**BEGIN, "algorithm": "xxh3"}, CHUNK, END],
        [BEGIN, CHUNK, CHUNK],
        [BEGIN, END],
        [BEGIN, BEGIN],
        [BEGIN, {"part": "chunk", "data": "text"}],
        [CHUNK],
        [END],
        [{**BEGIN, "size": 101}],
        [{**BEGIN, "size": -1}],
        [{**BEGIN, "size": True}],
        [{**BEGIN, "label": 5}],
        [{**BEGIN, "label": "x" * 256}],
        [{**BEGIN, "label": "x" * 300}],
        [{**BEGIN, "label": "lone \ud800"}],
        [{**BEGIN, "algorithm": "crc32"}],
        [{**BEGIN, "algorithm": ["blake2b"]}],
        [BEGIN, CHUNK, END, CHUNK],
        [{}],
    ],
)
async def test_what_is_not_the_file_is_refused(parts: list[dict[str, Any]], inbox: Path) -> None:
    result = await receive(parts, inbox, max_size=100)
    assert result.rc == "BAD_REQUEST_DATA"
    whole = parts[:3] == [BEGIN, CHUNK, END]  # what follows a whole file does not take it back
    assert len(names_in(inbox)) == int(whole)


@pytest.mark.parametrize("name", [b"\xff\xfe.bin", "x" * 255, "\N{LATIN SMALL LETTER E WITH ACUTE}.bin"])
async def test_any_name_that_a_file_can_have_becomes_a_label(name: str | bytes, source: Path, inbox: Path) -> None:
    try:
        path = rename(source, os.fsdecode(name))
    except OSError:
        pytest.skip("this file system refuses the name")
    got: list[ReceivedFile] = []
    async with pair() as (server, site):
        register_files(site, "files", "one", inbox, lambda file, *_: got.append(file))
        result, _ = await stream_file(server, "files", "one", ["site-1"], path, server.new_context())
    assert result.complete
    assert got[0].label == os.fsencode(name).decode("utf-8", "replace")


# --- What does not arrive whole ---


async def test_a_file_that_stops_half_way_is_removed(inbox: Path) -> None:
    await receive([BEGIN], inbox)
    assert names_in(inbox) == []


async def test_a_file_that_the_application_fails_on_is_removed(inbox: Path) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no")

    result = await receive([BEGIN, CHUNK, END], inbox, fail)
    assert result.rc == "EXECUTION_EXCEPTION"
    assert names_in(inbox) == []


async def test_a_file_may_be_moved_by_the_application(tmp_path: Path, inbox: Path) -> None:
    result = await receive([BEGIN, CHUNK, END], inbox, lambda file, *_: file.path.rename(tmp_path / "taken") and None)
    assert result.complete
    assert names_in(inbox) == []
    assert (tmp_path / "taken").read_bytes() == b"abc"


async def test_an_abort_at_any_point_leaves_no_file_that_nobody_was_told_of(source: Path, inbox: Path) -> None:
    async with pair() as (server, site):
        told: list[ReceivedFile] = []

        async def take(file: ReceivedFile, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            told.append(file)

        register_files(site, "files", "one", inbox, take)
        caught = 0
        for n in range(1, 400):
            told.clear()
            with anyio.CancelScope() as scope:
                strike = Strike(n, scope)
                options = StreamOptions(window=1)
                sending = stream_file(
                    server, "files", "one", ["site-1"], source, server.new_context(), chunk_size=1000, options=options
                )
                await strike.watch(sending)
            caught += scope.cancelled_caught
            await until(lambda: not site._incoming)
            assert names_in(inbox) == [file.path.name for file in told], f"at suspension {n}"
            for file in told:
                file.path.unlink()
            if strike.struck_at is None:
                break
        else:
            pytest.fail("the stream never came to its end")
        assert caught > 7, "one for each object, at the least"


@pytest.mark.parametrize("who", ["opener", "receiver"])
async def test_an_abort_while_the_application_looks_at_the_file_removes_it(who: str, source: Path, inbox: Path) -> None:
    async with pair() as (server, site):
        context = server.new_context()

        async def block(*_: object) -> None:
            signal = context.get_run_abort_signal() if who == "opener" else site.run_abort_signal
            signal.trigger("enough")
            await anyio.sleep_forever()

        register_files(site, "files", "one", inbox, block)
        result, _ = await stream_file(server, "files", "one", ["site-1"], source, context)
        assert result.sites["site-1"].rc == "TASK_ABORTED"
        await until(lambda: names_in(inbox) == [])


@pytest.mark.parametrize("after", [100, 500, 2000, 4000, 5500])
async def test_a_link_that_breaks_leaves_no_file(after: int, source: Path, inbox: Path) -> None:
    with FaultyNetwork() as network:
        async with pair() as (server, site):
            register_files(site, "files", "one", inbox)
            send = partial(stream_file, server, "files", "one", ["site-1"], source, chunk_size=1000)
            assert (await send(server.new_context()))[0].complete
            (whole,) = names_in(inbox)
            link = network.link("server")  # the first stream has made it
            link.up.cut_after(after)
            result, _ = await send(server.new_context(), options=StreamOptions(resume_window=0))
            assert result.sites["site-1"].rc == "COMMUNICATION_ERROR"
            await until(lambda: not site._incoming)
            assert names_in(inbox) == [whole]


@pytest.mark.parametrize("after", [100, 500, 2000, 4000, 5500])
async def test_a_file_goes_on_over_the_next_link(after: int, source: Path, inbox: Path) -> None:
    with FaultyNetwork() as network:
        async with pair() as (server, site):
            register_files(site, "files", "one", inbox)
            send = partial(stream_file, server, "files", "one", ["site-1"], source, chunk_size=1000)
            assert (await send(server.new_context()))[0].complete
            network.link("server").up.cut_after(after)
            assert (await send(server.new_context()))[0].complete
            assert len(network.links) == 2
            await until(lambda: not site._incoming)
            assert [(inbox / name).read_bytes() for name in names_in(inbox)] == [source.read_bytes()] * 2  # noqa: ASYNC240


# --- Arguments ---


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"path": 5}, TypeError, "path is 5 of type int, expected a str or a path"),
        ({"path": b"x"}, TypeError, "path is b'x' of type bytes"),
        ({"path": "no such file"}, FileNotFoundError, "no such file"),
        ({"path": "."}, ValueError, "path is '.', expected a regular file"),
        ({"path": os.devnull}, ValueError, f"path is '{os.devnull}', expected a regular file"),
        ({"chunk_size": 0}, ValueError, "chunk_size is 0, expected at least 1"),
        ({"chunk_size": -1}, ValueError, "chunk_size is -1, expected at least 1"),
        ({"chunk_size": 1.5}, TypeError, "chunk_size is 1.5 of type float, expected a whole number"),
        ({"chunk_size": True}, TypeError, "chunk_size is True of type bool, expected a whole number"),
        ({"chunk_size": 2**60}, ValueError, "chunk_size is 1152921504606846976, expected at most 68719475712"),
        ({"digest": "md5"}, ValueError, "digest is 'md5', expected one of 'blake2b', 'xxh3'"),
        ({"timeout": 0}, ValueError, "timeout is 0, expected a positive number of seconds"),
        ({"timeout": "5"}, TypeError, "timeout is '5' of type str"),
        ({"options": {"window": 2}}, TypeError, "options is of type dict, expected StreamOptions or None"),
        ({"engine": "server"}, TypeError, "engine is of type str, expected a StreamEngine"),
        ({"targets": "site-1"}, TypeError, "targets"),
        ({"stream_ctx": []}, TypeError, "stream_ctx is of type list"),
        ({"fl_ctx": None}, TypeError, "fl_ctx is of type NoneType"),
        ({"channel": ""}, ValueError, "channel"),
    ],
)
async def test_a_wrong_argument_is_refused_before_anything_is_sent(
    wrong: dict[str, Any], error: type[Exception], message: str, source: Path, inbox: Path
) -> None:
    seen: list[object] = []
    async with pair() as (server, site):
        site.register_stream_processing("files", "one", Witness(seen))
        right: dict[str, Any] = {
            "engine": server,
            "channel": "files",
            "topic": "one",
            "targets": ["site-1"],
            "path": source,
            "fl_ctx": server.new_context(),
        }
        with pytest.raises(error) as caught:
            await stream_file(**{**right, **wrong})
        assert message in str(caught.value)
        await stream_file(**right)
        assert len(seen) == 1, "the second stream is the first that the site hears of"


class Witness(ConsumerFactory, ObjectConsumer):
    """Writes down that a stream came, and wants no more of it."""

    def __init__(self, seen: list[object]) -> None:
        self._seen = seen

    async def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> Witness:
        self._seen.append(stream_ctx)
        return self

    async def consume(
        self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> tuple[bool, Shareable]:
        return False, make_reply("OK")


async def test_a_chunk_beyond_what_a_site_accepts_ends_the_stream_and_says_so(source: Path, inbox: Path) -> None:
    fill(source, 300_000)
    limits = Limits(object=2**17, frame=2**16)
    async with pair(EngineSettings(limits=limits)) as (server, site):
        register_files(site, "files", "one", inbox)
        result, _ = await stream_file(server, "files", "one", ["site-1"], source, server.new_context())
        assert not result
        assert f"limit {limits.object}" in result.sites["site-1"].reason
        await until(lambda: names_in(inbox) == [])


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"directory": 5}, TypeError, "directory is 5 of type int, expected a str or a path"),
        ({"directory": "no such directory"}, ValueError, "directory is 'no such directory', expected an existing"),
        ({"directory": __file__}, ValueError, "expected an existing directory"),
        ({"on_file": 5}, TypeError, "on_file is of type int, expected a function"),
        ({"max_size": -1}, ValueError, "max_size is -1, expected at least 0"),
        ({"max_size": 1.5}, TypeError, "max_size is 1.5 of type float, expected a whole number"),
        ({"max_size": float("inf")}, TypeError, "max_size is inf of type float"),
        ({"engine": None}, TypeError, "engine is of type NoneType, expected a StreamEngine"),
        ({"topic": ""}, ValueError, "topic"),
    ],
)
async def test_a_wrong_registration_is_refused_at_once(
    wrong: dict[str, Any], error: type[Exception], message: str, inbox: Path
) -> None:
    right: dict[str, Any] = {"engine": StreamEngine("site-1"), "channel": "files", "topic": "one", "directory": inbox}
    with pytest.raises(error) as caught:
        register_files(**{**right, **wrong})
    assert message in str(caught.value)


async def test_a_platform_without_relative_opening_cannot_receive(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "supports_dir_fd", set())  # as on Windows
    with pytest.raises(NotImplementedError, match="platform"):
        register_files(StreamEngine("site-1"), "files", "one", inbox)


async def test_what_is_registered_before_the_engine_runs_counts(source: Path, inbox: Path) -> None:
    site = StreamEngine("site-1")
    register_files(site, "files", "one", inbox)
    async with StreamEngine("server") as server, site:
        await server.wait_for_sites(["site-1"])
        result, _ = await stream_file(server, "files", "one", ["site-1"], source, server.new_context())
    assert result.complete
