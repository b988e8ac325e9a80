from __future__ import annotations

from typing import Any

import pytest

from fanstream.transports.addresses import Address, is_loopback, parse, parse_all


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("tcp://hub.example:8002", Address("tcp", host="hub.example", port=8002)),
        ("tcp://127.0.0.1:0", Address("tcp", host="127.0.0.1")),
        ("tcp://[::1]:80", Address("tcp", host="::1", port=80)),
        ("unix:///run/hub.sock", Address("unix", path="/run/hub.sock")),
        ("tls://hub.example:443", Address("tls", host="hub.example", port=443)),
        ("tls://[::1]:443?name=hub.1", Address("tls", host="::1", port=443, peer="hub.1")),
        ("memory://hub", Address("memory", host="hub")),
    ],
)
def test_an_address_is_parsed_and_written_as_it_was(url: str, address: Address) -> None:
    assert parse(url, "listen") == address
    assert str(address) == url


@pytest.mark.parametrize("url", ["tcp://h:1/", "memory://h/"])
def test_a_final_slash_is_no_path(url: str) -> None:
    assert parse(url, "listen").host == "h"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "one of the schemes memory, tcp, "),
        ("hub:8002", "one of the schemes"),
        ("http://hub:8002", "one of the schemes"),
        ("tcp://hub", "expected tcp://host:port"),
        ("tcp://:8002", "expected tcp://host:port"),
        ("tcp://hub:65536", "[Pp]ort"),
        ("tcp://hub:x", "[Pp]ort"),
        ("tcp://[::1:80", "listen is"),
        ("tcp://hub:1/path", "expected no path"),
        ("tcp://me@hub:1", "nothing but scheme and address"),
        ("tcp://me:pw@hub:1", "nothing but scheme and address"),
        ("tcp://hub:1?x=1", "nothing but scheme and address"),
        ("tcp://hub:1#x", "nothing but scheme and address"),
        ("tcp://hub:1?name=hub", "nothing but scheme and address"),
        ("unix:///s?name=hub", "nothing but scheme and address"),
        ("tls://hub:1?x=1", "expected no query but \\?name="),
        ("tls://hub:1?name=", "whose name is '', expected a site's name"),
        ("tls://hub:1?name=a&name=b", "whose name is 'a&name=b', expected a site's name"),
        ("tls://hub:1?name=a%20", "whose name is 'a%20', expected a site's name"),
        ("unix://relative/path", "expected unix:///absolute/path"),
        ("unix:relative", "expected unix:///absolute/path"),
        ("unix://", "expected unix:///absolute/path"),
        ("unix:///" + "x" * 107, "path of 108 bytes, limit 107"),
        ("memory://", "expected memory://name"),
        ("memory://hub:1", "expected memory://name"),
    ],
)
def test_what_is_no_address(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(url, "listen")
    assert str(caught.value).startswith("listen ")


def test_an_address_is_a_str() -> None:
    with pytest.raises(TypeError, match="listen is 8002 of type int, expected a URL as a str"):
        parse(8002, "listen")


def test_none_one_or_many() -> None:
    hub, site = Address("memory", host="hub"), Address("memory", host="site")
    assert parse_all(None, "connect") == []
    assert parse_all("memory://hub", "connect") == [hub]
    assert parse_all(["memory://hub", "memory://site"], "connect") == [hub, site]
    assert parse_all(("memory://site",), "connect") == [site]


@pytest.mark.parametrize(
    ("urls", "error", "message"),
    [
        ([], ValueError, "connect is an empty list"),
        (5, TypeError, "connect is 5 of type int"),
        (["memory://hub", "x"], ValueError, r"connect\[1\] is 'x'"),
        (["memory://hub", None], TypeError, r"connect\[1\] is None"),
    ],
)
def test_what_are_no_addresses(urls: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_all(urls, "connect")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::1%lo", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("::", False),
        ("hub.example", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
