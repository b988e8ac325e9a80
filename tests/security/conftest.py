from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from fanstream.security.provision import Certificates, Federation, Hub, Plan, Site


class Clock:
    """A wall clock that a test moves on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def plan(federation: str = "hospitals", *, sites: int = 2, **certificates: object) -> Plan:
    return Plan(
        federation=federation,
        hubs=[Hub(name="server", host="127.0.0.1", port=8102)],
        sites=[Site(name=f"site-{number + 1}") for number in range(sites)],
        certificates=Certificates.model_validate(certificates),
    )


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation.make(plan(), tmp_path_factory.mktemp("made") / "hospitals")


@pytest.fixture
def federation(made: Federation, tmp_path: Path) -> Federation:
    """A federation of a hub, `server`, and two sites; its folder is the test's own."""
    return Federation.open(shutil.copytree(made.folder, tmp_path / "hospitals"))
