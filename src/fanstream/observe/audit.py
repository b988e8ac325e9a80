"""Where an engine's events go: to who iterates over them, and to the logger ``fanstream.audit``."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

import anyio
import anyio.lowlevel

from .events import AuditEvent

AUDIT_LOGGER: Final = "fanstream.audit"

_log = logging.getLogger(AUDIT_LOGGER)


class EventStream:
    """An engine's events as they happen, as an async iterator that ends with the engine.

    It holds no more than its buffer; of who reads too slowly, the oldest events are dropped, and counted.

    Attributes:
        dropped: how many were.
    """

    def __init__(self, buffer: int, on_close: Callable[[EventStream], object]) -> None:
        self._events: deque[AuditEvent] = deque(maxlen=buffer)
        self._on_close = on_close
        self._news: anyio.Event | None = None
        self._closed = False
        self.dropped = 0

    def put(self, event: AuditEvent) -> None:
        """Take an event; never waits."""
        if len(self._events) == self._events.maxlen:
            self.dropped += 1
        self._events.append(event)
        self._wake()

    def close(self) -> None:
        """Take no further event; what is here can still be read."""
        self._closed = True
        self._on_close(self)
        self._wake()

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AuditEvent:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._news = anyio.Event()
            await self._news.wait()
        await anyio.lowlevel.checkpoint()
        return self._events.popleft()

    async def aclose(self) -> None:
        """Listen no longer."""
        self.close()
        await anyio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


class Audit:
    """Tells of one engine's events.

    Args:
        engine: its site's name.
    """

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._listeners: list[EventStream] = []
        self._closed = False

    @property
    def wanted(self) -> bool:
        """Whether anybody listens: an event that nobody hears need not be made."""
        return bool(self._listeners) or _log.isEnabledFor(logging.INFO)

    def tell(self, event: AuditEvent) -> None:
        """Tell of an event; never waits."""
        for listener in self._listeners:
            listener.put(event)
        if _log.isEnabledFor(logging.INFO):
            facts = event.as_dict()
            del facts["at"]
            # As JSON a name with a line break in it stays in its line, and cannot pass for another event.
            told = " ".join(f"{name}={json.dumps(value)}" for name, value in facts.items() if name != "event")
            _log.info("%s %s %s", self._engine, event.kind, told, extra={"engine": self._engine, "audit": event})

    def listen(self, buffer: int) -> EventStream:
        """Return the events from now on."""
        stream = EventStream(buffer, self._forget)
        self._listeners.append(stream)
        if self._closed:
            stream.close()
        return stream

    def _forget(self, stream: EventStream) -> None:
        if stream in self._listeners:
            self._listeners.remove(stream)

    def close(self) -> None:
        """The engine has ended: so do its listeners."""
        self._closed = True
        for listener in list(self._listeners):
            listener.close()


class JsonLines(logging.Formatter):
    """Makes each record of ``fanstream.audit`` one line of JSON; those of other loggers too, with their message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        event = getattr(record, "audit", None)
        if isinstance(event, AuditEvent):
            when, said = event.at, {"engine": getattr(record, "engine", ""), **event.as_dict()}
            del said["at"]
        else:
            when, said = record.created, {"logger": record.name, "message": record.getMessage()}
            if record.exc_info:
                said["exception"] = self.formatException(record.exc_info)
        time = datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": time, "level": record.levelname, **said})
