"""Dicts, lists and sets, entry by entry, between engines of one process."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest

from fanstream import Shareable, StreamEngine
from fanstream.streamers import register_containers, stream_container

pytestmark = pytest.mark.asyncio


async def send(container: Any) -> tuple[Any, list[Any]]:
    got: list[Any] = []
    async with StreamEngine("server") as server, StreamEngine("site-1") as site:
        register_containers(site, "data", "all", lambda whole, *_: got.append(whole))
        await server.wait_for_sites(["site-1"])
        result = await stream_container(server, "data", "all", ["site-1"], container, server.new_context())
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
