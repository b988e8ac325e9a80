"""Who is dialled, and which link a stream takes."""

from __future__ import annotations

import anyio
import pytest

from fanstream import FLContext, Shareable, StreamContext, StreamEngine


async def both_dial_at_once() -> None:
    async with StreamEngine("a") as a, StreamEngine("b") as b:
        for engine in (a, b):

            @engine.consumer("models", "weights")
            async def take(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Shareable:
                return Shareable({"n": shareable["n"]})

        replies: list[dict[str, Shareable]] = []

        async def send(engine: StreamEngine, other: str) -> None:
            async with engine.open_stream("models", "weights", [other]) as stream:
                for n in range(20):
                    replies.append(await stream.send(Shareable({"n": n})))
                    await anyio.lowlevel.checkpoint()
            assert stream.result is not None
            assert stream.result.complete, stream.result

        async with anyio.create_task_group() as tg:
            tg.start_soon(send, a, "b")
            tg.start_soon(send, b, "a")
        assert sum(reply["n"] for answers in replies for reply in answers.values()) == 2 * sum(range(20))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_engines_that_dial_each_other_at_once_lose_nothing(backend: str) -> None:
    anyio.run(both_dial_at_once, backend=backend)
