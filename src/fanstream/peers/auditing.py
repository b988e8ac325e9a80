"""What an engine's links are, and the streams that come over them, as events for who audits them."""

from __future__ import annotations

from ..link import Link
from ..observe import (
    AuditEvent,
    LinkClosed,
    LinkOpened,
    PeerRefused,
    StreamAdmitted,
    StreamForwarded,
    StreamRefused,
)
from ..protocol.bodies import Opening
from ..protocol.events import Forwarded, TurnedAway
from ..protocol.receiver import ReceiverLeg
from ..protocol.surroundings import Routing


def link_opened(link: Link) -> AuditEvent:
    """A link may carry streams."""
    proven = link.proven
    return LinkOpened(peer=link.peer, dialled=link.dialler, certificate="" if proven is None else proven.fingerprint)


def link_closed(link: Link, reason: str, seconds: float) -> AuditEvent:
    """It no longer may."""
    return LinkClosed(peer=link.peer, reason=reason, seconds=seconds)


def peer_refused(error: Exception, peer: str = "") -> AuditEvent:
    """Somebody is not who it has to be, or did not show it."""
    return PeerRefused(reason=str(error), code=getattr(error, "code", "handshake"), peer=peer)


def stream_admitted(leg: ReceiverLeg, via: str) -> AuditEvent:
    """This engine takes a stream."""
    opening = leg.opening
    return StreamAdmitted(
        stream=opening.stream.hex(), opener=opening.opener, channel=opening.channel, topic=opening.topic, via=via,
        sealed=opening.sealed,
    )  # fmt: skip


def passed_by(event: Forwarded | TurnedAway) -> AuditEvent:
    """A stream was forwarded, or refused."""
    if isinstance(event, TurnedAway):
        return _refused(event.routing, event.target, event.rc, event.reason)
    channel, topic = _address(event.routing)
    return StreamForwarded(
        stream=event.routing.stream.hex(),
        opener=event.routing.opener,
        target=event.target,
        channel=channel,
        topic=topic,
    )


def _refused(routing: Routing, target: str, rc: str, reason: str) -> AuditEvent:
    channel, topic = _address(routing)
    return StreamRefused(
        stream=routing.stream.hex(), opener=routing.opener, target=target, channel=channel, topic=topic,
        code=str(rc), reason=reason,
    )  # fmt: skip


def _address(routing: Routing) -> tuple[str, str]:
    return (routing.channel, routing.topic) if isinstance(routing, Opening) else ("", "")
