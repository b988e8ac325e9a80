"""Which sites can be reached, and over which link."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from ..link import Link
from ..protocol import bodies


class Sites:
    """An engine's links by the site they lead to, and the sites that its hub leads to.

    Args:
        hub: whether the engine forwards between its sites, and so tells them of each other.
        on_change: called when other sites can be reached than before.
    """

    def __init__(self, *, hub: bool, on_change: Callable[[], object]) -> None:
        self._hub = hub
        self._on_change = on_change
        self.direct: dict[str, Link] = {}
        self._older: dict[str, list[Link]] = {}  # links that stayed when a newer one was added: both sites had dialled
        self.beyond: dict[str, Link] = {}
        self._event: anyio.Event | None = None  # made by who waits: a thousand sites change the ways a million times

    def find(self, name: str) -> Link | None:
        """Return the open link that leads to a site."""
        link = self.direct.get(name) or self.beyond.get(name)
        return link if link is not None and link.open else None

    def names(self) -> set[str]:
        """Return the sites that can be reached now."""
        return {name for name in (*self.direct, *self.beyond) if self.find(name) is not None}

    def tell(self) -> None:
        """Wake whoever waits for a change."""
        event, self._event = self._event, None
        if event is not None:
            event.set()
        self._on_change()

    async def changed(self) -> None:
        """Wait for the next change."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()

    def add(self, link: Link) -> None:
        """A link is open: introduce its peer and the others to each other, if they dialled in here."""
        name = link.peer
        if self._hub and not link.dialler:
            others = [other for other in self.direct.values() if not other.dialler and other.open]
            news = bodies.encode(bodies.Presence(False, [name], [], [link.life]))
            for other in others:
                other.core.session.announce(news)
            known = bodies.Presence(True, [other.peer for other in others], [], [other.life for other in others])
            link.core.session.announce(bodies.encode(known))
        older = self.direct.get(name)
        if older is not None and older.open:
            self._older.setdefault(name, []).append(older)
        self.direct[name] = link
        link.open = True
        self.tell()

    def remove(self, link: Link) -> None:
        """A link is gone, and with it all it led to."""
        name = link.peer
        older = [one for one in self._older.pop(name, ()) if one is not link and one.open]
        self.beyond = {name: via for name, via in self.beyond.items() if via is not link}
        if self.direct.get(name) is link:
            del self.direct[name]
            if older:
                self.direct[name] = older.pop()
            if self._hub and not link.dialler:
                news = bodies.encode(bodies.Presence(False, [], [name]))
                for other in self.direct.values():
                    if not other.dialler and other.open:
                        other.core.session.announce(news)
        if older:
            self._older[name] = older
        self.tell()

    def presence(self, link: Link, presence: bodies.Presence, own: str) -> None:
        """A hub has said which sites it leads to."""
        if presence.full:
            self.beyond = {name: via for name, via in self.beyond.items() if via is not link}
        for name in presence.joined:
            if name != own:
                self.beyond[name] = link
        for name in presence.left:
            if self.beyond.get(name) is link:
                del self.beyond[name]
        self.tell()
