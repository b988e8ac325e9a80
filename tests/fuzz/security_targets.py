"""What is fuzzed of identity: certificates of peers, and the files that an engine is given by others.

Each function raises only what is a defect: what these may raise (a SecurityError, which KitError is too) is caught.
"""

from __future__ import annotations

import atexit
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fanstream.errors import KitError, SecurityError
from fanstream.security import Kit, Policy
from fanstream.security.authority import Authority, Issued, KeyKind
from fanstream.security.identity import Role, fingerprint, parsing
from fanstream.security.kit import CERTIFICATE, KEY, REVOKED, ROOTS, SETTINGS
from fanstream.security.member import KitMember
from fanstream.security.plan import Plan
from fanstream.security.policy import Party
from fanstream.security.provision import Federation
from fanstream.security.trust import Trust, read_lists, read_roots

KIT_FILES: Final = (SETTINGS, CERTIFICATE, KEY, ROOTS, REVOKED)
NOW: Final = 1_780_000_000.0
_PARTIES: Final = (Party("server", "hub"), Party("site-1", "site"), Party("x", "site"))


@cache
def scratch() -> Path:
    """Make a folder for this process's files."""
    folder = TemporaryDirectory(prefix="fanstream-fuzz-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def _kit() -> tuple[Path, Kit, dict[str, bytes]]:
    """A kit that is as it should be; what its files hold."""
    plan = Plan.model_validate(
        {"federation": "hospitals", "hubs": [{"name": "server", "host": "h", "port": 1}], "sites": [{"name": "site-1"}]}
    )
    folder = Federation.make(plan, scratch() / "federation").kits / "site-1"
    return folder, Kit.load(folder), {name: (folder / name).read_bytes() for name in KIT_FILES}


def _write(name: str, data: bytes) -> Path:
    path = scratch() / name
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def certificate(data: bytes) -> None:
    """A peer's certificate, and a root that may have issued it: two bytes of length, then both.

    Nothing is accepted that the root does not stand for.
    """
    size = int.from_bytes(data[:2], "big")
    shown, issuer = data[2 : 2 + size], data[2 + size :]
    with suppress(ValueError):
        with parsing():
            root = x509.load_der_x509_certificate(issuer)
        roots = read_roots(root.public_bytes(Encoding.PEM))
        (name,) = roots
        trust = Trust("hospitals", roots, {name: frozenset({7})}, {name: 1})
        _folder, kit, _files = _kit()
        member = KitMember(kit.identity, kit.certificate, kit.key, lambda: trust)
        with suppress(SecurityError):
            assert member.site_of([shown], NOW)
            found = x509.load_der_x509_certificate(shown)
            found.verify_directly_issued_by(root)
            assert found.serial_number != 7
            assert fingerprint(found) != name


def roots(data: bytes) -> None:
    """Roots and revocation lists in PEM, a zero byte between them."""
    first, _zero, second = data.partition(b"\0")
    with suppress(ValueError):
        read_roots(first)
    with suppress(ValueError):
        read_lists(second)
    with suppress(ValueError):
        trust = Trust.read("hospitals", first, second)
        assert trust.roots.keys() == trust.revoked.keys() == trust.numbers.keys()
        trust.check_successor(trust)


def kit(data: bytes) -> None:
    """A kit of which one file holds something else: the first byte says which."""
    folder, _loaded, files = _kit()
    name = KIT_FILES[data[0] % len(KIT_FILES)] if data else SETTINGS
    (folder / name).write_bytes(data[1:])
    try:
        with suppress(KitError):
            assert Kit.load(folder).identity.name == "site-1"
    finally:
        (folder / name).write_bytes(files[name])


def plan(data: bytes) -> None:
    """A federation's plan."""
    with suppress(KitError):
        assert Plan.read(_write("plan.toml", data)).roles()


def policy(data: bytes) -> None:
    """A policy: what was read judges whatever it is asked."""
    with suppress(KitError):
        found = Policy.load(_write("policy.toml", data))
        for opener in _PARTIES:
            for target in _PARTIES:
                assert found.judge_stream(opener, target, "models", "weights").reason
            assert found.judge_registration(opener, "models", "*").reason


def issued() -> tuple[Issued, list[Issued], bytes]:
    """A root, certificates that it has issued, and its list; for the corpus."""
    root = Authority.make("hospitals", kind=KeyKind.ED25519, lifetime=timedelta(days=36_000), now=NOW)
    sites = [
        root.issue("hospitals", name, role, kind=kind, lifetime=timedelta(days=36_000), now=NOW)
        for name, role, kind in (("site-1", Role.SITE, KeyKind.ED25519), ("server", Role.HUB, KeyKind.ECDSA_P256))
    ]
    return root, sites, root.revoke([7, 8], number=3, now=NOW)


TARGETS: Final = (certificate, roots, kit, plan, policy)
