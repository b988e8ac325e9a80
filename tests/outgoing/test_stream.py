"""What an outgoing stream does beneath its contract: its one timer, and what becomes of replies."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from fanstream import EngineSettings, FLContext, Shareable, StreamContext, StreamEngine
from fanstream.codec import Codec
from fanstream.codec.types import TypeRegistry
from fanstream.protocol.frames import FrameType
from fanstream.testing import FaultyNetwork, Frame
from tests.federation import Keeper, federation, on_memory, within_the_process

pytestmark = pytest.mark.anyio


@within_the_process
@pytest.mark.parametrize("timeouts", [(10, 20), (20, 10), (10, 10)])
async def test_each_object_has_its_own_deadline(transport: str, timeouts: tuple[int, int]) -> None:
    async with federation(transport, 1) as fed:
        keeper = Keeper()
        keeper.do = lambda _n: keeper.block()
        keeper.register(fed.sites["site-1"])
        took: dict[int, float] = {}

        async def send(n: int) -> None:
            began = anyio.current_time()
            replies = await stream.send(Shareable({"n": n}), timeout=timeouts[n])
            assert replies["site-1"].get_return_code() == "TIMEOUT"
            took[n] = anyio.current_time() - began

        context = fed.server.new_context("job")
        async with fed.server.open_stream("models", "weights", ["site-1"], context) as stream:
            async with anyio.create_task_group() as tg:
                for n in (0, 1):
                    tg.start_soon(send, n)
            context.get_run_abort_signal().trigger("the consumer never answers")
        assert took == {n: pytest.approx(timeouts[n], abs=0.001) for n in (0, 1)}


class Secret:
    """Known to one side."""


async def test_a_reply_of_a_type_that_is_not_registered_here_is_an_error_of_its_pair() -> None:
    site = StreamEngine("site-1", settings=EngineSettings(registration_grace=0))
    types = TypeRegistry()
    types.register_type("secret", Secret, lambda _value: 1, lambda _content: Secret())
    site.codec = Codec(types=types)
    async with StreamEngine("server") as server, site:

        @site.consumer("models", "weights")
        async def tell(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Shareable:
            return Shareable({"told": Secret() if shareable["n"] == 0 else "nothing"})

        await server.wait_for_sites(["site-1"])
        async with server.open_stream("models", "weights", ["site-1"]) as stream:
            replies = [(await stream.send(Shareable({"n": n})))["site-1"] for n in (0, 1)]
    assert replies[0].get_return_code() == "EXECUTION_RESULT_ERROR"
    assert "'secret' is not in the registry" in replies[0].headers["reason"]
    assert replies[1]["told"] == "nothing"
    assert stream.result is not None
    assert stream.result.outcomes == {"replied": 2}


@on_memory
async def test_what_one_site_shows_of_itself_is_not_sent_to_another(transport: str) -> None:
    sent: list[Frame] = []

    def keep(frame: Frame) -> list[Frame]:
        sent.append(frame)
        return [frame]

    shown = EngineSettings(public_props={"telltale": "of-site-1"})
    with FaultyNetwork() as network:
        async with federation(transport, 1) as fed:
            hub = fed.server.addresses[0]
            async with StreamEngine("shown", connect=hub, settings=shown) as site:
                Keeper().register(site)
                Keeper().register(fed.sites["site-1"])
                await fed.server.wait_for_sites(["shown"])
                async with fed.server.open_stream("models", "weights", ["shown"]) as stream:
                    reply: Any = (await stream.send(Shareable({"n": 1})))["shown"]
                assert reply.get_peer_prop("telltale") == "of-site-1"
                network.link("site-1").down.rewrite = keep
                async with fed.server.open_stream("models", "weights", ["site-1"]) as stream:
                    await stream.send(reply)
    objects = [frame.body for frame in sent if frame.kind == FrameType.OBJECT]
    assert len(objects) == 1
    assert b"telltale" not in objects[0]
