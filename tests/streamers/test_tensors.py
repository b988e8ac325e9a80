"""State dicts, tensor by tensor, between engines of one process."""

from __future__ import annotations

from typing import Any

import anyio
import numpy as np
import pytest

from fanstream import EngineSettings, Quorum, Shareable, StreamEngine, StreamOptions
from fanstream.errors import SecurityError
from fanstream.streamers import register_tensors, stream_tensors

pytestmark = pytest.mark.anyio


async def send(state: dict[str, Any], **limits: int) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    got: list[dict[str, Any]] = []

    async def take(whole: dict[str, Any], stream_ctx: dict[str, Any], fl_ctx: object) -> Shareable:
        got.append(whole)
        return Shareable({"count": len(whole)})

    async with StreamEngine("server") as server, StreamEngine("site-1") as site:
        register_tensors(site, "models", "weights", take, **limits)
        await server.wait_for_sites(["site-1"])
        context = server.new_context()
        result, replies = await stream_tensors(server, "models", "weights", ["site-1"], state, context)
    return result, replies, got


async def test_a_state_dict_arrives_whole_and_in_order() -> None:
    state = {f"layer-{n}": np.arange(n * 7, dtype=np.float32).reshape(n, 7) for n in range(20)}
    state["scalar"] = np.array(3.5)
    result, replies, got = await send(state)
    assert result.rc == "OK"
    assert result.complete
    assert result.objects == 21
    assert list(got[0]) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(got[0][name], value)
    assert replies["site-1"]["count"] == 21


async def test_an_empty_state_dict_arrives() -> None:
    result, _, got = await send({})
    assert result.complete
    assert got == [{}]


@pytest.mark.torch
async def test_torch_tensors_and_bfloat16_arrive_bit_by_bit() -> None:
    torch = pytest.importorskip("torch")
    state = {"b": torch.randn(5, 3).to(torch.bfloat16), "f": torch.nn.Parameter(torch.randn(4)), "n": np.ones(2)}
    result, _, got = await send(state)
    assert result.complete
    assert got[0]["b"].dtype is torch.bfloat16
    assert torch.equal(got[0]["b"], state["b"])
    assert torch.equal(got[0]["f"], state["f"].detach())


@pytest.mark.parametrize("limits", [{"max_bytes": 100}, {"max_entries": 1}])
async def test_more_than_is_accepted_is_refused(limits: dict[str, int]) -> None:
    result, _, got = await send({"a": np.zeros(10), "b": np.zeros(10)}, **limits)
    assert result.rc == "BAD_REQUEST_DATA"
    assert not result.complete
    assert got == []


async def test_a_value_that_is_no_tensor_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(TypeError, match=r"state\['a'\]"):
        await send({"a": [1, 2]})


async def test_a_quorum_does_not_wait_for_the_slow() -> None:
    async def slow(whole: object, stream_ctx: object, fl_ctx: object) -> None:
        await anyio.sleep_forever()

    async with StreamEngine("server") as server, StreamEngine("a") as a, StreamEngine("b") as b:
        register_tensors(a, "models", "weights", lambda *_: Shareable({"done": 1}))
        register_tensors(b, "models", "weights", slow)
        await server.wait_for_sites(["a", "b"])
        options = StreamOptions(window=4, gather=Quorum(1))
        with anyio.fail_after(5):
            result, replies = await stream_tensors(
                server, "models", "weights", ["a", "b"], {"w": np.ones(3)}, server.new_context(), options=options
            )
    assert result.rc == "OK"
    assert list(replies) == ["a"]


@pytest.mark.parametrize(
    "entries",
    [
        [{"index": 1, "count": 2, "name": "a", "value": np.ones(1)}],
        [{"index": 0, "count": -1}],
        [{"index": 0, "count": 1, "name": 5, "value": np.ones(1)}],
        [{"index": 0, "count": 1, "name": "a", "value": "text"}],
        [{"index": n, "count": 2, "name": "same", "value": np.ones(1)} for n in range(2)],
        [{}],
    ],
)
async def test_what_is_no_state_dict_is_refused(entries: list[dict[str, Any]]) -> None:
    async def hostile() -> Any:
        for entry in entries:
            yield Shareable(entry), 5.0

    got: list[object] = []
    async with StreamEngine("server") as server, StreamEngine("site-1") as site:
        register_tensors(site, "models", "weights", lambda whole, *_: got.append(whole))
        await server.wait_for_sites(["site-1"])
        result = await server.stream_objects("models", "weights", {}, ["site-1"], hostile(), server.new_context())
    assert result.rc == "BAD_REQUEST_DATA"
    assert got == []


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"state": [np.ones(1)]}, TypeError, "state is of type list, expected a dict of arrays or tensors"),
        ({"state": {5: np.ones(1)}}, TypeError, "state has a key 5 of type int, expected str"),
        ({"timeout": -1}, ValueError, "timeout is -1, expected a positive number of seconds"),
        ({"options": "all"}, TypeError, "options is of type str, expected StreamOptions or None"),
        ({"options": StreamOptions(gather=Quorum(2))}, ValueError, "gather asks for 2 replies of 1 targets"),
        ({"engine": "server"}, TypeError, "engine is of type str, expected a StreamEngine"),
    ],
)
async def test_a_wrong_argument_is_refused(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    async with StreamEngine("server") as server:
        right: dict[str, Any] = {
            "engine": server,
            "channel": "models",
            "topic": "weights",
            "targets": ["site-1"],
            "state": {"w": np.ones(1)},
            "fl_ctx": server.new_context(),
        }
        with pytest.raises(error) as caught:
            await stream_tensors(**{**right, **wrong})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"on_state": "train"}, TypeError, "on_state is of type str, expected a function"),
        ({"max_entries": 1.0}, TypeError, "max_entries is 1.0 of type float, expected a whole number"),
        ({"max_bytes": -1}, ValueError, "max_bytes is -1, expected at least 0"),
        ({"engine": None}, TypeError, "engine is of type NoneType, expected a StreamEngine"),
    ],
)
async def test_a_wrong_registration_is_refused(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    right: dict[str, Any] = {"engine": StreamEngine("a"), "channel": "models", "topic": "weights", "on_state": print}
    with pytest.raises(error) as caught:
        register_tensors(**{**right, **wrong})
    assert message in str(caught.value)


async def test_optional_and_secure_are_passed_on() -> None:
    settings = EngineSettings(registration_grace=0)
    async with StreamEngine("server") as server, StreamEngine("site-1", settings=settings):
        await server.wait_for_sites(["site-1"])
        state, context = {"w": np.ones(1)}, server.new_context()
        result, replies = await stream_tensors(server, "models", "weights", ["site-1"], state, context, optional=True)
        assert (result.outcomes, replies) == ({"not_sent": 1}, {})
        with pytest.raises(SecurityError):
            await stream_tensors(server, "models", "weights", ["site-1"], state, context, secure=True)
