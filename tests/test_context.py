from __future__ import annotations

import logging
from typing import Any

import pytest

from fanstream.abort import AbortSignal
from fanstream.context import FLContext


def test_who_and_for_what() -> None:
    signal = AbortSignal()
    ctx = FLContext("site-1", "job-7", abort_signal=signal)
    assert (ctx.get_identity_name(), ctx.get_job_id(), ctx.get_engine()) == ("site-1", "job-7", None)
    assert ctx.get_run_abort_signal() is signal
    assert not FLContext().get_run_abort_signal().triggered


def test_a_prop_is_private_and_not_sticky_unless_said() -> None:
    ctx = FLContext()
    assert ctx.set_prop("a", 1)
    assert (ctx.get_prop("a"), ctx.get_prop("b"), ctx.get_prop("b", 2)) == (1, None, 2)
    assert ctx.get_prop_detail("a") == {"value": 1, "private": True, "sticky": False}
    assert ctx.get_prop_detail("b") is None


@pytest.mark.parametrize("value", [0, None, "", {}])
def test_a_value_may_be_falsy(value: Any) -> None:
    ctx = FLContext()
    ctx.set_prop("a", value)
    assert ctx.get_prop("a", "default") == value


def test_public_props_are_what_peers_see() -> None:
    ctx = FLContext()
    ctx.set_prop("hidden", 1)
    ctx.set_prop("shown", 2, private=False)
    ctx.set_prop("everywhere", 3, private=False, sticky=True)
    assert ctx.get_all_public_props() == {"shown": 2, "everywhere": 3}
    seen = {key for key in ("hidden", "shown", "everywhere", "none") if ctx.public_key_exists(key)}
    assert seen == {"shown", "everywhere"}


def test_a_prop_is_not_set_with_another_kind(caplog: pytest.LogCaptureFixture) -> None:
    ctx = FLContext()
    ctx.set_prop("a", 1)
    with caplog.at_level(logging.WARNING):
        assert not ctx.set_prop("a", 2, private=False)
        assert not ctx.set_prop("a", 2, sticky=True)
    assert (ctx.get_prop("a"), len(caplog.records)) == (1, 2)
    assert ctx.set_prop("a", 3)
    assert ctx.get_prop("a") == 3


def test_put_changes_the_kind() -> None:
    ctx = FLContext()
    ctx.put("a", 1, private=False, sticky=False)
    ctx.put("a", 2, private=True, sticky=True)
    assert ctx.get_prop_detail("a") == {"value": 2, "private": True, "sticky": True}
    assert ctx.get_all_public_props() == {}


def test_a_contexts_own_private_prop_hides_a_public_sticky_one_from_peers() -> None:
    ctx = FLContext()
    ctx.put("a", 1, private=False, sticky=True)
    ctx.put("a", 2, private=True, sticky=False)
    assert ctx.get_prop("a") == 2
    assert not ctx.public_key_exists("a")
    assert ctx.get_all_public_props() == {}


def test_keys_are_strings() -> None:
    key: Any = 5
    with pytest.raises(TypeError, match="key is 5 of type int, expected str"):
        FLContext().set_prop(key, 1)


def test_custom_props_are_out_of_the_way() -> None:
    ctx = FLContext()
    ctx.set_custom_prop("a", 1)
    assert (ctx.get_custom_prop("a"), ctx.get_custom_prop("b", 2), ctx.get_prop("a")) == (1, 2, None)
    assert ctx.get_all_public_props() == {}


def test_a_clone_shares_sticky_props_alone() -> None:
    ctx, peer = FLContext("site-1", "job"), FLContext("site-2")
    ctx.set_prop("own", 1)
    ctx.set_prop("shared", 1, sticky=True)
    ctx.set_peer_context(peer)
    twin = ctx.clone()
    twin.set_prop("own", 2)
    twin.set_prop("shared", 2, sticky=True)
    assert (ctx.get_prop("own"), ctx.get_prop("shared")) == (1, 2)
    assert (twin.get_identity_name(), twin.get_job_id(), twin.get_peer_context()) == ("site-1", "job", peer)
    assert twin.get_run_abort_signal() is ctx.get_run_abort_signal()
    twin.remove_prop("shared")
    twin.remove_prop("own")
    assert (ctx.get_prop("own"), ctx.get_prop("shared")) == (1, None)


def test_under_another_signal_the_props_are_the_same() -> None:
    ctx = FLContext("site-1")
    signal = ctx.get_run_abort_signal().child()
    twin = ctx.under(signal)
    twin.set_prop("a", 1)
    assert ctx.get_prop("a") == 1
    assert twin.get_run_abort_signal() is signal
    ctx.get_run_abort_signal().trigger("stop")
    assert (signal.triggered, signal.reason) == (True, "stop")


def test_no_values_in_the_repr() -> None:
    ctx = FLContext("site-1", "job")
    ctx.set_prop("token", "secret")
    assert repr(ctx) == "<FLContext 'site-1' job='job' props=['token']>"
