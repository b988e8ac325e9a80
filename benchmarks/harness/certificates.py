"""A federation for a run over TLS: a script makes it, and its processes find their kits through a variable."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

_VARIABLE: Final = "FANSTREAM_BENCH_KITS"


@contextmanager
def certificates(sites: int) -> Iterator[dict[str, str]]:
    """Make kits for ``server`` and ``site-1`` to ``site-<sites>``, in a folder that is gone afterwards.

    Yields:
        The environment variable that tells a process where they are.
    """
    from fanstream.security.provision import Federation, Hub, Plan, Site  # processes that only read them do without

    hub = Hub(name="server", host="127.0.0.1", port=1)  # engines are told the address that was bound
    plan = Plan(federation="bench", hubs=[hub], sites=[Site(name=f"site-{number + 1}") for number in range(sites)])
    with TemporaryDirectory() as folder:
        yield {_VARIABLE: str(Federation.make(plan, Path(folder) / "bench").folder / "kits")}


def kit(name: str) -> Path:
    """Return the folder of a site's kit."""
    return Path(os.environ[_VARIABLE]) / name


def context(purpose: ssl.Purpose) -> ssl.SSLContext:
    """TLS 1.3 with OpenSSL's own choice of cipher, where both sides show their certificate.

    Args:
        purpose: ``CLIENT_AUTH`` for the side that listens, ``SERVER_AUTH`` for the one that connects.
    """
    folder = kit("server" if purpose is ssl.Purpose.CLIENT_AUTH else "site-1")
    made = ssl.create_default_context(purpose, cafile=str(folder / "roots.pem"))
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False  # the certificates name sites, and no hosts
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return made
