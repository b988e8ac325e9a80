"""What an engine tells of its links, streams, policy and kit; and that nothing which streams carry is ever in it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from fanstream import EngineSettings, FLContext, Shareable, StreamContext, StreamEngine, make_reply
from fanstream.errors import SecurityError
from fanstream.observe import AUDIT_LOGGER, Audit, JsonLines
from fanstream.security import Kit
from fanstream.security.provision import Federation as Provisioned
from fanstream.testing import RawPeer
from fanstream.testing.peer import hello
from tests.federation import QUICK, Keeper, Numbers, federation, hubs, on_memory, until
from tests.security.conftest import plan
from tests.security.test_authorization import having, policy, rule, write
from tests.threats.siege import address

pytestmark = pytest.mark.anyio


class Ears:
    """The events of some engines, as plain values, without what differs from run to run."""

    def __init__(self, *engines: StreamEngine) -> None:
        self._streams = {engine.name: engine.events() for engine in engines}

    def heard(self, engine: str) -> list[dict[str, Any]]:
        stream = self._streams[engine]
        told = [event.as_dict() for event in stream._events]
        stream._events.clear()
        for facts in told:
            assert facts.pop("at") > 1_700_000_000
            if "stream" in facts:
                assert len(bytes.fromhex(facts.pop("stream"))) == 16
        return told


ADDRESS = {"channel": "models", "topic": "weights"}


@hubs
async def test_a_stream_is_told_by_its_opener_its_hub_and_its_site(transport: str) -> None:
    async with federation(transport, 2) as fed:
        Keeper().register(fed.sites["site-2"])
        ears = Ears(*fed.engines)
        result = await fed.stream(Numbers(3), ["site-2"], opener=fed.sites["site-1"])
        assert result.complete
        await until(lambda: not fed.sites["site-2"]._incoming)
        assert ears.heard("site-1") == [
            {"event": "stream-opened", **ADDRESS, "targets": ["site-2"], "sealed": False},
            {
                "event": "stream-ended", "opener": "site-1", **ADDRESS, "code": "OK", "objects": 3,
                "sites": {"site-2": {"code": "OK", "replied": 3}},
            },
        ]  # fmt: skip
        assert ears.heard("server") == [
            {"event": "stream-forwarded", "opener": "site-1", "target": "site-2", **ADDRESS}
        ]
        assert ears.heard("site-2") == [
            {"event": "stream-admitted", "opener": "site-1", **ADDRESS, "via": "server", "sealed": False},
            {"event": "stream-ended", "opener": "site-1", **ADDRESS, "code": "OK", "objects": 3, "sites": {}},
        ]


@on_memory
async def test_refusals_are_told_with_their_code(transport: str) -> None:
    async with federation(transport, 1, settings=having(server=policy(rule("few", topic="update")))) as fed:
        ears = Ears(*fed.engines)
        one = fed.sites["site-1"]
        denied: dict[str, Any] = {"opener": "site-1", "target": "server", **ADDRESS}
        await fed.stream(Numbers(1), ["server"], opener=one)
        assert ears.heard("server") == [
            {"event": "policy-decided", "action": "take", **denied, "allowed": False, "rule": None},
            {
                "event": "stream-refused", **denied, "code": "UNSAFE_JOB",
                "reason": "the policy of server denies it: no rule allows it",
            },
        ]  # fmt: skip
        await one.stream_objects("models", "update", {}, ["server"], Numbers(1), one.new_context())
        told = ears.heard("server")
        assert [facts["event"] for facts in told] == ["policy-decided", "stream-admitted", "stream-refused"]
        assert (told[0]["allowed"], told[0]["rule"]) == (True, "few")
        assert (told[2]["code"], told[2]["reason"]) == ("TOPIC_UNKNOWN", "nothing is registered for models/update")
        with pytest.raises(SecurityError):
            await fed.stream(Numbers(1), ["site-1"])
        fed.server.register_stream_processing("a", "b", Keeper())
        mine: dict[str, Any] = {"event": "policy-decided", "opener": "server"}
        assert ears.heard("server") == [
            {**mine, "action": "open", "target": "site-1", **ADDRESS, "allowed": False, "rule": None},
            {
                **mine, "action": "register", "target": "", "channel": "a", "topic": "b", "allowed": True,
                "rule": "takes all",
            },
        ]  # fmt: skip


@on_memory
async def test_links_are_told_as_they_come_and_go(transport: str) -> None:
    async with federation(transport, 0) as fed:
        ears = Ears(fed.server)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet("site-1")
            async with RawPeer.dial(address(fed)) as other:
                other.send(hello("server"))
                await other.closed()
        await until(lambda: not fed.server._links._links)
        told = ears.heard("server")
        assert told[0] == {"event": "link-opened", "peer": "site-1", "dialled": False, "certificate": ""}
        assert told[1] == {
            "event": "peer-refused", "peer": "server", "code": "name-in-use",
            "reason": "server is this engine's own name",
        }  # fmt: skip
        assert (told[2]["event"], told[2]["peer"], len(told)) == ("link-closed", "site-1", 3)


@on_memory
async def test_an_abort_and_a_failure_end_a_stream_with_their_codes(transport: str) -> None:
    async with federation(transport, 1) as fed:
        Keeper().register(fed.sites["site-1"])
        ears = Ears(fed.server)
        fl_ctx = fed.server.new_context()
        with pytest.raises(ZeroDivisionError):
            await fed.stream(Numbers(1, judge=lambda seq, replies: 1 / 0))
        fl_ctx.get_run_abort_signal().trigger("enough")
        await fed.stream(Numbers(1), fl_ctx=fl_ctx)
        codes = [facts["code"] for facts in ears.heard("server") if facts["event"] == "stream-ended"]
        assert codes == ["EXECUTION_EXCEPTION", "TASK_ABORTED"]


@on_memory
async def test_objects_cost_no_events(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Audit] = []
    wanted = Audit.wanted.fget  # type: ignore[attr-defined]

    def ask(audit: Audit) -> bool:
        asked.append(audit)
        return bool(wanted(audit))

    monkeypatch.setattr(Audit, "wanted", property(ask))
    async with federation(transport, 1) as fed:
        Keeper().register(fed.sites["site-1"])
        for number in (1, 200):
            asked.clear()
            assert (await fed.stream(Numbers(number))).complete
            await fed.settle()
            assert len(asked) == 4, "once as it opens and ends, at either end"


# --- what is never told ---

CANARY = "canary-5b21e0"


@asynccontextmanager
async def everything_heard() -> AsyncIterator[list[str]]:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.extend((record.getMessage(), self.format(record)))

    handler = Keep()
    handler.setFormatter(JsonLines())
    log = logging.getLogger(AUDIT_LOGGER)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


@hubs
@pytest.mark.parametrize("fate", ["fine", "failing", "refusing", "unknown", "ending", "aborted"])
async def test_what_a_stream_carries_is_in_no_event(fate: str, transport: str) -> None:
    async with everything_heard() as lines, federation(transport, 2, settings=QUICK) as fed:
        ears = {engine.name: engine.events() for engine in fed.engines}

        async def consume(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
            if fate == "failing":
                raise RuntimeError(CANARY)
            reply = make_reply("ERROR" if fate == "refusing" else "OK", {"reason": CANARY, "cookie": CANARY})
            reply["data"] = shareable["data"]
            return fate not in ("refusing", "ending"), reply

        if fate != "unknown":
            fed.sites["site-2"].consumer("models", "weights")(consume)
        opener = fed.sites["site-1"]
        context = opener.new_context(CANARY)
        context.set_prop("prop", CANARY, private=False)
        shareable = Shareable({"data": CANARY, CANARY: np.arange(5000.0)})
        shareable.set_header("header", CANARY)
        shareable.add_cookie("cookie", CANARY)
        stream_ctx: StreamContext = {"token": CANARY}
        async with opener.open_stream("models", "weights", ["site-2"], context, stream_ctx=stream_ctx) as stream:
            await stream.send(shareable)
            if fate == "aborted":
                context.get_run_abort_signal().trigger(CANARY)
                await anyio.lowlevel.checkpoint()
        await fed.settle()
        told = [event for stream_of in ears.values() for event in stream_of._events]
    assert {event.kind for event in told} >= {"stream-opened", "stream-forwarded", "stream-admitted"}
    assert any(event.kind in ("stream-ended", "stream-refused") for event in told)
    assert len(lines) >= len(told)
    for said in [*lines, *map(repr, told), *(json.dumps(event.as_dict()) for event in told)]:
        assert CANARY not in said


# --- kits and policies ---


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_rotation_and_revocation_are_told(anyio_backend: str, tmp_path: Path) -> None:
    provisioned = Provisioned.make(plan(), tmp_path / "hospitals")
    with anyio.fail_after(20):
        # The site's own copy does not hear of the revocation.
        own = shutil.copytree(provisioned.kits / "site-1", tmp_path / "site-1")
        kits = {"server": Kit.load(provisioned.kits / "server"), "site-1": Kit.load(own)}
        settings = EngineSettings(retry_max=0.1)
        async with (
            StreamEngine("server", listen="tls://127.0.0.1:0", identity=kits["server"]) as hub,
            StreamEngine("site-1", connect=hub.addresses, identity=kits["site-1"], settings=settings) as site,
        ):
            events = hub.events()
            await site.wait_for_sites(["server"])
            certificate = kits["site-1"].identity.fingerprint
            provisioned.renew(["server"])
            provisioned.revoke(["site-1"])
            told: list[dict[str, Any]] = []
            async for event in events:
                told.append(event.as_dict())
                if event.kind == "peer-refused":
                    break
            by_kind = {facts["event"]: facts for facts in told}
            if "link-opened" in by_kind:
                assert by_kind["link-opened"]["certificate"] == certificate
            loaded = by_kind["identity-loaded"]
            assert (loaded["loaded"], loaded["roots"], loaded["revoked"]) == (True, 1, 1)
            assert loaded["certificate"] == hub.identity.identity.fingerprint  # type: ignore[union-attr]
            ended = by_kind["identity-ended"]
            assert (ended["peer"], ended["code"], ended["certificate"]) == ("site-1", "revoked", certificate)
            assert "is revoked" in by_kind["peer-refused"]["reason"]


@on_memory
async def test_a_policy_that_is_loaded_or_not_is_told(transport: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    write(path, ("allow", "*", "weights"))
    async with federation(transport, 0, settings=having(server=path)) as fed:
        ears = Ears(fed.server)
        write(path, ("allow", "*", "weights"), ("allow", "*", "update"))
        await anyio.sleep(2)
        path.write_text("x = 1\n")
        await anyio.sleep(5)
        first, second = ears.heard("server")
        assert first == {"event": "policy-loaded", "path": str(path), "loaded": True, "rules": 3, "reason": ""}
        assert (second["loaded"], second["rules"]) == (False, 3)
        assert second["reason"] == "is refused: x: Extra inputs are not permitted"
