"""The shell of one connection: drives a ``LinkCore`` over a wire, and decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from .deadlines import Deadline, Deadlines
from .errors import BrokenError, ConnectError, RemoteProtocolError, SecurityError
from .protocol.bodies import Hello
from .protocol.core import LinkCore
from .protocol.events import (
    Departed,
    Event,
    Forwarded,
    Greeted,
    Opened,
    PresenceChanged,
    Silent,
    StreamEvent,
    TurnedAway,
)
from .protocol.session import SessionState
from .protocol.surroundings import Surroundings
from .transports.base import Wire
from .wakeup import Face

if TYPE_CHECKING:
    from .security.identity import Identity

_log = logging.getLogger(__name__)


class Host(Protocol):
    """What a link needs of its engine."""

    face: Face
    deadlines: Deadlines

    def check(self, proven: Identity) -> None:
        """Check once more who a peer has proven to be, as it says HELLO.

        Raises:
            SecurityError: it may not, or no longer, be linked with.
        """

    def greeted(self, link: Link, hello: Hello) -> None:
        """The peer has said HELLO."""

    def opened(self, link: Link, event: Opened) -> None:
        """A stream was opened at this site."""

    def passed_by(self, event: Forwarded | TurnedAway) -> None:
        """A stream was forwarded, or refused."""

    def presence(self, link: Link, event: PresenceChanged) -> None:
        """The hub has said which sites it leads to."""

    def departed(self, link: Link, code: str, reason: str) -> None:
        """The peer has said GOAWAY."""

    def closed(self, link: Link, reason: str) -> None:
        """The link is gone; its streams have heard of it."""


class Link:
    """One connection to one peer.

    Attributes:
        dialler: whether this side dialled.
        open: whether streams may use it; the engine sets it.
        began: when it was opened, by the loop's clock; None before that.
        error: the peer's offence, if one ended the link.
        goodbye: an error that says more than that the link ended: what the peer's goodbye means to whoever dialled, or
            why hands could not be shaken.
        ended: why the connection ended, once it has.
    """

    def __init__(self, host: Host, wire: Wire, me: Hello, shared: Surroundings, *, dialler: bool) -> None:
        self._host = host
        self._wire = wire
        self._timer: Deadline | None = None
        self._dropped = False
        self.dialler = dialler
        self.open = False
        self.began: float | None = None
        self.error: Exception | None = None
        self.goodbye: Exception | None = None
        self.ended = ""
        self._time = host.face.time
        self.core = LinkCore(
            me, shared, dialler=dialler, on_output=wire.wake, now=self._time(), proven=self._proven_name
        )
        self.get_buffers = self.core.get_buffers
        self._scheduler = self.core.scheduler

    @property
    def peer(self) -> str:
        """The peer's name; empty before its HELLO."""
        return self.core.peer

    @property
    def proven(self) -> Identity | None:
        """Who the peer has proven to be, once it has; None where nothing proves it."""
        return self._wire.peer

    @property
    def leaving(self) -> bool:
        """Whether one side has said GOAWAY."""
        return self.core.session.state is SessionState.CLOSING

    def _proven_name(self) -> str | None:
        proven = self._wire.peer
        if proven is None:
            return None
        self._host.check(proven)  # here, for a stream may stand right behind the HELLO
        return proven.name

    @property
    def life(self) -> bytes:
        """The peer's incarnation; empty before its HELLO."""
        hello = self.core.session.peer
        return b"" if hello is None else hello.incarnation

    async def run(self) -> None:
        """Live until the connection ends."""
        self._set_timer()
        reason = "the engine ended"
        for_good = True
        try:
            ended = await self._wire.run(self)
            reason = str(self.error or ended or "this side closed the link")
            # Who has broken the rules, or is no longer who it was, gets no streams back.
            for_good = self.error is not None or isinstance(ended, SecurityError)
            if isinstance(ended, (SecurityError, ConnectError)):
                self.goodbye = ended
        finally:
            self.open = False
            self.ended = reason
            if self._timer is not None:
                self._host.deadlines.cancel(self._timer)
            self._deliver(self.core.lost(reason, for_good=for_good))
            self._host.closed(self, reason)

    def admit(self) -> None:
        """Answer the peer's HELLO: the link is open."""
        self.core.session.admit()
        self._set_timer()

    def leave(self, code: str, reason: str = "") -> None:
        """Say GOAWAY, and close once it is written."""
        self.core.session.leave(code, reason)
        self.open = False
        self._wire.close(flush=True)

    def drop(self, reason: Exception) -> None:
        """Close at once."""
        self.open = False
        self._dropped = True
        self._wire.close(reason)

    # What the wire asks; ``get_buffers`` is the core's own.

    def received(self, count: int) -> None:
        """Pass on *count* bytes that have landed where the core asked for them; never waits."""
        try:
            events = self.core.advance(count, self._time())
            if events:
                self._deliver(events)
        except RemoteProtocolError as exc:
            self._offended(exc)
        except SecurityError as exc:
            self.drop(exc)
        except Exception as exc:  # noqa: BLE001 - a defect ends this link alone
            _log.exception("link to %s: a defect; the link is closed", self.peer or self._wire.name)
            self.error = exc
            self.drop(exc)

    def _offended(self, offence: RemoteProtocolError) -> None:
        _log.warning("link to %s: the peer broke the protocol: %s", self.peer or self._wire.name, offence)
        self.error = offence
        self.leave("protocol", str(offence))

    def next_output(self, limit: int) -> Sequence[bytes | memoryview]:
        """Return what is to be written next."""
        if not self._scheduler.pending:
            return ()
        return self.core.next_output(limit, self._time())

    # What happens.

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, StreamEvent):
                owner = event.leg.owner
                if owner is not None:
                    owner.handle(event)
            elif type(event) is Opened:
                self._host.opened(self, event)
            elif type(event) is Forwarded or type(event) is TurnedAway:
                self._host.passed_by(event)
            elif type(event) is Greeted:
                self._set_timer()  # heartbeats begin
                self._host.greeted(self, event.hello)
            elif type(event) is PresenceChanged:
                self._host.presence(self, event)
            elif type(event) is Departed:
                self._host.departed(self, event.goodbye.code, event.goodbye.reason)
                self.drop(BrokenError(f"the peer said {event.goodbye.code}: {event.goodbye.reason}"))
            elif type(event) is Silent:
                self.drop(BrokenError(f"{self.peer or self._wire.name} has been silent for {event.seconds:.1f} s"))

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._host.deadlines.cancel(self._timer)
        self._timer = self._host.deadlines.at(self.core.next_deadline(), self._due)

    def _due(self, now: float) -> None:
        self._timer = None
        try:
            self._deliver(self.core.handle_timeout(now))
        except RemoteProtocolError as exc:
            self._offended(exc)
        if not self._dropped:
            self._set_timer()
