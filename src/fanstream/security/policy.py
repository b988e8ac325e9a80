"""Who may open which streams to whom, and who may register what: rules over names, read from the top.

::

    [groups]
    trainers = ["site-1", "site-2"]

    [[streams]]
    name = "weights go out"
    effect = "allow"
    from = "role:hub"
    to = "group:trainers"
    channel = "models"
    topic = ["weights", "update"]

    [[registrations]]
    name = "trainers take models"
    effect = "allow"
    site = "group:trainers"
    channel = "models"
    topic = "*"

The first rule that fits decides, and what none fits is denied. Every key of a rule has to be there: a file that is cut
short while it is copied is refused, or allows less than the whole of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from ..arguments import WILDCARD, check_address, check_site
from ..errors import KitError
from .files import parse_toml, read_checked
from .identity import Role

NO_RULE: Final = "no rule allows it"

_ROLE: Final = "role:"
_GROUP: Final = "group:"
_LONGEST_NAME: Final = 100  # characters: it stands in logs, and in what a peer is told
_MEND: Final = "Mend it, or copy it again"


class Party(NamedTuple):
    """One side of what is judged.

    Attributes:
        name: the site's name.
        role: ``"hub"`` or ``"site"``.
    """

    name: str
    role: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy says.

    Attributes:
        allowed: whether it may be.
        rule: the name of the rule that decides; None where no rule fits, which denies.
    """

    allowed: bool
    rule: str | None = None

    @property
    def reason(self) -> str:
        """The rule, or that there is none."""
        return NO_RULE if self.rule is None else f"rule {self.rule!r}"


def _many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _check_selector(text: str) -> str:
    if text.startswith(_ROLE):
        if text.removeprefix(_ROLE) not in list(Role):
            raise ValueError(f"{text!r} is no role: role:hub or role:site")
    elif text != WILDCARD:
        check_site(text.removeprefix(_GROUP), f"{text!r}: the name")
    return text


def _check_alone(names: Sequence[str]) -> Sequence[str]:
    if WILDCARD in names and len(names) > 1:
        raise ValueError("'*' is everything: it stands alone")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is there twice")
    return names


def _check_rule_name(name: str) -> str:
    if not name.isprintable() or not 1 <= len(name) <= _LONGEST_NAME or name != name.strip():
        raise ValueError(f"{name[:_LONGEST_NAME]!r}: a rule's name has 1 to {_LONGEST_NAME} characters in one line")
    return name


_Address = Annotated[str, AfterValidator(partial(check_address, argument="a name", wildcard=True))]
_Site = Annotated[str, AfterValidator(partial(check_site, argument="a name"))]
_T = TypeVar("_T")
_Several = Annotated[tuple[_T, ...], BeforeValidator(_many), Field(min_length=1), AfterValidator(_check_alone)]
Who = _Several[Annotated[str, AfterValidator(_check_selector)]]
"""Sites: one or several of a name, ``group:<name>``, ``role:hub``, ``role:site``; or ``*``."""
What = _Several[_Address]
"""Channels or topics: one or several exact names, or ``*``."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class StreamRule(_Frozen):
    """A rule about streams: the same at their opener, at the hub between, and at their targets.

    Attributes:
        name: by which logs and peers hear of it; no other rule has it.
        effect: what the rule does to what it fits.
        opener: who opens the stream; ``from`` in a file.
        to: at whom.
        channel: on which channels.
        topic: and topics.
    """

    name: Annotated[str, AfterValidator(_check_rule_name)]
    effect: Literal["allow", "deny"]
    opener: Annotated[Who, Field(alias="from")]
    to: Who
    channel: What
    topic: What


class RegistrationRule(_Frozen):
    """A rule about registrations, at the engine that is asked to register.

    One that denies fits a registration with wildcards that would take any of what it denies; one that allows fits only
    if it allows all of it.

    Attributes:
        name: by which logs hear of it; no other rule has it.
        effect: what the rule does to what it fits.
        site: whose engine.
        channel: for which channels.
        topic: and topics.
    """

    name: Annotated[str, AfterValidator(_check_rule_name)]
    effect: Literal["allow", "deny"]
    site: Who
    channel: What
    topic: What


class _Sites(NamedTuple):
    """Who is meant, with groups resolved."""

    names: frozenset[str]
    roles: frozenset[str]

    def fit(self, party: Party) -> bool:
        return party.role in self.roles or party.name in self.names

    def cover(self, other: _Sites) -> bool:
        return self.roles == _EVERYONE or (self.roles >= other.roles and self.names >= other.names)


_EVERYONE: Final = frozenset(str(role) for role in Role)


class _Names(NamedTuple):
    """Channels or topics; None for all."""

    names: frozenset[str] | None

    def fit(self, name: str) -> bool:
        return self.names is None or name in self.names

    def cover(self, other: _Names) -> bool:
        return self.names is None or (other.names is not None and self.names >= other.names)

    def meet(self, other: _Names) -> bool:
        return self.names is None or other.names is None or bool(self.names & other.names)


class _Compiled(NamedTuple):
    """A rule, ready to be asked; a registration's has the same site on both sides."""

    decision: Decision
    opener: _Sites
    target: _Sites
    channel: _Names
    topic: _Names

    @property
    def everything(self) -> bool:
        """Whether this is about all channels and topics."""
        return self.channel.names is None and self.topic.names is None

    def covers(self, other: _Compiled) -> bool:
        """Whether this fits all that *other* fits."""
        return (
            self.opener.cover(other.opener)
            and self.target.cover(other.target)
            and self.channel.cover(other.channel)
            and self.topic.cover(other.topic)
        )

    def covers_registration(self, other: _Compiled) -> bool:
        """The same of registrations, where one with wildcards may pass what allows a part of it, not what denies it."""
        return self.covers(other) and (self.everything or not self.decision.allowed or other.decision.allowed)


class Policy(_Frozen):
    """What an engine and its peers may do.

    Attributes:
        groups: sites by the name of a group.
        streams: rules about streams, the first that fits decides.
        registrations: rules about registrations, likewise.

    Raises:
        ValidationError: the rules contradict what they name, or one can never be reached.
    """

    groups: dict[_Site, Annotated[tuple[_Site, ...], Field(min_length=1), AfterValidator(_check_alone)]] = {}
    streams: tuple[StreamRule, ...] = ()
    registrations: tuple[RegistrationRule, ...] = ()

    _streams: tuple[_Compiled, ...] = PrivateAttr(())
    _registrations: tuple[_Compiled, ...] = PrivateAttr(())

    @model_validator(mode="after")
    def _compile(self) -> Self:
        self._check_names()
        self._streams = tuple(
            _Compiled(
                Decision(rule.effect == "allow", rule.name),
                self._resolve(rule.opener, f"streams[{index}] {rule.name!r}: from"),
                self._resolve(rule.to, f"streams[{index}] {rule.name!r}: to"),
                _names(rule.channel),
                _names(rule.topic),
            )
            for index, rule in enumerate(self.streams)
        )
        self._registrations = tuple(
            _Compiled(
                Decision(registration.effect == "allow", registration.name),
                site := self._resolve(registration.site, f"registrations[{index}] {registration.name!r}: site"),
                site,
                _names(registration.channel),
                _names(registration.topic),
            )
            for index, registration in enumerate(self.registrations)
        )
        _check_reached("streams", self._streams, _Compiled.covers)
        _check_reached("registrations", self._registrations, _Compiled.covers_registration)
        return self

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load a policy from a TOML file.

        Raises:
            KitError: it is missing, open to changes by others, no TOML, or no policy that makes sense; the error says
                where in it, and what to do.
        """
        path = Path(path).absolute()
        data = parse_toml(path, read_checked(path, again="Copy the policy again"), fix=_MEND)
        try:
            policy = cls.model_validate(data)
        except ValidationError as exc:
            raise KitError(path, f"is refused: {_first_fault(exc)}", _MEND) from exc
        if not (policy.streams or policy.registrations):
            raise KitError(path, "has no rules, and would deny everything", _MEND)
        return policy

    def judge_stream(self, opener: Party, target: Party, channel: str, topic: str) -> Decision:
        """Say whether a stream may be opened."""
        for rule in self._streams:
            if (
                rule.opener.fit(opener)
                and rule.target.fit(target)
                and rule.channel.fit(channel)
                and rule.topic.fit(topic)
            ):
                return rule.decision
        return _DENIED

    def judge_any_stream(self, opener: Party, target: Party) -> Decision:
        """Say whether there is a channel and topic on which a stream may be opened; which, is not known."""
        for rule in self._streams:
            if rule.opener.fit(opener) and rule.target.fit(target) and (rule.decision.allowed or rule.everything):
                return rule.decision
        return _DENIED

    def judge_registration(self, site: Party, channel: str, topic: str) -> Decision:
        """Say whether a channel and topic, each perhaps ``"*"``, may be registered."""
        channels, topics = _names((channel,)), _names((topic,))
        for rule in self._registrations:
            if rule.decision.allowed:
                fits = rule.channel.cover(channels) and rule.topic.cover(topics)
            else:
                fits = rule.channel.meet(channels) and rule.topic.meet(topics)
            if fits and rule.opener.fit(site):
                return rule.decision
        return _DENIED

    def _check_names(self) -> None:
        rules: list[StreamRule | RegistrationRule] = [*self.streams, *self.registrations]
        names = [rule.name for rule in rules]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two rules have the name {name!r}")
        sites = {name for members in self.groups.values() for name in members}
        for rule in rules:
            selectors = rule.opener + rule.to if isinstance(rule, StreamRule) else rule.site
            sites.update(text for text in selectors if ":" not in text and text != WILDCARD)
        folded: dict[str, str] = {}
        for name in sorted(sites):
            other = folded.setdefault(name.casefold(), name)
            if other != name:
                raise ValueError(f"the sites {other} and {name} differ in case alone: one of them is a mistake")

    def _resolve(self, selectors: Iterable[str], place: str) -> _Sites:
        names: set[str] = set()
        roles: set[str] = set()
        for text in selectors:
            if text == WILDCARD:
                roles.update(_EVERYONE)
            elif text.startswith(_ROLE):
                roles.add(text.removeprefix(_ROLE))
            elif text.startswith(_GROUP):
                group = text.removeprefix(_GROUP)
                if group not in self.groups:
                    known = ", ".join(self.groups) or "none"
                    raise ValueError(f"{place}: there is no group {group!r}; the groups are: {known}")
                names.update(self.groups[group])
            else:
                names.add(text)
        return _Sites(frozenset(names), frozenset(roles))


_DENIED: Final = Decision(allowed=False)


def _names(texts: Sequence[str]) -> _Names:
    return _Names(None if WILDCARD in texts else frozenset(texts))


def _check_reached(table: str, rules: Sequence[_Compiled], covers: Callable[[_Compiled, _Compiled], bool]) -> None:
    """Refuse a rule that an earlier one leaves nothing to decide."""
    for index, rule in enumerate(rules):
        for earlier in rules[:index]:
            if covers(earlier, rule):
                raise ValueError(
                    f"{table}[{index}] {rule.decision.rule!r} is never reached: {earlier.decision.rule!r} before it "
                    "fits all that it fits. Move it up, or take it out"
                )


def _first_fault(exc: ValidationError) -> str:
    """Tell of the first thing that is wrong: its place, what stands there, and why not."""
    error = exc.errors()[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
