"""What there is to be told of an engine: names, codes and counts; never what a stream carries (threat T24)."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Final

_LONGEST: Final = 255  # characters of a text; a peer may make names of 64 KiB


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """Something that an engine did, or would not do.

    Attributes:
        kind: the name of the event's class in small letters, such as ``stream-opened``.
        at: when, in seconds since 1970.
    """

    kind: ClassVar[str]

    at: float = field(default_factory=time.time)

    def __init_subclass__(cls) -> None:
        cls.kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, str) and len(value) > _LONGEST:
                object.__setattr__(self, one.name, value[:_LONGEST] + "...")

    def as_dict(self) -> dict[str, Any]:
        """Return the event as plain values, its kind first."""
        return {"event": self.kind, **{one.name: getattr(self, one.name) for one in fields(self)}}


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOpened(AuditEvent):
    """A peer was admitted, and streams may use the link.

    Attributes:
        peer: its name.
        dialled: whether this engine has dialled.
        certificate: SHA-256 of the peer's certificate, in hex; empty where nothing proves its name.
    """

    peer: str
    dialled: bool
    certificate: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkClosed(AuditEvent):
    """A link that was open has ended.

    Attributes:
        peer: the name at its other end.
        reason: why.
        seconds: how long it was open.
    """

    peer: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRefused(AuditEvent):
    """Someone was not let in; or, of an engine that dials, who answered is not who has to.

    Attributes:
        reason: why not.
        code: an ``IdentityError``'s, ``name-in-use``, or ``handshake``.
        peer: the name that was claimed, as far as it was.
    """

    reason: str
    code: str
    peer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityEnded(AuditEvent):
    """A peer's certificate no longer holds, and its link ends.

    Attributes:
        peer: its name.
        code: ``revoked``, ``expired`` or ``untrusted``.
        certificate: SHA-256 of it, in hex.
    """

    peer: str
    code: str
    certificate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityLoaded(AuditEvent):
    """The files of this engine's kit have changed.

    Attributes:
        loaded: whether they are in use now; if not, what was loaded before is.
        certificate: SHA-256 of the certificate in use, in hex.
        not_after: when it expires, in seconds since 1970.
        roots: how many roots are trusted.
        revoked: how many certificates are revoked.
        reason: why the files are not in use.
    """

    loaded: bool
    certificate: str
    not_after: float
    roots: int
    revoked: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoaded(AuditEvent):
    """The policy's file has changed.

    Attributes:
        path: the file.
        loaded: whether it is in use now; if not, the policy before it is.
        rules: how many rules are in use.
        reason: why the file is not.
    """

    path: str
    loaded: bool
    rules: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDecided(AuditEvent):
    """The policy was asked.

    Attributes:
        action: ``open`` here, ``forward`` between two others, ``take`` from another, or ``register`` here.
        opener: the site that opens or registers.
        target: the site that is to take the stream; empty for a registration.
        channel, topic: what is opened or registered; both empty where a stream goes on that was opened elsewhere.
        allowed: whether it may be.
        rule: the name of the rule that decided; None where no rule fits.
    """

    action: str
    opener: str
    target: str
    channel: str
    topic: str
    allowed: bool
    rule: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOpened(AuditEvent):
    """This engine opens a stream.

    Attributes:
        stream: its id, in hex.
        channel, topic: its address.
        targets: the sites it goes to.
        sealed: whether it is sealed.
    """

    stream: str
    channel: str
    topic: str
    targets: Sequence[str]
    sealed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamAdmitted(AuditEvent):
    """This engine takes a stream of another site.

    Attributes:
        stream: its id, in hex.
        opener: the site that opened it.
        channel, topic: its address.
        via: the peer that it came from: the opener, or the hub.
        sealed: whether it is sealed.
    """

    stream: str
    opener: str
    channel: str
    topic: str
    via: str
    sealed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamForwarded(AuditEvent):
    """This engine, a hub, forwards a stream, or forwards it again after a break.

    Attributes:
        stream: its id, in hex.
        opener: the site that opened it.
        target: the site that it goes to.
        channel, topic: its address; both empty after a break.
    """

    stream: str
    opener: str
    target: str
    channel: str
    topic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRefused(AuditEvent):
    """This engine does not take, or does not forward, a stream.

    Attributes:
        stream: its id, in hex.
        opener: the site that opened it.
        target: the site that it was to go to.
        channel, topic: its address; both empty after a break.
        code: the return code that its opener hears.
        reason: the reason that its opener hears.
    """

    stream: str
    opener: str
    target: str
    channel: str
    topic: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEnded(AuditEvent):
    """A stream has ended at this engine.

    Attributes:
        stream: its id, in hex.
        opener: the site that opened it; this one, of an outgoing stream.
        channel, topic: its address.
        code: the return code of its end here.
        objects: how many were produced, or consumed.
        sites: of an outgoing stream: each site's return code, and its counts by outcome.
    """

    stream: str
    opener: str
    channel: str
    topic: str
    code: str
    objects: int
    sites: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
