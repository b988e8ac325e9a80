"""The ways to hand in what a scenario's producer makes: the class itself, a generator, or an open stream to send on."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import anyio

from fanstream import FLContext, Shareable, StreamEngine, StreamOptions, StreamResult
from tests.simulation.actors import Actors


async def run_stream(
    actors: Actors, engine: StreamEngine, fl_ctx: FLContext, options: StreamOptions, resume: str | None = None
) -> StreamResult | None:
    """Run a stream in the shape that its script asks for, as an application would; raises what reaches that."""
    script = actors.script
    address = ("models", f"stream-{actors.number}")
    stream_ctx = {"number": actors.number}
    targets = list(script.targets)
    if script.shape == "open":
        sending = _Sending(actors)
        async with engine.open_stream(
            *address, targets, fl_ctx, stream_ctx=stream_ctx, optional=script.optional, options=options
        ) as stream:
            await sending.run(stream, fl_ctx)
        sending.close(stream.result)
        return stream.result
    producer: Any = actors.producer if script.shape == "class" else _generate(actors, stream_ctx, fl_ctx)
    return await engine.stream_objects(
        *address, stream_ctx, targets, producer, fl_ctx, script.optional, options=options, resume=resume
    )  # fmt: skip


async def _generate(actors: Actors, stream_ctx: Any, fl_ctx: FLContext) -> AsyncGenerator[Any, Any]:
    while True:
        made: Any = await actors.producer.produce(stream_ctx, fl_ctx)
        if isinstance(made, tuple) and made[0] is None:
            return
        replies = yield made
        await actors.producer.process_replies(replies, stream_ctx, fl_ctx)


class _Sending:
    """Sends what the producer makes, each object in a task of its own, and looks at what comes back."""

    def __init__(self, actors: Actors) -> None:
        self._actors = actors
        self._answers: list[dict[str, Shareable]] = []
        self._error: Exception | None = None

    async def run(self, stream: Any, fl_ctx: FLContext) -> None:
        producer = self._actors.producer
        async with anyio.create_task_group() as tg:
            try:
                while not producer.exhausted:
                    made: Any = await producer.make(ahead=True)
                    if not isinstance(made, tuple):
                        await stream.send(made)
                    elif made[0] is not None and not made[1] > 0:
                        await stream.send(*made)
                    elif made[0] is not None:
                        self._answers.append({})
                        tg.start_soon(self._send, stream, len(self._answers) - 1, made, tg.cancel_scope)
                        for _ in range(2):  # until it stands in the queue: they are sent in the order of their numbers
                            await anyio.lowlevel.checkpoint()
            except Exception as exc:  # noqa: BLE001 - raised below, where no group is around it
                self._error = exc
                tg.cancel_scope.cancel()
        if self._error is not None:
            raise self._error

    async def _send(self, stream: Any, seq: int, made: tuple[Shareable, float], scope: anyio.CancelScope) -> None:
        actors, script = self._actors, self._actors.script
        try:
            if script.watching:
                replies = {site: reply async for site, reply in stream.replies(*made)}
            else:
                replies = await stream.send(*made)
            self._answers[seq] = replies
            for site, reply in replies.items():
                if reply.get_return_code() in ("OK", "EMPTY_RESULT"):
                    actors.producer.check(site, seq, reply)
            if seq == script.at and script.ending == "raise in judge":
                actors.producer.raise_in_judge()
        except Exception as exc:  # noqa: BLE001 - raised where it is waited for
            self._error = self._error or exc
            scope.cancel()

    def close(self, result: StreamResult | None) -> None:
        """Tell the producer what it has seen: of the objects that were sent, each once."""
        if result is None:
            return
        producer = self._actors.producer
        for replies in self._answers[result.objects :]:
            if replies:
                self._actors.object(f"replies to an object that was not sent: {replies}")
        producer.seen = [
            {site: reply.get_return_code() for site, reply in replies.items()}
            for replies in self._answers[: result.objects]
        ]
