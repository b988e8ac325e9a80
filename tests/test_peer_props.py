"""Public props: each side sees the other's, with objects and with replies, and nobody sees a third one's."""

from __future__ import annotations

from typing import Any

import pytest

from fanstream import EngineSettings, FLContext, Shareable, StreamContext, StreamOptions, make_reply
from tests.federation import Numbers, everywhere, federation

pytestmark = [pytest.mark.anyio, everywhere]

SHOWN = EngineSettings(public_props={"region": "north"})


async def test_objects_and_replies_show_the_props_of_the_site_they_came_from(transport: str) -> None:
    async with federation(transport, 2, settings=SHOWN) as fed:
        seen: list[Any] = []
        for name, site in fed.sites.items():

            @site.consumer("models", "weights")
            async def take(
                shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext, name: str = name
            ) -> Shareable:
                seen.append(shareable.get_peer_prop("round"))
                fl_ctx.put("site", name, private=False, sticky=False)
                return make_reply("OK")

        producer = Numbers(3)
        context = fed.server.new_context("job")
        context.put("round", 7, private=False, sticky=False)
        await fed.stream(producer, fl_ctx=context, options=StreamOptions(window=2))
        assert seen == [7] * 6
        for replies in producer.replies:
            for name, reply in replies.items():
                assert reply.get_peer_prop("region") == "north"
                assert reply.get_peer_prop("round") is None, name


async def test_props_that_came_with_an_object_do_not_go_back_or_on(transport: str) -> None:
    async with federation(transport, 2) as fed:
        for site in fed.sites.values():

            @site.consumer("models", "weights")
            async def echo(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Shareable:
                return shareable

        context = fed.server.new_context("job")
        context.put("of-the-server", 1, private=False, sticky=False)
        async with fed.server.open_stream("models", "weights", ["site-1"], context) as stream:
            reply = (await stream.send(Shareable({"n": 1})))["site-1"]
            assert reply.get_peer_props() == {}
            reply.set_peer_props({"of-site-1": 1})
        async with fed.server.open_stream("models", "weights", ["site-2"]) as stream:
            forwarded = (await stream.send(reply))["site-2"]
        assert forwarded.get_peer_props() == {}
        assert reply.get_peer_props() == {"of-site-1": 1}, "the application's own object is as it was"
