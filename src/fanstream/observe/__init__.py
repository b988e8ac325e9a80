"""What an engine is doing: events for auditors and operators, as an async iterator and as lines of a log."""

from __future__ import annotations

from .audit import AUDIT_LOGGER, Audit, EventStream, JsonLines
from .events import (
    AuditEvent,
    IdentityEnded,
    IdentityLoaded,
    LinkClosed,
    LinkOpened,
    PeerRefused,
    PolicyDecided,
    PolicyLoaded,
    StreamAdmitted,
    StreamEnded,
    StreamForwarded,
    StreamOpened,
    StreamRefused,
)

__all__ = [
    "AUDIT_LOGGER",
    "Audit",
    "AuditEvent",
    "EventStream",
    "IdentityEnded",
    "IdentityLoaded",
    "JsonLines",
    "LinkClosed",
    "LinkOpened",
    "PeerRefused",
    "PolicyDecided",
    "PolicyLoaded",
    "StreamAdmitted",
    "StreamEnded",
    "StreamForwarded",
    "StreamOpened",
    "StreamRefused",
]
