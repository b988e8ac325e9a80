"""What an outgoing stream holds until others are done: replies' room at this site, and objects' buffers."""

from __future__ import annotations

import anyio

from ..protocol.gather import Flight
from ..protocol.opener import OpenerLeg
from ..shareable import Shareable


class Offer:
    """One reply as it arrived; ``late`` if its object's deadline had passed."""

    __slots__ = ("late", "reply", "seq", "site")

    def __init__(self, site: str, seq: int, reply: Shareable, late: bool) -> None:
        self.site = site
        self.seq = seq
        self.reply = reply
        self.late = late


class Held:
    """Reservations of replies until they are judged, and who waits for the buffers of objects.

    Attributes:
        waiting: who waits for the buffers of which object; most streams have nobody, and need not call.
        replies: what is held for the replies to which object; small ones hold nothing.
    """

    def __init__(self) -> None:
        self.replies: dict[int, list[tuple[OpenerLeg, int]]] = {}
        self.waiting: dict[int, list[anyio.Event]] = {}

    def hold(self, seq: int, leg: OpenerLeg, size: int) -> None:
        """Hold the room of a reply to an object until that is judged."""
        self.replies.setdefault(seq, []).append((leg, size))

    def judged(self, flight: Flight) -> None:
        """The replies to an object have been seen."""
        if self.replies:
            for leg, size in self.replies.pop(flight.seq, ()):
                leg.inbound.release(size)
        self.settled(flight)

    def release_replies(self) -> None:
        """End the reservations of replies that nobody will judge."""
        held, self.replies = self.replies, {}
        for replies in held.values():
            for leg, size in replies:
                leg.inbound.release(size)

    def settled(self, flight: Flight) -> None:
        """Tell who waits for an object's buffers, once its sites have all answered or are gone."""
        if self.waiting and flight.unanswered == 0:
            for event in self.waiting.pop(flight.seq, ()):
                event.set()

    async def released(self, flight: Flight | None) -> None:
        """Wait until every site has answered an object, or is gone."""
        if flight is None or flight.unanswered == 0:
            await anyio.lowlevel.checkpoint()
            return
        event = anyio.Event()
        self.waiting.setdefault(flight.seq, []).append(event)
        await event.wait()

    def let_go(self) -> None:
        """The stream is over: hold nothing, and let nobody wait."""
        self.release_replies()
        for events in self.waiting.values():
            for event in events:
                event.set()
        self.waiting.clear()
