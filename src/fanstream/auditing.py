"""What an engine's streams and links are, as events for who audits them."""

from __future__ import annotations

from .incoming import IncomingStream
from .link import Link
from .observe import (
    AuditEvent,
    LinkClosed,
    LinkOpened,
    PeerRefused,
    StreamAdmitted,
    StreamEnded,
    StreamForwarded,
    StreamOpened,
    StreamRefused,
)
from .outgoing import OutgoingStream
from .protocol.bodies import Opening
from .protocol.events import Forwarded, TurnedAway
from .protocol.receiver import ReceiverLeg
from .protocol.surroundings import Routing
from .shareable import ReturnCode


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


def stream_opened(stream: OutgoingStream) -> AuditEvent:
    """This engine opens a stream."""
    opening = stream.opening
    return StreamOpened(
        stream=stream.stream_id, channel=opening.channel, topic=opening.topic,
        targets=list(stream.gathering.sites), sealed=opening.sealed,
    )  # fmt: skip


def stream_ended(stream: OutgoingStream, rc: str) -> AuditEvent:
    """A stream that this engine has opened is over."""
    opening, gathering = stream.opening, stream.gathering
    sites = {
        name: {"code": str(site.rc), **{str(outcome): count for outcome, count in site.counts.items()}}
        for name, site in gathering.sites.items()
    }
    return StreamEnded(
        stream=stream.stream_id, opener=opening.opener, channel=opening.channel, topic=opening.topic, code=str(rc),
        objects=gathering.objects, sites=sites,
    )  # fmt: skip


def stream_admitted(leg: ReceiverLeg, via: str) -> AuditEvent:
    """This engine takes a stream."""
    opening = leg.opening
    return StreamAdmitted(
        stream=opening.stream.hex(), opener=opening.opener, channel=opening.channel, topic=opening.topic, via=via,
        sealed=opening.sealed,
    )  # fmt: skip


def incoming_ended(stream: IncomingStream, site: str) -> AuditEvent:
    """A stream is over that this engine has taken; or was refused once it was looked at."""
    opening = stream.opening
    if stream.refused is not None:
        return _refused(opening, site, *stream.refused)
    return StreamEnded(
        stream=stream.stream_id, opener=opening.opener, channel=opening.channel, topic=opening.topic,
        code=str(stream.rc or ReturnCode.TASK_ABORTED), objects=stream.consumed,
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
