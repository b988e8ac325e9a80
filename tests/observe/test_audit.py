"""Events: what each is made of, where they go, and that a slow reader costs no more than its buffer."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import re

import anyio
import pytest

from fanstream import observe
from fanstream.observe import (
    AUDIT_LOGGER,
    Audit,
    AuditEvent,
    EventStream,
    JsonLines,
    LinkClosed,
    LinkOpened,
    StreamEnded,
)

pytestmark = pytest.mark.anyio

KINDS = [kind for kind in vars(observe).values() if isinstance(kind, type) and issubclass(kind, AuditEvent)]
EVENTS = [kind for kind in KINDS if kind is not AuditEvent]


def opened(peer: str = "site-1", at: float = 0.0) -> LinkOpened:
    return LinkOpened(peer=peer, dialled=False, at=at)


@pytest.mark.parametrize("kind", EVENTS)
def test_every_field_is_documented_once_in_its_order(kind: type[AuditEvent]) -> None:
    told = re.findall(r"^    ([\w, ]+): ", inspect.cleandoc(kind.__doc__ or ""), re.MULTILINE)
    names = [name for group in told for name in group.split(", ")]
    assert names == [one.name for one in dataclasses.fields(kind) if one.name != "at"]


def test_kinds_are_named_as_their_classes() -> None:
    assert sorted(kind.kind for kind in EVENTS) == [
        "identity-ended", "identity-loaded", "link-closed", "link-opened", "peer-refused", "policy-decided",
        "policy-loaded", "stream-admitted", "stream-ended", "stream-forwarded", "stream-opened", "stream-refused",
    ]  # fmt: skip


def test_events_do_not_change_and_keep_no_endless_names() -> None:
    event = opened("x" * 65_536)
    assert event.peer == "x" * 255 + "..."
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.peer = "y"  # type: ignore[misc]


def test_nobody_listens_until_somebody_does(caplog: pytest.LogCaptureFixture) -> None:
    audit = Audit("server")
    assert not audit.wanted
    with caplog.at_level(logging.INFO, AUDIT_LOGGER):
        assert audit.wanted
    stream = audit.listen(1)
    assert audit.wanted
    stream.close()
    assert not audit.wanted


async def read(stream: EventStream) -> list[str]:
    return [event.peer async for event in stream if isinstance(event, LinkOpened)]


async def test_events_come_in_their_order_and_end_with_the_engine() -> None:
    audit = Audit("server")
    stream = audit.listen(10)
    for name in ("a", "b", "c"):
        audit.tell(opened(name))
    audit.close()
    assert await read(stream) == ["a", "b", "c"]
    assert await read(stream) == []
    assert await read(audit.listen(1)) == [], "nor does anything follow for who comes later"


async def test_of_a_slow_reader_the_oldest_are_dropped_and_counted() -> None:
    audit = Audit("server")
    slow, fast = audit.listen(2), audit.listen(100)
    for number in range(10):
        audit.tell(opened(str(number)))
    audit.close()
    assert await read(slow) == ["8", "9"]
    assert (slow.dropped, fast.dropped) == (8, 0)
    assert len(await read(fast)) == 10


async def test_a_reader_that_waits_is_woken() -> None:
    audit = Audit("server")
    heard: list[str] = []

    async def listen() -> None:
        async with audit.listen(5) as stream:
            async for event in stream:
                heard.append(event.kind)
                if len(heard) == 2:
                    return

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tg:
            tg.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            audit.tell(opened())
            await anyio.wait_all_tasks_blocked()
            audit.tell(LinkClosed(peer="site-1", reason="bye", seconds=1.0))
    assert heard == ["link-opened", "link-closed"]
    assert not audit.wanted


async def test_closing_ends_a_reader_that_waits() -> None:
    stream = Audit("server").listen(5)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tg:
            tg.start_soon(read, stream)
            await anyio.wait_all_tasks_blocked()
            await stream.aclose()


def test_a_record_is_one_line_whatever_a_peer_calls_itself(caplog: pytest.LogCaptureFixture) -> None:
    name = "site-1\n2026-01-01 server stream-ended \x1b[2J\N{LINE SEPARATOR}\N{RIGHT-TO-LEFT OVERRIDE}"
    with caplog.at_level(logging.INFO, AUDIT_LOGGER):
        Audit("server").tell(opened(name))
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert record.getMessage() == (
        'server link-opened peer="site-1\\n2026-01-01 server stream-ended \\u001b[2J\\u2028\\u202e" dialled=false '
        'certificate=""'
    )
    line = JsonLines().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["peer"] == name


def test_json_lines_have_the_fields_of_the_event(caplog: pytest.LogCaptureFixture) -> None:
    event = StreamEnded(
        stream="ab", opener="server", channel="models", topic="weights", code="OK", objects=3,
        sites={"site-1": {"code": "OK", "replied": 3}}, at=1_700_000_000.25,
    )  # fmt: skip
    with caplog.at_level(logging.INFO, AUDIT_LOGGER):
        Audit("server").tell(event)
    assert json.loads(JsonLines().format(caplog.records[0])) == {
        "time": "2023-11-14T22:13:20.250+00:00", "level": "INFO", "engine": "server", "event": "stream-ended",
        "stream": "ab", "opener": "server", "channel": "models", "topic": "weights", "code": "OK", "objects": 3,
        "sites": {"site-1": {"code": "OK", "replied": 3}},
    }  # fmt: skip


def test_json_lines_take_records_of_other_loggers(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("other").exception("went %s", "wrong")
    said = json.loads(JsonLines().format(caplog.records[0]))
    assert (said["logger"], said["level"], said["message"]) == ("other", "ERROR", "went wrong")
    assert "ValueError: no" in said["exception"]
