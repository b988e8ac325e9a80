"""What sites say, opened and decoded: in the order in which it came, and by a thread where it takes long."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..codec import Codec, Decoding, Undecoded
from ..codec.ciphertext import SMALL
from ..codec.faults import NotAtOnceError
from ..codec.payloads import finished
from ..errors import CodecError
from ..protocol.events import Ended, ReplyArrived, StreamEvent
from ..protocol.inbound import DECODED_AT_ONCE
from ..shareable import ReturnCode

if TYPE_CHECKING:
    from ..sealing import OpenerSeal

_T = TypeVar("_T")


class Host(Protocol):
    """What unpacking needs of the engine."""

    codec: Codec

    async def aside(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call a function that would hold up the event loop on a thread."""

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any, name: str) -> None:
        """Start a task that the engine waits for."""


class Unpacking:
    """The events of one outgoing stream's sites, on their way to the stream.

    Args:
        host: the engine.
        stream_id: what its tasks are called by.
        handle: takes each event in turn.

    Attributes:
        seal: what opens those of a sealed stream.
        waiting: what came from a site while a thread is at work on what it said before.
    """

    def __init__(self, host: Host, stream_id: str, handle: Callable[[StreamEvent], None]) -> None:
        self._host = host
        self._stream_id = stream_id
        self._handle = handle
        self.seal: OpenerSeal | None = None
        self.waiting: dict[str, deque[StreamEvent]] = {}

    def take(self, event: StreamEvent) -> None:
        """Take an event of a site after those that came before it; never waits."""
        name = event.leg.opening.targets[0]
        waiting = self.waiting.get(name)
        if waiting is not None:
            waiting.append(event)
            return
        opened = self._opened(event)
        if opened is None:
            self.waiting[name] = deque((event,))
            self._host.spawn(self._open_all, name, name=f"replies of {name} to stream {self._stream_id}")
        else:
            self._handle(opened)

    def _opened(self, event: StreamEvent) -> StreamEvent | None:
        """Open and decode an event; None where a thread has to."""
        sealed = self.seal is not None
        if type(event) is ReplyArrived:
            if event.size > SMALL if sealed else isinstance(event.value, (Decoding, Undecoded)):
                return None
        elif type(event) is Ended and len(event.result) > DECODED_AT_ONCE:
            return None
        try:
            if self.seal is not None:
                event = self.seal.opened(event)
            return self._decoded(event, imports=False) if type(event) is Ended else event
        except NotAtOnceError:
            return None

    async def _open_all(self, name: str) -> None:
        waiting = self.waiting[name]
        while waiting:
            event = waiting.popleft()
            opened = self._opened(event)
            self._handle(await self._opened_aside(event) if opened is None else opened)
        del self.waiting[name]

    async def _opened_aside(self, event: StreamEvent) -> StreamEvent:
        aside = self._host.aside
        if self.seal is not None:
            event = await self.seal.open(event) if type(event) is ReplyArrived else self.seal.opened(event)
        if type(event) is Ended:
            return await aside(partial(self._decoded, event, imports=True))
        if type(event) is ReplyArrived and self.seal is None:
            event.value = await aside(finished, event.value)
        return event

    def _decoded(self, event: Ended, *, imports: bool) -> Ended:
        """Decode what came with the end of a site."""
        return Ended(event.leg, *decode_end(self._host.codec, event.rc, event.reason, event.result, imports=imports))


def decode_end(codec: Codec, rc: str, reason: str, result: bytes, *, imports: bool = True) -> tuple[str, str, Any]:
    """Return the code, reason and ``end_result`` of a site that has ended with these, the last still encoded.

    Raises:
        NotAtOnceError: as from ``Codec.decode_value``.
    """
    if not result:
        return rc, reason, None
    try:
        return rc, reason, codec.decode_value(result, imports=imports)
    except CodecError as exc:
        return ReturnCode.EXECUTION_RESULT_ERROR, f"end_result cannot be decoded: {exc}", None
