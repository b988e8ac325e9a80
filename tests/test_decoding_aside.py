"""What takes long to decode is decoded by a thread, and everything happens in its order all the same (threat T14)."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pytest

from fanstream import ConsumerFactory, ObjectConsumer, Shareable, StreamOptions
from fanstream.codec import Codec, decode, tags
from tests.federation import federation, within_the_process

# They watch, or hold up, what a payload calls of its codec, which compiled parts call directly.
pytestmark = [pytest.mark.anyio, pytest.mark.interpreted]

LONG = ["some text of this list"] * 1500  # about 35 KiB of envelope


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads in which anything was decoded aside."""
    seen: list[threading.Thread] = []

    def watch(name: str, see: Callable[..., bool]) -> None:
        original = getattr(Codec, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if see(*args):
                seen.append(threading.current_thread())
            return original(*args, **kwargs)

        monkeypatch.setattr(Codec, name, watched)

    watch("decode_landed", lambda *_: True)
    watch("decode_value", lambda _codec, data: len(data) > 16 * 1024)
    return seen


def check_apart(threads: list[threading.Thread], least: int) -> None:
    assert len(threads) >= least
    assert threading.current_thread() not in threads


class Answering(ObjectConsumer, ConsumerFactory):
    """Takes down what comes, and answers with a long or a short reply."""

    def __init__(self, long_replies: Callable[[int], bool]) -> None:
        self.seen: list[tuple[int, int]] = []
        self.contexts: list[Any] = []
        self._long_replies = long_replies

    async def consume(self, shareable: Shareable, stream_ctx: Any, fl_ctx: Any) -> tuple[bool, Shareable]:
        number = shareable["number"]
        self.seen.append((number, len(shareable["items"])))
        self.contexts.append(stream_ctx.get("notes"))
        return True, Shareable({"number": number, "items": LONG if self._long_replies(number) else []})

    async def finalize(self, stream_ctx: Any, fl_ctx: Any) -> None:
        pass

    async def get_consumer(self, stream_ctx: Any, fl_ctx: Any) -> Answering:
        return self

    async def return_consumer(self, consumer: Any, stream_ctx: Any, fl_ctx: Any) -> None:
        pass


@within_the_process
async def test_long_and_short_ones_keep_their_order(transport: str, threads: list[threading.Thread]) -> None:
    number = 12
    site = Answering(lambda n: n % 3 == 0)
    async with federation(transport, 1) as fed:
        fed.sites["site-1"].register_stream_processing("models", "weights", site, lambda *_, **__: LONG)
        answers = []
        async with fed.server.open_stream(
            "models", "weights", ["site-1"], stream_ctx={"notes": LONG}, options=StreamOptions(window=number)
        ) as stream:

            async def send(n: int) -> None:
                content = {"number": n, "items": LONG if n % 2 else []}
                replies = await stream.send(Shareable(content), timeout=30)
                answers.append((replies["site-1"]["number"], len(replies["site-1"]["items"])))

            async with anyio.create_task_group() as tg:
                for n in range(number):
                    tg.start_soon(send, n)
        assert sorted(site.seen) == [(n, 1500 if n % 2 else 0) for n in range(number)]
        assert sorted(answers) == [(n, 1500 if n % 3 == 0 else 0) for n in range(number)]
        assert site.contexts == [LONG] * number
        assert stream.result is not None
        assert stream.result.sites["site-1"].end_result == LONG
        assert stream.result.complete
    check_apart(threads, 6 + 4 + 2)


@within_the_process
async def test_arrays_of_an_object_with_a_long_envelope_are_private_and_writable(
    transport: str, threads: list[threading.Thread]
) -> None:
    arrays: dict[str, Any] = {
        "large": np.arange(100_000.0),
        "small": np.arange(600.0),
        "bytes": bytes(9000),
        "text": "x" * 9000,
    }
    got: list[Shareable] = []
    async with federation(transport, 1) as fed:

        @fed.sites["site-1"].consumer("models", "weights")
        async def keep(shareable: Shareable, _stream_ctx: Any, _fl_ctx: Any) -> None:
            got.append(shareable)

        async with fed.server.open_stream("models", "weights", ["site-1"]) as stream:
            for _ in range(2):
                await stream.send(Shareable({**arrays, "names": LONG}), timeout=30)
    check_apart(threads, 2)
    for shareable in got:
        assert np.array_equal(shareable["large"], arrays["large"])
        assert (shareable["bytes"], shareable["text"]) == (arrays["bytes"], arrays["text"])
        shareable["large"][:] = 0
        shareable["small"][:] = 0
    assert arrays["large"][1] == 1


@within_the_process
async def test_a_library_is_imported_by_a_thread(
    transport: str, threads: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.arange(4.0)
    async with federation(transport, 1) as fed:

        @fed.sites["site-1"].consumer("models", "weights")
        async def echo(shareable: Shareable, _stream_ctx: Any, _fl_ctx: Any) -> Shareable:
            monkeypatch.delitem(decode._HANDLERS, tags.ARRAY, raising=False)
            return Shareable({"a": shareable["a"]})

        async with fed.server.open_stream("models", "weights", ["site-1"]) as stream:
            monkeypatch.delitem(decode._HANDLERS, tags.ARRAY, raising=False)
            monkeypatch.setattr(decode, "is_loaded", lambda _name: False)
            replies = await stream.send(Shareable({"a": array}), timeout=30)
            assert np.array_equal(replies["site-1"]["a"], array)
    check_apart(threads, 2)


def test_nothing_is_imported_for_an_object_where_it_arrives() -> None:
    code = """
import sys
from fanstream.codec import Codec
from fanstream.codec.faults import NotAtOnceError
import msgspec
codec = Codec()
nodes = ([17, "<f4", bytes(4), 1], ()), ([22, "float32", None, 1 << 18], (1 << 20,)), ([23, None], (70000,))
for node, sizes in nodes:
    envelope = msgspec.msgpack.encode((1, {}, {"a": node}))
    try:
        codec.begin(envelope, sizes, imports=False)
    except NotAtOnceError:
        landed = codec.land(envelope, sizes)
        for destination in landed.destinations:
            destination[:4] = b"abcd"
assert not {"numpy", "torch", "pyarrow"} & set(sys.modules), "imported"
envelope = msgspec.msgpack.encode((1, {}, {"a": [17, "<f4", None, 1 << 18]}))
landed = codec.land(envelope, (1 << 20,))
landed.destinations[0][:] = bytes(range(256)) * 4096
value = landed.finish()["a"]
assert value.nbytes == 1 << 20 and value.flags.writeable and "numpy" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@within_the_process
async def test_a_stream_that_is_aborted_while_a_thread_decodes_leaves_nothing(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    original = Codec.decode_landed

    def held(codec: Codec, *args: Any) -> Any:
        began.set()
        assert go_on.wait(30)
        return original(codec, *args)

    monkeypatch.setattr(Codec, "decode_landed", held)
    ends: list[str] = []
    async with federation(transport, 1) as fed:
        site = Answering(lambda _n: False)
        fed.sites["site-1"].register_stream_processing(
            "models", "weights", site, lambda stream_ctx, *_, **__: ends.append(stream_ctx["rc"])
        )
        context = fed.server.new_context()
        async with anyio.create_task_group() as tg:

            async def abort() -> None:
                while not began.is_set():  # noqa: ASYNC110 - a thread's
                    await anyio.sleep(0.001)
                context.get_run_abort_signal().trigger("enough")
                await anyio.sleep(0.01)
                go_on.set()

            tg.start_soon(abort)
            async with fed.server.open_stream("models", "weights", ["site-1"], context) as stream:
                await stream.send(Shareable({"number": 0, "items": LONG, "a": np.zeros(100_000)}), timeout=30)
        assert stream.result is not None
        assert stream.result.rc == "TASK_ABORTED"
        assert site.seen == []
    assert fed.leftovers() == []
