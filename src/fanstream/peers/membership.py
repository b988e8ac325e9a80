"""An engine as a member of its federation: what its kit lets it do, and the watch over kit and links while it runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import anyio

from ..errors import IdentityError, KitError, SecurityError
from ..link import Link
from ..observe import Audit, IdentityEnded, IdentityLoaded
from ..transports.addresses import Address, parse_all

if TYPE_CHECKING:
    from ..security.kit import Kit

_log = logging.getLogger(__name__)

_LOOK: Final = 1.0  # seconds between two looks at the kit and the links: threat T23 promises 5
_PATIENCE: Final = 3  # looks in a row at which the files of a kit have the same fault
_QUIET: Final = 1.0  # seconds between two lines of the log about peers that were refused


def check_addresses(name: str, listen: Sequence[Address], connect: Sequence[Address], kit: Kit | None) -> list[Address]:
    """Check that a kit allows what an engine is to do.

    Args:
        name: the engine's site.
        listen: its addresses.
        connect: those of its hub.
        kit: what it has; None has no identity.

    Returns:
        *connect*, each ``tls`` address with the name of the hub that has to answer there.

    Raises:
        TypeError: *kit* is none.
        SecurityError: there is no kit, it is that of another site, or its role is another.
        ValueError: neither the address nor the kit says which hub has to answer.
    """
    if kit is None:
        for argument, addresses in (("listen", listen), ("connect", connect)):
            for address in addresses:
                if address.scheme == "tls":
                    raise SecurityError(f"{argument} has {address}, which needs identity: the kit of {name}")
        return list(connect)
    from ..security.kit import Kit

    if not isinstance(kit, Kit):
        raise TypeError(f"identity is {kit!r} of type {type(kit).__name__}, expected a Kit: Kit.load(folder)")
    own = kit.identity
    if own.name != name:
        raise SecurityError(f"site_name is {name}, and identity is the kit of {own.name}")
    for argument, addresses, role in (("listen", listen, "hub"), ("connect", connect, "site")):
        for address in addresses:
            if address.scheme == "tls" and own.role != role:
                raise SecurityError(
                    f"{argument} has {address}, which needs a {role}'s kit, and {name} has a {own.role}'s"
                )
    return [_name_hub(address, parse_all(kit.settings.connect or None, "connect")) for address in connect]


def _name_hub(address: Address, known: Sequence[Address]) -> Address:
    if address.scheme != "tls" or address.peer:
        return address
    names = {other.peer for other in known if replace(other, peer="") == address} or {other.peer for other in known}
    if len(names - {""}) != 1:
        raise ValueError(f"connect has {address}, which does not say which hub has to answer: add ?name=")
    return replace(address, peer=names.pop())


class Refusals:
    """Tells the log of peers that were not let in, once in a second at most, so that they cannot fill it."""

    def __init__(self, engine: str, time: Callable[[], float]) -> None:
        self._engine = engine
        self._time = time
        self._last = -math.inf
        self._silent = 0

    def tell(self, error: Exception) -> None:
        """A peer was not let in."""
        now = self._time()
        if now - self._last < _QUIET:
            self._silent += 1
            return
        more = f" ({self._silent} more were not told)" if self._silent else ""
        self._last, self._silent = now, 0
        _log.warning("engine %s refused a peer: %s%s", self._engine, error, more)


async def watch_kit(kit: Kit, links: Iterable[Link], audit: Audit) -> None:
    """Take up what changes in a kit, and end the links of peers that are no longer trusted; for ever."""
    failures, told = 0, ""
    while True:
        await anyio.sleep(_LOOK)
        if kit.changed():
            try:
                await anyio.to_thread.run_sync(kit.reload)
            except KitError as exc:
                # Said once; and not at first, for files are copied one after the other.
                failures, told = (failures + 1, told) if str(exc) == told else (1, str(exc))
                if failures == _PATIENCE:
                    _log.error("%s. What was loaded before stays in use", exc)
                    _tell_loaded(kit, audit, exc.reason)
            except Exception:  # noqa: BLE001 - a file that was not foreseen must not end the watch, nor the engine
                _log.exception("%r cannot be loaded again: a defect. What was loaded before stays in use", kit)
            else:
                failures, told = 0, ""
                _log.info("%r was loaded again", kit)
                _tell_loaded(kit, audit)
        end_untrusted(kit, links, audit)


def _tell_loaded(kit: Kit, audit: Audit, reason: str = "") -> None:
    if audit.wanted:
        own, trust = kit.identity, kit.trust
        audit.tell(
            IdentityLoaded(
                loaded=not reason, certificate=own.fingerprint, not_after=own.not_after, roots=len(trust.roots),
                revoked=sum(len(serials) for serials in trust.revoked.values()), reason=reason,
            )
        )  # fmt: skip


def end_untrusted(kit: Kit, links: Iterable[Link], audit: Audit) -> None:
    """End every link whose peer has proven an identity that is no longer valid."""
    for link in list(links):
        if link.proven is None:
            continue
        try:
            kit.check(link.proven)
        except IdentityError as exc:
            if link.leaving:  # it had its time to read why
                link.drop(exc)
            else:
                _log.warning("link to %s ends: %s", link.peer, exc)
                link.leave("refused", exc.code)
                if audit.wanted:
                    audit.tell(IdentityEnded(peer=link.peer, code=exc.code, certificate=link.proven.fingerprint))
