"""What an engine's policy says of what it is about to do; and the watch over the policy's file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import anyio
import anyio.to_thread

from ..arguments import OWN
from ..errors import KitError, SecurityError
from ..observe import Audit, PolicyDecided, PolicyLoaded
from ..protocol.bodies import Opening
from ..protocol.surroundings import Refusal, Routing
from ..shareable import ReturnCode

if TYPE_CHECKING:
    from ..options import PolicySource
    from ..security.policy import Decision, Policy

_log = logging.getLogger(__name__)

_LOOK: Final = 1.0  # seconds between two looks at the file, as at a kit's
_PATIENCE: Final = 3  # looks in a row at which the file has the same fault


class Authorization:
    """Asks one engine's policy.

    Args:
        source: the policy, or its file.
        site: the engine's own name.
        role: returns the role of a site, ``"hub"`` or ``"site"``.
        audit: hears of every decision.

    Raises:
        KitError: the file is refused.
        TypeError: *source* is no policy.
    """

    def __init__(self, source: PolicySource, site: str, role: Callable[[str], str], audit: Audit) -> None:
        from ..security.policy import Party, Policy

        self._party = Party
        self._load = Policy.load
        self._site = site
        self._role = role
        self._audit = audit
        self._path: Path | None = None
        self._stamp = (0, 0, 0)
        if isinstance(source, Policy):
            self._policy: Policy = source
        elif isinstance(source, Path):
            self._path = source.absolute()
            self._stamp = self._look()
            self._policy = Policy.load(source)
        else:
            raise TypeError(f"policy is of type {type(source).__name__}, expected a Policy or the path of one")

    # --- questions ---

    def check_registration(self, channel: str, topic: str) -> None:
        """Check that something may be registered here.

        Raises:
            SecurityError: it may not; nothing was registered.
        """
        decision = self._policy.judge_registration(self._party(self._site, self._role(self._site)), channel, topic)
        self._tell("register", self._site, "", channel, topic, decision)
        if not decision.allowed:
            raise SecurityError(
                f"{self._site} may not register for channel {channel!r} and topic {topic!r}: {decision.reason}"
            )

    def check_opening(self, channel: str, topic: str, targets: Iterable[str]) -> None:
        """Check that this engine may open a stream at each of its targets.

        Raises:
            SecurityError: it may not; nothing was sent.
        """
        for target in targets:
            decision = self._judge("open", self._site, target, (channel, topic))
            if not decision.allowed:
                raise SecurityError(
                    f"{self._site} may not open a stream on channel {channel!r} and topic {topic!r} to {target}: "
                    f"{decision.reason}; nothing was sent"
                )

    def judge(self, routing: Routing, target: str) -> Refusal | None:
        """Say whether a stream of another site may come in here, or be forwarded.

        A stream that goes on after a break does not say its address again. At its target it was judged as it began, or
        is asked about as if it began; a hub may not know it, and lets it pass where a stream between the two could be
        allowed.
        """
        here = target == self._site
        if isinstance(routing, Opening):
            address = (routing.channel, routing.topic)
        elif here:
            return None
        else:
            address = None
        decision = self._judge("take" if here else "forward", routing.opener, target, address)
        if decision.allowed:
            return None
        return Refusal(ReturnCode.UNSAFE_JOB, f"the policy of {self._site} denies it: {decision.reason}")

    def _judge(self, action: str, opener: str, target: str, address: tuple[str, str] | None) -> Decision:
        parties = self._party(opener, self._role(opener)), self._party(target, self._role(target))
        if address is None or address[0].startswith(OWN):
            # The engine's own streams prepare those that are judged by their address, and reach no wildcard.
            decision = self._policy.judge_any_stream(*parties)
        else:
            decision = self._policy.judge_stream(*parties, *address)
        channel, topic = address or ("", "")
        self._tell(action, opener, target, channel, topic, decision)
        return decision

    def _tell(self, action: str, opener: str, target: str, channel: str, topic: str, decision: Decision) -> None:
        if self._audit.wanted:
            self._audit.tell(
                PolicyDecided(
                    action=action, opener=opener, target=target, channel=channel, topic=topic,
                    allowed=decision.allowed, rule=decision.rule,
                )
            )  # fmt: skip

    # --- the file ---

    async def watch(self) -> None:
        """Take up what changes in the policy's file; for ever. Streams that run are not judged again."""
        if self._path is None:
            return
        failures, told = 0, ""
        while True:
            await anyio.sleep(_LOOK)
            stamp = self._look()
            if stamp == self._stamp:
                continue
            try:
                policy = await anyio.to_thread.run_sync(self._load, self._path)
            except KitError as exc:
                # Said once; and not at first, for the file may be under way.
                failures, told = (failures + 1, told) if str(exc) == told else (1, str(exc))
                if failures == _PATIENCE:
                    _log.error("%s. The policy that was loaded before stays in use", exc)
                    self._tell_loaded(reason=exc.reason)
            except Exception:  # noqa: BLE001 - a file that was not foreseen must not end the watch, nor the engine
                _log.exception("the policy %s cannot be loaded: a defect. The one before stays in use", self._path)
                self._stamp = stamp
            else:
                failures, told = 0, ""
                self._policy, self._stamp = policy, stamp
                _log.info("the policy %s was loaded again", self._path)
                self._tell_loaded()

    def _tell_loaded(self, reason: str = "") -> None:
        if self._audit.wanted:
            rules = len(self._policy.streams) + len(self._policy.registrations)
            self._audit.tell(PolicyLoaded(path=str(self._path), loaded=not reason, rules=rules, reason=reason))

    def _look(self) -> tuple[int, int, int]:
        try:
            status = cast("Path", self._path).stat()
        except OSError:
            return (0, 0, 0)
        return (status.st_ino, status.st_mtime_ns, status.st_size)
