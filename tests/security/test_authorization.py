"""Red team: members that may do something try to do more, over every way in; and what the policy allows goes on."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest

from fanstream import EngineSettings, ReturnCode, Shareable, StreamEngine, StreamResult
from fanstream.errors import IdentityError, KitError, SecurityError
from fanstream.protocol import bodies
from fanstream.protocol.frames import Flag, FrameType, pack
from fanstream.security import Kit, Policy
from fanstream.security.provision import Federation as Provisioned
from fanstream.testing import FaultyNetwork, RawPeer
from tests.federation import Keeper, Numbers, federation, hubs, on_memory, until
from tests.security.kits import identities
from tests.threats.siege import address, expect_life

pytestmark = pytest.mark.anyio


def rule(name: str, effect: str = "allow", **changes: Any) -> dict[str, Any]:
    return {"name": name, "effect": effect, "from": "*", "to": "*", "channel": "*", "topic": "*", **changes}


def policy(*streams: dict[str, Any], **parts: Any) -> Policy:
    takes = {"name": "takes all", "effect": "allow", "site": "*", "channel": "*", "topic": "*"}
    return Policy.model_validate({"streams": streams, "registrations": [takes], **parts})


WEIGHTS = rule("weights", channel="models", topic="weights")


def having(**policies: Policy | Path | None) -> Callable[[str], EngineSettings]:
    """Settings of each site, by its name without the dash."""
    return lambda name: EngineSettings(registration_grace=0.0, policy=policies.get(name.replace("-", "")))


async def attempt(
    opener: StreamEngine, target: str, channel: str = "models", topic: str = "weights", **kwargs: Any
) -> StreamResult:
    return await opener.stream_objects(channel, topic, {}, [target], Numbers(1), opener.new_context(), **kwargs)


def opening(opener: str, target: str, channel: str = "models", topic: str = "weights", *, alias: int = 1) -> bytes:
    made = bodies.Opening(os.urandom(16), opener, [target], channel, topic, 2)
    body = b"\x83\xaastream_ctx\x80\xa5props\x80\xa3job\xa0"
    return pack(FrameType.OPEN, alias, body=bodies.join_opening(made, body), flags=Flag.CRITICAL)


async def refused(peer: RawPeer) -> bodies.Cause:
    return bodies.decode(bodies.Cause, (await peer.receive(FrameType.REFUSED)).body)


# --- where it is checked ---


@hubs
async def test_the_opener_asks_itself_before_anything_is_sent(transport: str) -> None:
    async with federation(transport, 2, settings=having(site1=policy(WEIGHTS))) as fed:
        keeper = Keeper().register(fed.sites["site-2"], topic="*")
        assert (await attempt(fed.sites["site-1"], "site-2")).complete
        sent = [link.core.session.last_sent for link in fed.sites["site-1"]._links]
        denied = (
            r"site-1 may not open a stream on channel 'models' and topic 'update' to site-2: no rule allows it; noth"
        )
        with pytest.raises(SecurityError, match=denied):
            await attempt(fed.sites["site-1"], "site-2", topic="update")
        with pytest.raises(SecurityError, match=denied):
            async with fed.sites["site-1"].open_stream("models", "update", ["site-2"], optional=True):
                pytest.fail("it was opened")
        assert sent == [link.core.session.last_sent for link in fed.sites["site-1"]._links]
        assert keeper.seen == [0]


@hubs
async def test_one_denied_target_stops_the_stream_to_all(transport: str) -> None:
    only = policy(rule("only to site-1", to="site-1"))
    async with federation(transport, 2, settings=having(server=only)) as fed:
        keepers = [Keeper().register(site) for site in fed.sites.values()]
        with pytest.raises(SecurityError, match="to site-2: no rule allows it"):
            await fed.stream(Numbers(1))
        assert [keeper.seen for keeper in keepers] == [[], []]


@hubs
async def test_the_hub_forwards_what_its_policy_allows_and_nothing_else(transport: str) -> None:
    between = policy(rule("nothing to site-2", "deny", to="site-2", topic="update"), WEIGHTS)
    async with federation(transport, 2, settings=having(server=between)) as fed:
        keeper = Keeper().register(fed.sites["site-2"], topic="*")
        one = fed.sites["site-1"]
        assert (await attempt(one, "site-2")).complete
        for topic, why in (("update", "rule 'nothing to site-2'"), ("other", "no rule allows it")):
            result = await attempt(one, "site-2", topic=topic)
            assert (result.rc, result.sites["site-2"].outcomes) == (ReturnCode.UNSAFE_JOB, {"refused": 1})
            assert result.sites["site-2"].reason == f"the policy of server denies it: {why}"
        assert keeper.seen == [0]


@hubs
@pytest.mark.parametrize("via", ["server", "site-1"])
async def test_the_receiver_asks_itself_though_the_hub_has_no_policy(via: str, transport: str) -> None:
    own = policy(WEIGHTS)
    async with federation(transport, 2, settings=having(site2=own)) as fed:
        keeper = Keeper().register(fed.sites["site-2"], topic="*")
        opener = fed.server if via == "server" else fed.sites["site-1"]
        assert (await attempt(opener, "site-2")).complete
        result = await attempt(opener, "site-2", topic="update")
        assert result.rc == ReturnCode.UNSAFE_JOB
        assert result.sites["site-2"].reason == "the policy of site-2 denies it: no rule allows it"
        assert keeper.log.count("get_consumer") == 1, "nothing of it was consumed"


@on_memory
async def test_a_denial_does_not_say_whether_the_target_is_there(transport: str) -> None:
    few = having(server=policy(rule("few", **{"from": "site-1"})))
    async with federation(transport, 1, settings=few) as fed, RawPeer.dial(address(fed)) as peer:
        await peer.greet("member")
        for alias, target in ((1, "site-1"), (3, "site-9"), (5, "server")):
            peer.send(opening("member", target, alias=alias))
            cause = await refused(peer)
            assert (cause.rc, cause.reason) == (
                ReturnCode.UNSAFE_JOB,
                "the policy of server denies it: no rule allows it",
            )


@on_memory
async def test_registrations_are_judged_before_and_while_the_engine_runs(transport: str) -> None:
    only = policy(
        WEIGHTS,
        registrations=[
            {"name": "no secrets", "effect": "deny", "site": "*", "channel": "secrets", "topic": "*"},
            {"name": "models", "effect": "allow", "site": "role:site", "channel": "models", "topic": "*"},
        ],
    )
    engine = StreamEngine("site-1", settings=EngineSettings(policy=only))
    reason = r"site-1 may not register for channel 'metrics' and topic '\*': no rule allows it"
    with pytest.raises(SecurityError, match=reason):
        engine.register_stream_processing("metrics", "*", Keeper())
    async with engine:
        with pytest.raises(SecurityError, match=reason):
            engine.register_stream_processing("metrics", "*", Keeper())
        with pytest.raises(SecurityError, match="channel '\\*' and topic '\\*': rule 'no secrets'"):
            engine.register_stream_processing("*", "*", Keeper())
        with pytest.raises(SecurityError, match="no rule allows it"):
            engine.incoming("metrics", "x")
        with pytest.raises(SecurityError, match="no rule allows it"):
            engine.consumer("metrics", "x")(lambda shareable, stream_ctx, fl_ctx: None)
        assert engine._registry.table == {}
        engine.register_stream_processing("models", "*", Keeper())
    hub = StreamEngine("server", listen="memory://judged", settings=EngineSettings(policy=only))
    with pytest.raises(SecurityError, match="no rule allows it"):
        hub.register_stream_processing("models", "*", Keeper())


# --- tricks over the bare wire ---

TRICKS: dict[str, tuple[str, str]] = {
    "another topic": ("models", "update"),
    "another case": ("models", "Weights"),
    "a look-alike": ("models", "w\N{CYRILLIC SMALL LETTER IE}ights"),
    "another form of the same letters": ("models", "\N{FULLWIDTH LATIN SMALL LETTER W}eights"),
    "a space": ("models", "weights "),
    "a NUL": ("models", "weights\0"),
    "a wildcard for a topic": ("models", "*"),
    "a wildcard for a channel": ("*", "weights"),
    "wildcards": ("*", "*"),
    "nothing": ("", ""),
    "no channel": ("", "weights"),
    "a pattern": ("models", "weigh*"),
    "both in one": ("models/weights", ""),
    "another order": ("weights", "models"),
}


@on_memory
@pytest.mark.parametrize("trick", TRICKS)
async def test_a_site_that_may_use_one_topic_gets_no_other(trick: str, transport: str) -> None:
    async with federation(transport, 1, settings=having(server=policy(WEIGHTS))) as fed:
        keeper = Keeper()
        for channel, topic in (("*", "*"), ("models", "*"), ("models", "weights")):
            fed.server.register_stream_processing(channel, topic, keeper)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet("member")
            peer.send(opening("member", "server", *TRICKS[trick]))
            cause = await refused(peer)
            assert (cause.rc, cause.who) == (ReturnCode.UNSAFE_JOB, "server")
            assert cause.reason == "the policy of server denies it: no rule allows it"
            await expect_life(peer)
            peer.send(opening("member", "server", alias=3))
            await until(lambda: fed.server._incoming)
        await until(lambda: not fed.server._incoming)
        fed.server._links._resuming.clear()
        assert keeper.log == []


@on_memory
@pytest.mark.parametrize("name", ["Site-1", "site-1.", "site_1", "site-01", "site-11", "SITE-1", "site-l"])
async def test_who_looks_like_a_site_that_may_is_not_that_site(name: str, transport: str) -> None:
    few = policy(rule("site-1 alone", **{"from": "group:few"}), groups={"few": ["site-1"]})
    async with federation(transport, 1, settings=having(server=few)) as fed:
        keeper = Keeper().register(fed.server)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet(name)
            peer.send(opening(name, "server"))
            assert (await refused(peer)).rc == ReturnCode.UNSAFE_JOB
        assert (await attempt(fed.sites["site-1"], "server")).complete
        assert keeper.seen == [0]


@on_memory
async def test_who_dials_is_a_site_and_no_hub_whatever_it_says(transport: str) -> None:
    hub_only = policy(rule("from hubs", **{"from": "role:hub"}))
    async with federation(transport, 1, settings=having(server=hub_only, site1=hub_only)) as fed:
        keepers = [Keeper().register(fed.server), Keeper().register(fed.sites["site-1"])]
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet("member", hub=True)
            for alias, target in ((1, "server"), (3, "site-1")):
                peer.send(opening("member", target, alias=alias))
                assert (await refused(peer)).rc == ReturnCode.UNSAFE_JOB
        assert (await attempt(fed.server, "site-1")).complete
        assert [keeper.seen for keeper in keepers] == [[], [0]]


@on_memory
@pytest.mark.parametrize("channel", ["_sealed", "_else"])
async def test_the_engines_own_channels_are_no_way_around(channel: str, transport: str) -> None:
    few = policy(rule("site-1 may something", channel="metrics", **{"from": "site-1"}))
    async with federation(transport, 1, settings=having(server=few)) as fed:
        keeper = Keeper()
        fed.server.register_stream_processing("*", "*", keeper)
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet("member")
            peer.send(opening("member", "server", channel, "prekey"))
            assert (await refused(peer)).rc == ReturnCode.UNSAFE_JOB
            peer.send(opening("member", "site-1", channel, "prekey", alias=3))
            assert (await refused(peer)).rc == ReturnCode.UNSAFE_JOB
        assert keeper.log == []


@on_memory
async def test_what_goes_on_after_a_break_is_no_way_around_the_hub(transport: str) -> None:
    few = policy(rule("not to site-1", "deny", to="site-1"), rule("all else"))
    async with federation(transport, 2, settings=having(server=few)) as fed:
        async with RawPeer.dial(address(fed)) as peer:
            await peer.greet("member")
            for alias, target, rc in ((1, "site-1", ReturnCode.UNSAFE_JOB), (3, "site-2", ReturnCode.RUN_MISMATCH)):
                resumption = bodies.Resumption(b"s" * 16, "member", [target], b"l" * 16)
                peer.send(pack(FrameType.RESUME, alias, body=bodies.encode(resumption), flags=Flag.CRITICAL))
                assert (await refused(peer)).rc == rc
        await until(lambda: "member" not in fed.server.sites())


# --- while it runs ---


def write(path: Path, *rules: tuple[str, str, str]) -> None:
    """Write a policy: of each rule its effect, who opens, and the topic."""
    text = "".join(
        f'[[streams]]\nname = "{number}"\neffect = "{effect}"\nfrom = "{opener}"\nto = "*"\n'
        f'channel = "models"\ntopic = "{topic}"\n'
        for number, (effect, opener, topic) in enumerate(rules)
    )
    takes = '[[registrations]]\nname = "takes all"\neffect = "allow"\nsite = "*"\nchannel = "*"\ntopic = "*"\n'
    new = path.with_suffix(".new")
    new.write_text(text + takes)
    new.replace(path)


@on_memory
async def test_a_new_policy_counts_for_new_streams_and_running_ones_stay(transport: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    write(path, ("allow", "*", "weights"))
    with FaultyNetwork() as network:
        async with federation(transport, 1, settings=having(server=path)) as fed:
            keeper = Keeper().register(fed.server)
            one = fed.sites["site-1"]
            async with one.open_stream("models", "weights", ["server"]) as stream:
                await stream.send(Shareable({"n": 0}))
                write(path, ("allow", "*", "update"))
                await anyio.sleep(2)
                assert (await attempt(one, "server")).rc == ReturnCode.UNSAFE_JOB
                await stream.send(Shareable({"n": 1}))
                network.links[-1].cut()
                replies = await stream.send(Shareable({"n": 2}))
                assert replies["server"].get_return_code() == ReturnCode.OK, "it goes on after a break too"
            assert keeper.seen == [0, 1, 2]
            assert (await attempt(one, "server", topic="update")).rc == ReturnCode.TOPIC_UNKNOWN


@on_memory
async def test_streams_that_open_while_the_policy_changes_are_judged_by_the_one_or_the_other(
    transport: str, tmp_path: Path
) -> None:
    path = tmp_path / "policy.toml"
    write(path, ("allow", "*", "weights"))
    async with federation(transport, 1, settings=having(server=path)) as fed:
        Keeper().register(fed.server)
        codes: list[str] = []
        for number in range(60):
            if number % 20 == 10:
                write(path, ("deny", "site-1", "weights"), ("allow", "*", "weights"))
            elif number % 20 == 0:
                write(path, ("allow", "*", "weights"))
            codes.append((await attempt(fed.sites["site-1"], "server")).rc)
            await anyio.sleep(0.3)
        assert set(codes) == {ReturnCode.OK, ReturnCode.UNSAFE_JOB}
        changes = sum(one != other for one, other in pairwise(codes))
        assert changes == 5, "each change is seen once, and no stream by a mixture"


@on_memory
async def test_a_broken_policy_leaves_the_one_before_in_use(
    transport: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "policy.toml"
    write(path, ("allow", "*", "weights"))
    async with federation(transport, 1, settings=having(server=path)) as fed:
        Keeper().register(fed.server)
        for text, reason in (("x = 1\n", "Extra inputs are not permitted"), (None, "is not there")):
            caplog.clear()
            if text is None:
                path.unlink()
            else:
                path.write_text(text)
            await anyio.sleep(10)
            told = [record.message for record in caplog.records if record.levelname == "ERROR"]
            assert len(told) == 1, "said once"
            assert reason in told[0]
            assert told[0].startswith(str(path))
            assert (await attempt(fed.sites["site-1"], "server")).complete
        write(path, ("deny", "*", "weights"))
        await anyio.sleep(2)
        assert (await attempt(fed.sites["site-1"], "server")).sites["server"].reason.endswith("rule '0'")


def test_a_broken_policy_is_refused_as_the_engine_is_made(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("streams = 1\n")
    with pytest.raises(KitError, match=r"policy\.toml: is refused: streams: .*\. Mend it"):
        StreamEngine("site-1", settings=EngineSettings(policy=path))


def test_only_a_policy_is_a_policy() -> None:
    class Permissive:
        def judge_stream(self, opener: Any, target: Any, channel: str, topic: str) -> bool:
            return True

    with pytest.raises(TypeError, match="policy is of type Permissive, expected a Policy or the path of one"):
        StreamEngine("site-1", settings=EngineSettings(policy=Permissive()))


# --- sealed streams, and certificates ---


@on_memory
async def test_sealed_streams_need_the_stream_to_be_allowed_and_no_more(transport: str) -> None:
    own = policy(rule("site-1 sends weights", channel="models", topic="weights", **{"from": "site-1"}, to="site-2"))
    settings = having(server=own, site1=own, site2=own)
    async with federation(transport, 3, settings=settings, identity=identities()) as fed:
        keeper = Keeper().register(fed.sites["site-2"])
        assert (await attempt(fed.sites["site-1"], "site-2", secure=True)).complete
        assert keeper.seen == [0]
        with pytest.raises(SecurityError, match="site-1 may not open a stream on channel 'models' and topic 'update'"):
            await attempt(fed.sites["site-1"], "site-2", topic="update", secure=True)
    async with federation(transport, 3, settings=having(site2=own), identity=identities()) as fed:
        keeper = Keeper().register(fed.sites["site-2"])
        with pytest.raises(SecurityError, match="site-2 gave no pre-key but UNSAFE_JOB; nothing was sent"):
            await attempt(fed.sites["site-3"], "site-2", secure=True)
        assert keeper.log == []


@on_memory
async def test_a_sealed_stream_that_is_denied_tells_why_though_not_by_whom(transport: str) -> None:
    own = policy(rule("updates alone", channel="models", topic="update"))
    async with federation(transport, 2, settings=having(site2=own), identity=identities()) as fed:
        keeper = Keeper().register(fed.sites["site-2"])
        result = await attempt(fed.sites["site-1"], "site-2", secure=True)
        assert result.rc == ReturnCode.COMMUNICATION_ERROR
        assert result.sites["site-2"].reason == (
            "site-2, or the hub before it, refused: UNSAFE_JOB: the policy of site-2 denies it: no rule allows it"
        )
        assert keeper.log == []


@asynccontextmanager
async def members(provisioned: Provisioned, server: Policy) -> AsyncIterator[tuple[StreamEngine, StreamEngine]]:
    with anyio.fail_after(20):
        async with (
            StreamEngine(
                "server", listen="tls://127.0.0.1:0", identity=Kit.load(provisioned.kits / "server"),
                settings=EngineSettings(policy=server, registration_grace=0.0),
            ) as hub,
            StreamEngine(
                "site-1", connect=hub.addresses, identity=Kit.load(provisioned.kits / "site-1"),
                settings=EngineSettings(retry_max=0.1),
            ) as site,
        ):  # fmt: skip
            await site.wait_for_sites(["server"])
            yield hub, site


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_member_of_a_group_that_is_revoked_may_nothing(anyio_backend: str, federation: Provisioned) -> None:
    trainers = policy(rule("trainers", **{"from": "group:trainers"}, to="role:hub"), groups={"trainers": ["site-1"]})
    async with members(federation, trainers) as (hub, site):
        keeper = Keeper().register(hub)
        assert (await attempt(site, "server")).complete
        federation.revoke(["site-1"])
        await until(lambda: not (hub.sites() or site.sites()))
        with pytest.raises(IdentityError):
            await site.wait_for_sites(["server"])
        assert (await attempt(site, "server")).rc == ReturnCode.COMMUNICATION_ERROR
        assert keeper.seen == [0]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_roles_are_those_of_the_certificates(anyio_backend: str, federation: Provisioned) -> None:
    own = policy(rule("hubs send", **{"from": "role:hub"}, to="role:site"), rule("logs", topic="logs", to="role:hub"))
    async with members(federation, own) as (hub, site):
        Keeper().register(hub, topic="*")
        Keeper().register(site, topic="*")
        assert (await attempt(hub, "site-1")).complete
        assert (await attempt(site, "server", topic="logs")).complete
        assert (await attempt(site, "server")).rc == ReturnCode.UNSAFE_JOB
        assert hub._links.role("site-1") == "site"
        assert site._links.role("server") == "hub"
        assert site._links.role("site-2") == "site"
