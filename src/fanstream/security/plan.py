"""The plan of a federation: its hubs, its sites, and what their certificates are like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import KitError
from .authority import KeyKind
from .files import parse_toml
from .identity import Role
from .kit import Name, first_fault

Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]+$")]
Days = Annotated[int, Field(ge=1, le=36_500)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hub(_Frozen):
    """One hub of a plan.

    Attributes:
        name: its name as a site.
        host: where sites dial it: a host's name or an IP address.
        port: where it listens, and is dialled.
        bind: the address that it listens at; all of IPv4 unless set.
    """

    name: Name
    host: Host
    port: Annotated[int, Field(ge=1, le=65_535)]
    bind: Host = "0.0.0.0"  # noqa: S104 - a hub is there to be dialled


class Site(_Frozen):
    """One site of a plan.

    Attributes:
        name: its name.
        hubs: the hubs that it dials, in this order; all of the plan unless set.
    """

    name: Name
    hubs: list[Name] | None = None


class Certificates(_Frozen):
    """How certificates are made.

    Attributes:
        key: of all of them, the root too.
        days: how long a site's holds.
        root_days: how long a root's holds.
    """

    key: KeyKind = KeyKind.ECDSA_P256
    days: Days = 365
    root_days: Days = 3650


class Plan(_Frozen):
    """What a federation's TOML file says.

    Attributes:
        federation: the federation's name.
        hubs: at least one.
        sites: those that dial.
        certificates: how they are made.
    """

    federation: Name
    hubs: Annotated[list[Hub], Field(min_length=1)]
    sites: list[Site] = []
    certificates: Certificates = Certificates()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        hubs = [hub.name for hub in self.hubs]
        names = hubs + [site.name for site in self.sites]
        folded = [name.casefold() for name in names]
        for name in names:
            # Some file systems cannot hold both of two names that differ in case alone, and no reader tells them apart.
            if folded.count(name.casefold()) > 1:
                raise ValueError(f"the name {name} is there twice, if only in another case")
        for site in self.sites:
            for hub in site.hubs or []:
                if hub not in hubs:
                    raise ValueError(f"{site.name} dials {hub}, which is none of the hubs {', '.join(hubs)}")
        return self

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a plan from a TOML file.

        Raises:
            KitError: it cannot be read, or is no plan.
        """
        path = Path(path)
        try:
            return cls.model_validate(parse_toml(path, path.read_bytes(), fix="Mend it"))
        except OSError as exc:
            raise KitError(path, f"cannot be read: {exc.strerror}", "Name the federation's TOML file") from exc
        except ValidationError as exc:
            raise KitError(path, f"is refused: {first_fault(exc)}", "Mend it") from exc

    def roles(self) -> dict[str, Role]:
        """Return the role of each name."""
        return dict.fromkeys((hub.name for hub in self.hubs), Role.HUB) | dict.fromkeys(
            (site.name for site in self.sites), Role.SITE
        )
