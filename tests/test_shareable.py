from __future__ import annotations

import pytest

from fanstream.shareable import ReservedHeaderKey, ReturnCode, Shareable, make_copy, make_reply


def test_a_shareable_is_a_dict_with_headers() -> None:
    shareable = Shareable({"weights": [1, 2]})
    assert dict(shareable) == {"weights": [1, 2], ReservedHeaderKey.HEADERS: {}}
    shareable.set_header("round", 3)
    assert [shareable.get_header(key) for key in ("round", "none")] == [3, None]
    assert shareable.get_header("none", 5) == 5
    assert shareable[ReservedHeaderKey.HEADERS] == {"round": 3}


def test_the_first_entries_are_a_shallow_copy() -> None:
    source = {"weights": [1]}
    shareable = Shareable(source)
    shareable["more"] = 1
    assert source == {"weights": [1]}
    assert shareable["weights"] is source["weights"]


@pytest.mark.parametrize("left", [{}, {"__headers__": None}], ids=["removed", "none"])
def test_headers_that_were_removed_are_made_anew(left: dict[str, None]) -> None:
    shareable = Shareable({"a": 1})
    shareable.clear()
    shareable.update(left)
    assert shareable.get_return_code() == "OK"
    shareable.set_return_code("ERROR")
    assert shareable.headers == {"__rc__": "ERROR"}


def test_return_codes_are_strings() -> None:
    assert ReturnCode.TASK_ABORTED == "TASK_ABORTED"
    assert all(code == code.name for code in ReturnCode)
    assert Shareable().get_return_code() == ReturnCode.OK


def test_cookies() -> None:
    shareable = Shareable()
    assert (shareable.get_cookie_jar(), shareable.get_cookie("a"), shareable.get_cookie("a", 1)) == (None, None, 1)
    shareable.add_cookie("a", 2)
    shareable.add_cookie("b", 3)
    assert (shareable.get_cookie("a"), shareable.get_cookie_jar()) == (2, {"a": 2, "b": 3})
    shareable.set_cookie_jar({})
    assert shareable.get_cookie("a", 0) == 0


def test_peer_props() -> None:
    shareable = Shareable()
    assert (shareable.get_peer_props(), shareable.get_peer_prop("x")) == (None, None)
    assert shareable.get_peer_prop("x", 1) == 1
    shareable.set_peer_props({"x": 2})
    assert (shareable.get_peer_prop("x"), shareable.get_peer_prop("y", 3)) == (2, 3)


def test_a_reply_carries_its_code_and_headers() -> None:
    headers = {"a": 1, "__rc__": "OK"}
    reply = make_reply(ReturnCode.TIMEOUT, headers)
    assert (reply.get_return_code(), reply.get_header("a")) == ("TIMEOUT", 1)
    assert headers == {"a": 1, "__rc__": "OK"}
    assert make_reply("OK") is not make_reply("OK")


def test_a_copy_shares_data_and_not_headers() -> None:
    source = Shareable({"weights": [1]})
    source.add_cookie("a", [1])
    twin = make_copy(source)
    twin.get_cookie("a").append(2)
    twin.set_return_code("ERROR")
    assert (source.get_cookie("a"), source.get_return_code()) == ([1], "OK")
    assert twin["weights"] is source["weights"]


def test_no_content_in_the_repr() -> None:
    shareable = Shareable({"weights": "secret"})
    shareable.set_header("token", "secret")
    assert repr(shareable) == "<Shareable rc=OK keys=['weights']>"
