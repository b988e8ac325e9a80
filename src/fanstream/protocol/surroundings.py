"""What is around the links of one engine: where streams go, who keeps their ends, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from . import bodies
from .budget import Budget
from .inbound import Decoders
from .relay import RelayPool
from .resets import Resets

if TYPE_CHECKING:
    from ..options import EngineSettings
    from .core import LinkCore
    from .opener import OpenerLeg
    from .receiver import ReceiverLeg


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a stream is not taken."""

    rc: str
    reason: str


Routing = bodies.Opening | bodies.Resumption
"""What says where a stream goes, as it begins or goes on."""

Route = Callable[["LinkCore", Routing, str], "LinkCore | Refusal | None"]
"""Where a stream to a target goes: None to this site, another link to be forwarded, or nowhere."""

Admit = Callable[[bodies.Opening], Refusal | None]
"""Whether this site takes a stream."""


class Keeper(Protocol):
    """Knows all legs of one engine, and for how long those may live that no link holds."""

    def opened(self, leg: ReceiverLeg) -> None:
        """A stream was opened at this site."""

    def find(self, opener: str, stream: bytes) -> ReceiverLeg | None:
        """Return this site's end of a stream, if there is one."""

    def count(self, opener: str) -> int:
        """Return how many ends of streams of *opener* this site has, suspended and ended ones included."""

    def suspended(self, leg: OpenerLeg | ReceiverLeg) -> None:
        """The way of a stream is broken: it has its resume window to come back; that of an earlier call goes on."""

    def resumed(self, leg: OpenerLeg | ReceiverLeg) -> None:
        """It has come back."""

    def followed(self, leg: ReceiverLeg) -> None:
        """A later life of its opener has taken a durable stream up."""

    def lingers(self, leg: OpenerLeg | ReceiverLeg) -> None:
        """A stream has ended at this end, and the other has not said yet that it knows."""

    def closed(self, leg: OpenerLeg | ReceiverLeg) -> None:
        """A leg is of no more use."""


class Surroundings:
    """What all the links of one engine share.

    Args:
        settings: the engine's.
        decoder: its codec.
        route, admit: where streams go, and whether they are taken here.
        keeper: of the engine's legs.
    """

    __slots__ = ("admit", "budget", "decoder", "keeper", "relays", "resets", "route", "settings")

    def __init__(self, settings: EngineSettings, decoder: Decoders, route: Route, admit: Admit, keeper: Keeper) -> None:
        limits = settings.limits
        self.settings = settings
        self.decoder = decoder
        self.budget = Budget(limits.origin_bytes, limits.engine_bytes, limits.unasked_bytes)
        self.relays = RelayPool(limits.relay_bytes, limits.frame)
        self.resets = Resets(limits.resets, limits.reset_window)
        self.route = route
        self.admit = admit
        self.keeper = keeper
