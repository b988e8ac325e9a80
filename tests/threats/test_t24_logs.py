"""T24: what streams carry stands in no log, error or repr; who is far away hears a code and a correlation id."""

from __future__ import annotations

import gc
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest

from fanstream import EngineSettings, Limits, Shareable, StreamEngine, StreamOptions, make_reply
from fanstream.codec import Codec
from fanstream.errors import CodecError
from fanstream.protocol import bodies
from fanstream.protocol.events import Ended, Greeted, ObjectArrived, Opened, ReplyArrived
from fanstream.protocol.frames import PAYLOAD, FrameType
from fanstream.streamers import register_files, stream_file
from fanstream.testing import FaultyNetwork, Frame, RawPeer
from fanstream.testing.peer import hello
from tests.codec.carrying import raw
from tests.federation import Federation, federation, on_memory, until
from tests.protocol.linked import linked, pump, stream
from tests.threats.siege import Forger, T, address

pytestmark = pytest.mark.anyio

CANARY = "canary-9c41d7"


def shows(text: str) -> bool:
    """Whether *text* holds the canary in some spelling."""
    spellings = (CANARY, CANARY.encode().hex(), ", ".join(str(byte) for byte in CANARY.encode()))
    return any(spelling in text for spelling in spellings)


class Everything(logging.Handler):
    """Keeps all that is logged, with tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record) + repr(record.args))


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """All that is logged at DEBUG while a test runs; the canary may stand in nothing of it."""
    handler = Everything()
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield handler.said
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
    assert [line for line in handler.said if shows(line)] == []


def precious() -> Shareable:
    """An object that is full of what must not be shown."""
    made = Shareable(
        {
            "text": CANARY,
            "bytes": CANARY.encode(),
            "nested": {"list": [CANARY, (CANARY,), {CANARY}]},
            "array": np.frombuffer(CANARY.encode() * 20_000, np.uint8),
            "chars": np.array([CANARY] * 3),
            "blob": CANARY.encode() * 2000,
        }
    )
    made.set_header("header", CANARY)
    made.add_cookie("cookie", CANARY)
    return made


def reprs() -> list[str]:
    """The repr of every living object of this package, save for what the application itself put there."""
    found = []
    for thing in gc.get_objects():
        kind = type(thing)
        if str(getattr(kind, "__module__", "")).startswith("fanstream"):
            found.append(repr(thing))
    return found


async def good(shareable: Shareable) -> Any:
    return precious()


async def failing(shareable: Shareable) -> Any:
    secret = shareable["text"]
    raise RuntimeError(f"no, in spite of {len(secret)} characters")


async def nonsense(shareable: Shareable) -> Any:
    return shareable["text"]


async def unsendable(shareable: Shareable) -> Any:
    return Shareable({**shareable, "object": object()})


async def refusing(shareable: Shareable) -> Any:
    return False, precious()


async def slow(shareable: Shareable) -> Any:
    await anyio.sleep(100)
    return precious()


CONSUMERS: dict[str, tuple[Callable[[Shareable], Any], str]] = {
    "good": (good, "OK"),
    "failing": (failing, "EXECUTION_EXCEPTION"),
    "nonsense": (nonsense, "EXECUTION_EXCEPTION"),
    "unsendable": (unsendable, "EXECUTION_EXCEPTION"),
    "refusing": (refusing, "OK"),
    "slow": (slow, "TIMEOUT"),
}


def contexts(fed: Federation) -> Any:
    context = fed.server.new_context("job")
    context.set_prop("secret", CANARY, private=True, sticky=False)
    return context


@on_memory
@pytest.mark.parametrize("consumer", CONSUMERS)
async def test_whatever_a_consumer_does_with_it(transport: str, consumer: str, logged: list[str]) -> None:
    consume, code = CONSUMERS[consumer]
    seen: list[str] = []
    async with federation(transport) as fed:

        @fed.sites["site-1"].consumer("models", "weights")
        async def consumed(shareable: Shareable, stream_ctx: Any, fl_ctx: Any) -> Any:
            seen.extend(reprs())
            return await consume(shareable)

        async with fed.server.open_stream(
            "models", "weights", ["site-1"], contexts(fed), stream_ctx={"note": CANARY}
        ) as opened:
            replies = await opened.send(precious(), timeout=5)
            seen.extend(reprs())
        result = opened.result
        assert result is not None
        seen.append(repr(result))
        assert replies["site-1"].get_return_code() == code
        if code == "EXECUTION_EXCEPTION":
            reason = result.sites["site-1"].reason
            correlation = re.search(r"correlation id ([0-9a-f]{8})$", reason)
            assert correlation, "the opener hears a number to ask for"
            assert any(correlation[1] in line and "Error" in line for line in logged), "under which it stands here"
            assert "Error" not in reason
    assert len(seen) > 50
    assert [text for text in seen if shows(text)] == []


@on_memory
@pytest.mark.parametrize(
    "fault", ["producer", "unknown type", "abort", "cut", "no such topic", "too large", "shutdown"]
)
async def test_whatever_goes_wrong_on_the_way(transport: str, fault: str, logged: list[str]) -> None:
    limits = Limits(object=64 * 1024) if fault == "too large" else Limits()
    settings = EngineSettings(limits=limits, registration_grace=0)
    errors: list[BaseException] = []
    with FaultyNetwork() as network:
        async with federation(transport) as fed:
            site = await fed.join("late")
            site.settings  # noqa: B018 - it is there
            async with StreamEngine("tight", connect=address(fed), settings=settings) as tight:
                await fed.server.wait_for_sites(["late", "tight"])
                if fault != "no such topic":

                    @tight.consumer("models", "weights")
                    async def consume(shareable: Shareable, stream_ctx: Any, fl_ctx: Any) -> Any:
                        if fault == "cut":
                            network.link("tight").cut()
                        return precious()

                context = contexts(fed)

                async def produce() -> Any:
                    yield precious(), 5.0
                    if fault == "producer":
                        raise RuntimeError("out of data")
                    if fault == "unknown type":
                        yield Shareable({"text": CANARY, "object": object()}), 5.0
                    if fault == "abort":
                        context.get_run_abort_signal().trigger("enough")
                    if fault == "shutdown":
                        await tight.shutdown_streamer()
                    yield precious(), 5.0

                try:
                    result = await fed.server.stream_objects(
                        "models", "weights", {"note": CANARY}, ["tight"], produce(), context
                    )
                    assert not shows(repr(result))
                    assert not shows(result.sites["tight"].reason)
                except Exception as exc:  # noqa: BLE001 - whatever it is, it is looked at
                    errors.append(exc)
    assert bool(errors) == (fault in ("producer", "unknown type"))
    for error in errors:
        assert not shows("".join(traceback.format_exception(error)).replace("yield Shareable", ""))


BAD_NODES: dict[str, Any] = {
    "date": [14, CANARY],
    "datetime": [13, CANARY, 0],
    "time": [15, CANARY],
    "dtype": [19, "<f4", CANARY.encode()],
    "array": [17, "<f4", CANARY.encode(), 3],
    "duration": [16, CANARY, 1, 1],
    "table": [23, CANARY.encode()],
    "surrogates": [9, CANARY.encode()],
    "large int": [7, CANARY],
    "set": [2, CANARY, CANARY],
    "equal keys": [4, CANARY, 1, CANARY, 2],
    "tensor": [22, "float32", CANARY.encode(), 2],
    "two": [10, CANARY],
}


@pytest.mark.parametrize("node", BAD_NODES)
def test_what_cannot_be_decoded_is_not_repeated(node: str) -> None:
    envelope = raw(1, {}, {"a": [0, BAD_NODES[node]]})
    with pytest.raises(CodecError) as caught:
        Codec().begin(envelope, ()).finish()
    assert not shows("".join(traceback.format_exception(caught.value)))


@on_memory
@pytest.mark.parametrize("node", ["date", "array", "set"])
async def test_a_bad_envelope_is_blamed_without_being_shown(transport: str, node: str, logged: list[str]) -> None:
    async with federation(transport) as fed, RawPeer.dial(address(fed)) as peer:
        await peer.greet()
        opened, one = Forger().stream({"n": 1})
        peer.send(opened, one._replace(body=PAYLOAD.pack(0, 0, 0, 0) + raw(1, {}, {"a": BAD_NODES[node]})))
        goodbye = await peer.receive(T.GOAWAY)
        assert CANARY.encode() not in goodbye.body
        await peer.closed()
    assert any("broke the protocol" in line for line in logged)


@on_memory
@pytest.mark.parametrize("kind", [T.PING, T.ABORT, T.OPEN, T.PRESENCE, T.GOAWAY, T.GRANT, T.HELLO, T.OBJECT, 99])
async def test_the_body_of_any_frame_stays_out_of_the_log(transport: str, kind: int, logged: list[str]) -> None:
    async with federation(transport) as fed, RawPeer.dial(address(fed)) as peer:
        await peer.greet()
        (opened,) = Forger().stream()
        alias = 0 if kind < T.OPEN else opened.alias + 2 if kind == T.OPEN else opened.alias
        peer.send(opened, Frame(kind, alias, body=b"\xc1" + CANARY.encode() * 30))
        with anyio.move_on_after(1):
            await peer.closed()


THINGS: list[Any] = [
    Opened(None, CANARY.encode()),  # type: ignore[arg-type]  # no leg is needed for these
    ObjectArrived(None, 0, precious(), 5, False),  # type: ignore[arg-type]
    ReplyArrived(None, 0, precious(), 5, False),  # type: ignore[arg-type]
    Ended(None, "OK", "", CANARY.encode()),  # type: ignore[arg-type]
    Greeted(bodies.decode(bodies.Hello, hello("site-1", incarnation=CANARY.encode().ljust(16)).body)),
    bodies.Ending("OK", "", CANARY.encode()),
    precious(),
    make_reply("OK", {"x": CANARY}),
    Codec().encode(precious()),
    Codec().begin(Codec().encode(precious()).envelope, Codec().encode(precious()).sizes),
    Frame(FrameType.OBJECT, body=CANARY.encode()),
]


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: repr(thing)[:24])
def test_a_repr_shows_no_content(thing: Any) -> None:
    assert not shows(repr(thing))
    assert not shows(str(thing))


def test_events_are_still_told_apart_by_their_content() -> None:
    leg = linked()[0]
    assert Ended(leg, "OK", "", b"a") != Ended(leg, "OK", "", b"b")  # type: ignore[arg-type]
    assert Ended(leg, "OK", "", b"a") == Ended(leg, "OK", "", b"a")  # type: ignore[arg-type]


async def test_the_content_of_a_file_is_not_shown(tmp_path: Path, logged: list[str], anyio_backend: Any) -> None:
    source = tmp_path / "scan"
    source.write_bytes(CANARY.encode() * 1000)
    inbox = tmp_path / "in"
    inbox.mkdir()

    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    async with StreamEngine("server") as server, StreamEngine("site-1") as site:
        register_files(site, "files", "one", inbox, fail)
        await server.wait_for_sites(["site-1"])
        result, replies = await stream_file(
            server, "files", "one", ["site-1"], source, server.new_context(), options=StreamOptions(window=2)
        )
        assert not shows(repr(result) + repr(replies))
        assert result.rc == "EXECUTION_EXCEPTION"
        assert [text for text in reprs() if shows(text)] == []
        await until(lambda: not site._incoming)


@pytest.mark.parametrize("said", ["two\nlines", "\x1b[31mred", "\N{RIGHT-TO-LEFT OVERRIDE}txt", "long " * 1000])
def test_what_a_peer_says_of_its_goodbye_is_printable_and_short(said: str) -> None:
    pair = left, right = linked()
    stream(pair)
    left.core.scheduler.control(Frame(T.GOAWAY, body=msgspec.msgpack.encode([said, said])).pack())
    pump(pair)
    goodbye = right.events[0].goodbye  # type: ignore[attr-defined]  # it is a Departed
    assert goodbye.reason.isprintable()
    assert goodbye.code.isprintable()
    assert len(goodbye.reason) <= 1000
