"""Dicts, lists and sets, entry by entry, between engines of one process."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest

from fanstream import EngineSettings, Shareable, StreamEngine
from fanstream.errors import SecurityError
from fanstream.streamers import register_containers, stream_container

pytestmark = pytest.mark.anyio


async def send(container: Any) -> tuple[Any, list[Any]]:
    got: list[Any] = []
    async with StreamEngine("server") as server, StreamEngine("site-1") as site:
        register_containers(site, "data", "all", lambda whole, *_: got.append(whole))
        await server.wait_for_sites(["site-1"])
        result, replies = await stream_container(server, "data", "all", ["site-1"], container, server.new_context())
    assert list(replies) == ["site-1"]
    return result, got


@pytest.mark.parametrize(
    "container",
    [{"a": 1, 2: [3, {"b": None}], b"c": 2**80}, {}, [], set(), [1, "two", [3]], {1, "two", 3.5}, list(range(100))],
)
async def test_a_container_arrives_as_it_was(container: Any) -> None:
    result, got = await send(container)
    assert result.complete
    assert result.objects == max(1, len(container))
    assert got == [container]
    assert type(got[0]) is type(container)


@pytest.mark.parametrize("container", [(1, 2), OrderedDict(a=1), "text", None])
async def test_anything_else_is_refused_before_anything_is_sent(container: Any) -> None:
    with pytest.raises(TypeError, match="expected a dict, a list or a set"):
        await send(container)


@pytest.mark.parametrize(
    "entries",
    [
        [{"kind": "collections.OrderedDict", "value": 1}],
        [{"kind": "set", "value": [1]}],
        [{"kind": "set", "value": 1}, {"kind": "set", "value": 1}],
        [{"kind": "dict", "key": "a", "value": 1}, {"kind": "list", "value": 1}],
        [{"kind": "list"}],
        [{"kind": "dict", "key": n * (2**61 - 1), "value": 0} for n in range(64)],
    ],
)
async def test_what_is_no_container_is_refused(entries: list[dict[str, Any]]) -> None:
    async def hostile() -> Any:
        for index, entry in enumerate(entries):
            yield Shareable({**entry, "index": index, "count": len(entries)}), 5.0

    got: list[object] = []
    async with StreamEngine("server") as server, StreamEngine("site-1") as site:
        register_containers(site, "data", "all", lambda whole, *_: got.append(whole))
        await server.wait_for_sites(["site-1"])
        result = await server.stream_objects("data", "all", {}, ["site-1"], hostile(), server.new_context())
    assert result.rc == "BAD_REQUEST_DATA"
    assert got == []


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"timeout": float("nan")}, ValueError, "timeout is nan, expected a positive number of seconds"),
        ({"timeout": None}, TypeError, "timeout is None of type NoneType"),
        ({"options": 8}, TypeError, "options is of type int, expected StreamOptions or None"),
        ({"engine": None}, TypeError, "engine is of type NoneType, expected a StreamEngine"),
        ({"targets": ["site-1", "site-1"]}, ValueError, "site-1"),
    ],
)
async def test_a_wrong_argument_is_refused(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    async with StreamEngine("server") as server:
        right: dict[str, Any] = {
            "engine": server,
            "channel": "data",
            "topic": "all",
            "targets": ["site-1"],
            "container": [1],
            "fl_ctx": server.new_context(),
        }
        with pytest.raises(error) as caught:
            await stream_container(**{**right, **wrong})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"on_container": None}, TypeError, "on_container is of type NoneType, expected a function"),
        ({"max_entries": -1}, ValueError, "max_entries is -1, expected at least 0"),
        ({"max_entries": "9"}, TypeError, "max_entries is '9' of type str, expected a whole number"),
        ({"engine": None}, TypeError, "engine is of type NoneType, expected a StreamEngine"),
    ],
)
async def test_a_wrong_registration_is_refused(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    right: dict[str, Any] = {"engine": StreamEngine("a"), "channel": "data", "topic": "all", "on_container": print}
    with pytest.raises(error) as caught:
        register_containers(**{**right, **wrong})
    assert message in str(caught.value)


async def test_more_entries_than_are_accepted_are_refused() -> None:
    got: list[object] = []
    async with StreamEngine("server") as server, StreamEngine("site-1") as site:
        register_containers(site, "data", "all", lambda whole, *_: got.append(whole), max_entries=2)
        await server.wait_for_sites(["site-1"])
        context = server.new_context()
        result, replies = await stream_container(server, "data", "all", ["site-1"], [1, 2, 3], context)
        assert (await stream_container(server, "data", "all", ["site-1"], [1, 2], context))[0].complete
    assert result.rc == "BAD_REQUEST_DATA"
    assert "expected whole numbers up to 2" in replies["site-1"].get_header("reason")
    assert got == [[1, 2]]


async def test_optional_and_secure_are_passed_on() -> None:
    settings = EngineSettings(registration_grace=0)
    async with StreamEngine("server") as server, StreamEngine("site-1", settings=settings):
        await server.wait_for_sites(["site-1"])
        context = server.new_context()
        result, replies = await stream_container(server, "data", "all", ["site-1"], [1], context, optional=True)
        assert (result.outcomes, replies) == ({"not_sent": 1}, {})
        with pytest.raises(SecurityError):
            await stream_container(server, "data", "all", ["site-1"], [1], context, secure=True)
