"""What a link's core tells its shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bodies import Goodbye, Hello, Opening, Presence, Resumption
    from .opener import OpenerLeg
    from .receiver import ReceiverLeg


class Event:
    """One thing that happened."""

    __slots__: tuple[str, ...] = ()

    def _fields(self) -> dict[str, Any]:
        names = [name for kind in type(self).__mro__ for name in getattr(kind, "__slots__", ())]
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        # T24 of the threat list: no content in reprs, for reprs end up in logs.
        shown = [
            f"{name}=<{len(value)} bytes>" if isinstance(value, bytes) else f"{name}={value!r}"
            for name, value in self._fields().items()
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Event) and type(self) is type(other) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(repr(self))


class Greeted(Event):
    """The peer said HELLO. A listener now admits it or turns it away; a dialler's link is open."""

    __slots__ = ("hello",)

    def __init__(self, hello: Hello) -> None:
        self.hello = hello


class PresenceChanged(Event):
    """The hub said which sites can be reached through it."""

    __slots__ = ("presence",)

    def __init__(self, presence: Presence) -> None:
        self.presence = presence


class Departed(Event):
    """The peer said GOAWAY."""

    __slots__ = ("goodbye",)

    def __init__(self, goodbye: Goodbye) -> None:
        self.goodbye = goodbye


class Silent(Event):
    """Nothing came from the peer for too long; ``seconds`` says how long."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Opened(Event):
    """A stream was opened at this site; ``body`` is what its opener sent along, still encoded."""

    __slots__ = ("body", "leg")

    def __init__(self, leg: ReceiverLeg, body: bytes) -> None:
        self.leg = leg
        self.body = body


class Forwarded(Event):
    """A stream was sent on to another link, for the first time or after a break."""

    __slots__ = ("routing", "target")

    def __init__(self, routing: Opening | Resumption, target: str) -> None:
        self.routing = routing
        self.target = target


class TurnedAway(Event):
    """A stream was not taken, or not sent on; its opener has heard why."""

    __slots__ = ("rc", "reason", "routing", "target")

    def __init__(self, routing: Opening | Resumption, target: str, rc: str, reason: str) -> None:
        self.routing = routing
        self.target = target
        self.rc = rc
        self.reason = reason


class StreamEvent(Event):
    """One thing that happened to one stream; ``leg.owner`` is to hear of it."""

    __slots__ = ("leg",)

    leg: Any


class ObjectArrived(StreamEvent):
    """The next object of an incoming stream is whole; ``value`` is it, or the CodecError that it met."""

    __slots__ = ("final", "seq", "size", "value")

    def __init__(self, leg: ReceiverLeg, seq: int, value: Any, size: int, final: bool) -> None:
        self.leg = leg
        self.seq = seq
        self.value = value
        self.size = size
        self.final = final


class EndAnnounced(StreamEvent):
    """The opener ends the stream after ``count`` objects; ``withdraw`` takes back those not yet consumed.

    ``word``, here and below, is what proves it in a sealed stream.
    """

    __slots__ = ("count", "withdraw", "word")

    def __init__(self, leg: ReceiverLeg, count: int, withdraw: bool, word: bytes = b"") -> None:
        self.leg = leg
        self.count = count
        self.withdraw = withdraw
        self.word = word


class Aborted(StreamEvent):
    """The opener aborted the stream."""

    __slots__ = ("rc", "reason", "who", "word")

    def __init__(self, leg: ReceiverLeg, rc: str, who: str, reason: str, word: bytes = b"") -> None:
        self.leg = leg
        self.rc = rc
        self.who = who
        self.reason = reason
        self.word = word


class ReplyArrived(StreamEvent):
    """A site's reply to one object is whole; ``value`` is it, or the CodecError that it met."""

    __slots__ = ("final", "seq", "size", "value")

    def __init__(self, leg: OpenerLeg, seq: int, value: Any, size: int, final: bool) -> None:
        self.leg = leg
        self.seq = seq
        self.value = value
        self.size = size
        self.final = final


class Refused(StreamEvent):
    """A site, or the hub before it, does not take the stream."""

    __slots__ = ("rc", "reason", "word")

    def __init__(self, leg: OpenerLeg, rc: str, reason: str, word: bytes = b"") -> None:
        self.leg = leg
        self.rc = rc
        self.reason = reason
        self.word = word


class EndingBegun(StreamEvent):
    """A site has heard an ABORT and is ending the stream."""

    __slots__ = ("word",)

    def __init__(self, leg: OpenerLeg, word: bytes = b"") -> None:
        self.leg = leg
        self.word = word


class Ended(StreamEvent):
    """The stream has ended at a site, after all its replies; ``result`` is encoded until the stream has decoded it."""

    __slots__ = ("rc", "reason", "result")

    def __init__(self, leg: OpenerLeg, rc: str, reason: str, result: Any) -> None:
        self.leg = leg
        self.rc = rc
        self.reason = reason
        self.result = result


class Suspended(StreamEvent):
    """The way to the other end of a stream is broken, and may come back."""

    __slots__ = ("reason",)

    def __init__(self, leg: OpenerLeg | ReceiverLeg, reason: str) -> None:
        self.leg = leg
        self.reason = reason


class Resumed(StreamEvent):
    """The way is there again. The receiver goes on with object ``seq``; of it, it has all before this byte."""

    __slots__ = ("buffer", "offset", "seq")

    def __init__(self, leg: OpenerLeg | ReceiverLeg, seq: int, buffer: int, offset: int) -> None:
        self.leg = leg
        self.seq = seq
        self.buffer = buffer
        self.offset = offset


class Lost(StreamEvent):
    """The other end of a stream can no longer be reached."""

    __slots__ = ("reason",)

    def __init__(self, leg: OpenerLeg | ReceiverLeg, reason: str) -> None:
        self.leg = leg
        self.reason = reason
