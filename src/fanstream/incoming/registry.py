"""What an application has registered: which consumers take which channel and topic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..arguments import OWN, WILDCARD
from ..streaming import ConsumerFactory


@dataclass(frozen=True, slots=True)
class Handling:
    """What an application registered for a channel and topic."""

    factory: ConsumerFactory
    stream_done_cb: Callable[..., Any] | None = None
    consumed_cb: Callable[..., Any] | None = None
    cb_kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Registration:
    """A handle to take one registration back."""

    def __init__(self, registry: Registry, key: tuple[str, str], handling: Handling) -> None:
        self._registry = registry
        self._key = key
        self._handling = handling

    def unregister(self) -> None:
        """Take the registration back; running streams go on. Does nothing if it was replaced or taken back before."""
        if self._registry.table.get(self._key) is self._handling:
            del self._registry.table[self._key]


class Registry:
    """Channel and topic to what was registered."""

    def __init__(self) -> None:
        self.table: dict[tuple[str, str], Handling] = {}

    def register(self, channel: str, topic: str, handling: Handling) -> Registration:
        """Register; what was there before is replaced."""
        self.table[channel, topic] = handling
        return Registration(self, (channel, topic), handling)

    def find(self, channel: str, topic: str) -> Handling | None:
        """Return what fits best: the very topic, any topic of the channel, or anything at all.

        Wildcards are the application's, and do not reach the engine's own channels.
        """
        if channel.startswith(OWN):
            return self.table.get((channel, topic))
        for key in ((channel, topic), (channel, WILDCARD), (WILDCARD, WILDCARD)):
            found = self.table.get(key)
            if found is not None:
                return found
        return None
