"""Commands that make a federation and keep it: provision, renew, revoke, add-root, retire-roots, check."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from ..security import Kit, Policy
from ..security.provision import Federation, Plan
from .app import commands


def _say(text: str) -> None:
    Console(highlight=False, soft_wrap=True).print(text, markup=False)


@commands.command
def provision(plan: Path, *, out: Path) -> None:
    """Make a federation: its root, and a kit for each hub and site; or add who is new in the plan.

    Parameters
    ----------
    plan
        The federation's TOML file.
    out
        The folder of the federation, new or of an earlier run.
    """
    made = Federation.make(Plan.read(plan), out)
    table = Table("name", "role", "certificate until", title=f"{made.plan.federation} in {made.folder}")
    for name, role in made.plan.roles().items():
        table.add_row(name, role.value, f"{made.issued(name)[-1].not_valid_after_utc:%Y-%m-%d}")
    Console().print(table)
    _say(f"Copy each folder of {made.kits} to its site, and delete it here. Keep {made.folder / 'authority'} safe.")


@commands.command
def renew(folder: Path, *names: str) -> None:
    """Issue new certificates and keys.

    Parameters
    ----------
    folder
        The folder of the federation.
    names
        Of hubs and sites; all of them where none is named.
    """
    for name in Federation.open(folder).renew(names or None):
        _say(f"{name}: copy certificate.pem and key.pem of its kit")


@commands.command
def revoke(folder: Path, name: Annotated[str, Parameter()], *more: str) -> None:
    """Revoke every certificate that a hub or site was ever issued.

    Parameters
    ----------
    folder
        The folder of the federation.
    name
        Of a hub or site.
    more
        Further names.
    """
    number = Federation.open(folder).revoke((name, *more))
    _say(f"list {number}: copy revoked.pem to every hub and site")


@commands.command
def add_root(folder: Path) -> None:
    """Make a new root, trusted beside the old: the first step of its replacement.

    Parameters
    ----------
    folder
        The folder of the federation.
    """
    name = Federation.open(folder).add_root()
    _say(f"{name}: copy roots.pem and revoked.pem to every hub and site, and then renew them all")


@commands.command
def retire_roots(folder: Path) -> None:
    """Trust the newest root alone: the last step, once every hub and site has its new certificate.

    Parameters
    ----------
    folder
        The folder of the federation.
    """
    retired = Federation.open(folder).retire_roots()
    _say(f"retired {', '.join(retired) or 'none'}: copy roots.pem to every hub and site")


@commands.command
def check(kit: Path) -> None:
    """Check a kit, and the policy that its settings name, as the engine does when it starts.

    Parameters
    ----------
    kit
        The folder of the kit.
    """
    loaded = Kit.load(kit)
    own = loaded.identity
    _say(f"{own.name}, a {own.role} of {own.federation}, until {_day(own.not_after)}")
    _say(f"revocation lists: {', '.join(str(number) for number in loaded.trust.numbers.values())}")
    policy = loaded.settings.engine.policy
    if isinstance(policy, Path):
        rules = Policy.load(policy)
        _say(f"rules of {policy}: {len(rules.streams)} about streams, {len(rules.registrations)} about registrations")


def _day(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).date().isoformat()
