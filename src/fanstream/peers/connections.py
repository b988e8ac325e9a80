"""An engine's links: who may connect, who is dialled, and which link leads to which site."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import anyio
import msgspec

from .. import transports
from ..errors import ConnectError, IdentityError, NameInUseError, RemoteProtocolError, SecurityError, TransportError
from ..link import Link
from ..observe import Audit
from ..protocol.bodies import Hello, Opening
from ..protocol.core import LinkCore
from ..protocol.events import Forwarded, Opened, PresenceChanged, TurnedAway
from ..protocol.frames import MAGIC
from ..protocol.inbound import Decoders
from ..protocol.opener import OpenerLeg
from ..protocol.receiver import ReceiverLeg
from ..protocol.relay import FIRST_WINDOW
from ..protocol.session import SessionState
from ..protocol.surroundings import Refusal, Routing, Surroundings
from ..shareable import ReturnCode
from ..tasks import Tasks
from ..transports import memory
from ..transports.addresses import Address
from ..transports.base import Listener, Wire
from ..transports.memory import LOCAL, MemoryListener, network_now, watch
from . import auditing
from .authorization import Authorization
from .membership import Refusals, watch_kit
from .resuming import Resuming
from .sites import Sites

if TYPE_CHECKING:
    from ..journal import Journal
    from ..options import EngineSettings
    from ..security.identity import Identity
    from ..security.kit import Kit
    from ..store import Kept

_log = logging.getLogger(__name__)


class Connections:
    """All the links of one engine.

    Args:
        name: the engine's site.
        settings: the engine's.
        listen: addresses to be dialled at; with any, the engine is a hub.
        connect: addresses of one hub, tried in order. With neither, engines of one event loop find each other by name.
        kit: the engine's identity, for ``tls``.
        decoder: turns envelopes into objects.
        tasks: where the links' tasks live.
        admit: says whether the engine itself takes a stream.
        opened: called with each incoming stream.
        authorization: the engine's policy, if it has one.
        audit: hears of links, and of streams that come in, are forwarded or refused.
        journal: where incoming streams are kept, if they are.
    """

    def __init__(
        self,
        name: str,
        settings: EngineSettings,
        listen: Sequence[Address],
        connect: Sequence[Address],
        kit: Kit | None,
        decoder: Decoders,
        tasks: Tasks,
        admit: Callable[[Opening], Refusal | None],
        opened: Callable[[Opened], object],
        authorization: Authorization | None,
        audit: Audit,
        journal: Journal | None = None,
    ) -> None:
        self.name = name
        self._settings = settings
        self._listen = listen
        self._connect = connect
        self._kit = kit
        self._tasks = tasks
        self.face = tasks.face
        self.deadlines = tasks.deadlines
        self._on_opened = opened
        self._authorization = authorization
        self._audit = audit
        self._sites = Sites(hub=bool(listen), on_change=self._ways_changed)
        self._links: set[Link] = set()
        self._ended = self.face.wakeup()
        self._listeners: list[Listener] = []
        self._half_open = 0
        self._refusals = Refusals(name, tasks.face.time)
        self._closing = False
        self._local: dict[str, Link] = {}  # dialled to engines of this event loop, by name
        self._redialled: set[str] = set()  # of them, those about to be dialled again for a suspended stream
        self._unjudged: set[tuple[str, bytes]] = set()  # streams of an earlier life that none has resumed yet
        self._dial_error: Exception | None = None
        self._unwatch: Callable[[], object] = lambda: None
        limits = settings.limits
        self._hello = Hello(
            name,
            os.urandom(16),
            bool(listen),
            limits.frame,
            limits.window,
            FIRST_WINDOW,
            limits.backlog,
            [],
            MAGIC,
        )
        self._resuming = Resuming(
            self.deadlines,
            self.face.time,
            limits.resume_window,
            self._way_to,
            self._wanted,
            journal,
        )
        self._shared = Surroundings(settings, decoder, self._route, admit, self._resuming)

    # --- lifetime ---

    async def start(self) -> None:
        """Listen and dial.

        Raises:
            ConnectError: an address cannot be bound.
            SecurityError: it is plain TCP beyond loopback, and that was not asked for.
        """
        kit = self._kit
        for address in self._listen:
            self._listeners.append(
                await transports.listen(
                    address,
                    self._accepted,
                    allow_plain=self._settings.allow_plain_tcp,
                    context=None if kit is None else lambda: kit.context,
                )
            )
        if kit is not None:
            self._tasks.spawn(watch_kit, kit, self, self._audit, name="kit")
        if self._connect:
            self._tasks.spawn(self._dial_for_ever, name="dial")
        elif not self._listen:
            self._listeners.append(MemoryListener(LOCAL + self.name, self._accepted))
            self._unwatch = watch(self._sites.tell)

    def refuse_further(self) -> None:
        """Take no further link."""
        self._closing = True
        self._unwatch()
        for listener in self._listeners:
            listener.close()

    async def aclose(self) -> None:
        """Say goodbye on every link, and wait until they have ended."""
        self.refuse_further()
        for link in list(self._links):
            link.leave("bye")
        while self._links:
            await self._ended.wait()
        self._resuming.clear()

    # --- streams whose way is broken ---

    @property
    def life(self) -> bytes:
        """This engine's incarnation."""
        return self._hello.incarnation

    def restore(self, streams: Sequence[Kept]) -> list[ReceiverLeg]:
        """Make this site's ends of the streams that an earlier life of the engine has left; their records are there."""
        nowhere = self._nowhere()
        self._unjudged = {(kept.opening.opener, kept.opening.stream) for kept in streams}
        legs = []
        for kept in streams:
            leg = nowhere.restore(kept.opening, kept.answered, kept.acked, {**kept.replies}, kept.ending)
            legs.append(leg)
            if kept.lease is not None:
                self._resuming.restored(leg, kept.lease - self.face.wall())
        return legs

    def take_up(
        self, opening: Opening, body: bytes, sites: Mapping[str, bytes], settled: int, owner: object
    ) -> list[OpenerLeg]:
        """Make the opener's ends of a durable stream that an earlier life of the engine has left.

        They are suspended, each until there is a way to its site; where there is one, it is asked at once.

        Args:
            opening: what this life would say to open it.
            body: what was sent along with OPEN.
            sites: the targets that take part, with the incarnations to which it was opened.
            settled: how many objects are behind it.
            owner: who hears what happens to them.
        """
        nowhere = self._nowhere()
        legs = []
        for name, life in sites.items():
            leg = nowhere.take_up(msgspec.structs.replace(opening, targets=[name]), body, life=life, settled=settled)
            leg.owner = owner
            legs.append(leg)
        self._ways_changed()
        return legs

    def _nowhere(self) -> LinkCore:
        return LinkCore(self._hello, self._shared, dialler=False, on_output=lambda: None, now=self.face.time())

    def _ways_changed(self) -> None:
        self._resuming.ways_changed()

    def _way_to(self, name: str) -> LinkCore | None:
        link = self._sites.find(name)
        return None if link is None else link.core

    def _wanted(self, name: str) -> None:
        """A suspended stream needs a way to a site: nobody else dials engines of this event loop."""
        if not (self._closing or self._listen or self._connect or name in self._redialled):
            self._redialled.add(name)
            self._tasks.spawn(self._redial, name, name=f"dial {name} again")

    async def _redial(self, name: str) -> None:
        pause = self._settings.retry_first
        while self._resuming.wants(name) and self._sites.find(name) is None and not self._closing:
            await anyio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            pause = min(pause * 2, self._settings.retry_max)
            await self._dial_local(name)
        self._redialled.discard(name)

    # --- what the engine asks ---

    @property
    def addresses(self) -> list[str]:
        """What was really bound, as URLs."""
        return [listener.address for listener in self._listeners if self._listen]

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)

    def names(self) -> set[str]:
        """Return the sites that can be reached now."""
        return self._sites.names() | self._local_names()

    def role(self, name: str) -> str:
        """Return the role of another site: what it has proven; or a hub's if it is dialled, else a site's."""
        link = self._sites.direct.get(name)
        if link is None:  # a hub may open streams in one breath with its greeting
            link = next((other for other in self._links if other.dialler and other.core.peer == name), None)
        if link is not None and link.proven is not None:
            return link.proven.role
        if link is not None:
            hello = link.core.session.peer
            return "hub" if link.dialler and hello is not None and hello.hub else "site"
        return "hub" if any(address.peer == name for address in self._connect) else "site"

    def _local_names(self) -> set[str]:
        if self._listen or self._connect:
            return set()
        return {name.removeprefix(LOCAL) for name in network_now() if name.startswith(LOCAL)} - {self.name}

    async def wait_for(self, wanted: Iterable[str]) -> None:
        """Wait until all these sites can be reached.

        Raises:
            NameInUseError: the hub says that another engine has this site's name.
            SecurityError: the hub is not who it has to be, refuses this site, or cannot be reached safely.
        """
        missing = set(wanted)
        while not missing <= self.names():
            if isinstance(self._dial_error, (NameInUseError, SecurityError)):
                raise self._dial_error
            await self._sites.changed()

    async def reach(self, sites: Sequence[str], grace: float) -> Mapping[str, LinkCore]:
        """Return the links that lead to sites; those that cannot be reached within *grace* seconds are absent."""
        deadline = self.face.time() + grace
        while True:
            for name in sites:
                if self._sites.find(name) is None and name in self._local_names():
                    await self._dial_local(name)
            # Looked up in one go: a link may have ended while another was dialled.
            links = {name: self._sites.find(name) for name in sites}
            found = {name: link.core for name, link in links.items() if link is not None}
            left = deadline - self.face.time()
            if len(found) == len(sites) or left <= 0:
                return found
            with anyio.move_on_after(left):
                await self._sites.changed()

    # --- making links ---

    def _accepted(self, wire: Wire) -> None:
        if self._closing or self._half_open >= self._settings.limits.half_open:
            wire.close(TransportError("no further link is taken now"))
            return
        self._half_open += 1
        link = self._make(wire, dialler=False)
        self._tasks.spawn(self._run, link, name=f"link from {wire.name}")

    def _make(self, wire: Wire, *, dialler: bool) -> Link:
        link = Link(self, wire, self._hello, self._shared, dialler=dialler)
        self._links.add(link)
        return link

    async def _run(self, link: Link) -> None:
        try:
            await link.run()
        except Exception:  # noqa: BLE001 - a failing link never cancels the body of the engine
            _log.exception("engine %s: a link failed: a defect", self.name)
        finally:
            self._links.discard(link)
            self._local = {name: other for name, other in self._local.items() if other is not link}
            if not link.dialler and not link.peer:
                self._half_open -= 1
                if link.goodbye is not None:
                    self._refusals.tell(link.goodbye)
                    self._tell_refused(link.goodbye, "" if link.proven is None else link.proven.name)
            self._ended.set()

    async def _dial_for_ever(self) -> None:
        settings = self._settings
        pause = settings.retry_first
        while not self._closing:
            for address in self._connect:
                if await self._dial(address):
                    pause = settings.retry_first
            await anyio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            pause = min(pause * 2, settings.retry_max)

    async def _dial(self, address: Address) -> bool:
        """Dial one address and live with its link; return whether there was one."""
        kit = self._kit
        try:
            if kit is not None and address.scheme == "tls":
                kit.check(kit.identity)
            with anyio.fail_after(self._settings.limits.hello_timeout):
                wire = await transports.dial(
                    address,
                    self.name,
                    allow_plain=self._settings.allow_plain_tcp,
                    context=None if kit is None else kit.context,
                )
        except (TransportError, SecurityError, TimeoutError) as exc:
            self._failed(exc)
            return False
        link = self._make(wire, dialler=True)
        await self._run(link)
        if link.peer and link.goodbye is None:
            self._dial_error = None
        else:
            reason = link.ended or "it ended before its greeting"
            if link.proven is not None and not link.peer:
                reason += "; the hub's log says whether it refused this site's certificate"
            self._failed(link.goodbye or ConnectError(f"{address}: {reason}"))
        return self._dial_error is None

    def _failed(self, error: Exception) -> None:
        """Keep why there is no link, and tell it once."""
        if str(error) != str(self._dial_error):
            _log.warning("engine %s: %s", self.name, error)
            if isinstance(error, SecurityError):
                self._tell_refused(error)
        self._dial_error = error
        self._sites.tell()  # whoever waits for a site is told of some errors

    async def _dial_local(self, name: str) -> None:
        """Connect to an engine of this event loop; streams that open at once share one link."""
        link = self._local.get(name)
        if link is None:
            if LOCAL + name not in network_now():
                return
            try:
                wire = memory.dial(LOCAL + name, self.name)
            except TransportError as exc:
                self._failed(exc)
                return
            link = self._local[name] = self._make(wire, dialler=True)
            self._tasks.spawn(self._run, link, name=f"link to {name}")
        with anyio.move_on_after(self._settings.limits.hello_timeout):
            while self._sites.find(name) is None and self._local.get(name) is link:
                await self._sites.changed()

    # --- what links tell ---

    def check(self, proven: Identity) -> None:
        """Check a peer again as it greets: it may have been accepted just before it was revoked.

        When the kit was loaded again, and the links were judged, the handshake may not have been over.

        Raises:
            IdentityError: it is not trusted any more.
        """
        if self._kit is not None:
            self._kit.check(proven)

    def greeted(self, link: Link, hello: Hello) -> None:
        """A peer has said HELLO."""
        if not link.dialler:
            self._half_open -= 1
        if link.dialler:
            self._dial_error = None
            self._resuming.met(hello.site, hello.incarnation)
            self._begin(link)
            return
        old = self._sites.direct.get(hello.site)
        if hello.site == self.name:
            self._turn_away(link, f"{hello.site} is this engine's own name")
        elif old is None or not old.open or old.dialler:  # both may have dialled at once: streams run on either link
            self._admit(link)
        elif old.core.session.peer is not None and old.core.session.peer.incarnation == hello.incarnation:
            old.drop(TransportError("replaced by a newer link of the same engine"))
            self._admit(link)
        else:
            self._tasks.spawn(self._probe, old, link, name=f"probe of {link.peer}")

    def _admit(self, link: Link) -> None:
        if link.core.session.state is SessionState.ADMITTING:  # its peer may have said goodbye already
            link.admit()
            self._resuming.met(link.peer, link.life)
            self._begin(link)

    def _begin(self, link: Link) -> None:
        """Let streams use a link."""
        link.began = self.face.time()
        if self._audit.wanted:
            self._audit.tell(auditing.link_opened(link))
        self._sites.add(link)

    def _turn_away(self, link: Link, reason: str) -> None:
        """Refuse a link whose peer claims a name that another has."""
        link.leave("name-in-use", reason)
        self._tell_refused(IdentityError(reason, code="name-in-use"), link.peer)

    def _tell_refused(self, error: Exception, peer: str = "") -> None:
        if self._audit.wanted:
            self._audit.tell(auditing.peer_refused(error, peer))

    async def _probe(self, old: Link, new: Link) -> None:
        """Two engines claim one name: the newer gets it only if the older is dead."""
        before = old.core.reads
        old.core.session.ping()
        with anyio.move_on_after(self._settings.probe_timeout):
            while old.open and old.core.reads == before:  # noqa: ASYNC110 - any byte is the answer
                await anyio.sleep(0.01)
        if old.open and old.core.reads > before:
            self._turn_away(new, f"another engine answers as {new.peer}")
            return
        old.drop(TransportError("it did not answer, and another engine has its name"))
        if new in self._links:
            self._admit(new)

    def departed(self, link: Link, code: str, reason: str) -> None:
        """A peer has said GOAWAY."""
        if link.dialler and code == "name-in-use":
            link.goodbye = NameInUseError(reason)
        elif link.dialler and code == "refused":
            link.goodbye = IdentityError(f"the hub refuses this site: {reason}", code="refused")
        elif code == "protocol":
            _log.warning("link to %s: the peer says that this side broke the protocol: %s", link.peer, reason)

    def opened(self, link: Link, event: Opened) -> None:
        """A stream was opened at this site."""
        if self._audit.wanted:
            self._audit.tell(auditing.stream_admitted(event.leg, link.peer))
        self._on_opened(event)

    def passed_by(self, event: Forwarded | TurnedAway) -> None:
        """A stream was forwarded, or refused."""
        if self._audit.wanted:
            self._audit.tell(auditing.passed_by(event))

    def presence(self, link: Link, event: PresenceChanged) -> None:
        """A hub has said which sites it leads to; what another engine says of its own links leads nowhere."""
        hello = link.core.session.peer
        if link.dialler and hello is not None and hello.hub:
            for site, life in zip(event.presence.joined, event.presence.lives, strict=False):
                self._resuming.met(site, life)
            self._sites.presence(link, event.presence, self.name)

    def closed(self, link: Link, reason: str) -> None:
        """A link is gone."""
        _log.debug("engine %s: link to %s ended: %s", self.name, link.peer, reason)
        if link.began is not None and self._audit.wanted:
            self._audit.tell(auditing.link_closed(link, reason, self.face.time() - link.began))
        self._sites.remove(link)

    def _route(self, core: LinkCore, routing: Routing, target: str) -> LinkCore | Refusal | None:
        """Say where a stream that a peer opens, or goes on with, leads."""
        opener = routing.opener
        through_hub = any(link.core is core and link.dialler for link in self._links)
        if opener != core.peer and not through_hub:
            raise RemoteProtocolError(f"{core.peer} opens a stream in the name of {opener}")
        refusal = self._judge(core, routing, target)  # before anything is said of which sites there are
        if refusal is not None:
            return refusal
        if target == self.name:
            return None
        link = self._sites.direct.get(target)
        if link is None or not link.open or link.dialler or through_hub or not self._listen:
            return Refusal(ReturnCode.COMMUNICATION_ERROR, f"{self.name} knows no way to {target}")
        return link.core

    def _judge(self, core: LinkCore, routing: Routing, target: str) -> Refusal | None:
        """Ask the policy; also of a stream that an earlier life of this engine has taken, perhaps under other settings.

        That is asked when the opener comes back, and no sooner: before, nothing is known of its role.
        """
        policy = self._authorization
        key = (routing.opener, routing.stream)
        if isinstance(routing, Opening) or target != self.name or key not in self._unjudged:
            return None if policy is None else policy.judge(routing, target)
        self._unjudged.discard(key)
        leg = self._resuming.find(*key)
        if leg is None:
            return None
        refusal = None if policy is None else policy.judge(leg.opening, target)
        refusal = refusal or core.fits(leg.opening)
        if refusal is not None:
            self._resuming.give_up(leg, refusal.reason)
        return refusal
