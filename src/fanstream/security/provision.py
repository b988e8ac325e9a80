"""Making a federation: its root, and a kit for each hub and site; and keeping it: renewal, revocation, a new root.

::

    authority/                 stays where it was made, and is backed up
        plan.json              the plan
        root-<id>.key.pem      the roots' keys, mode 0600
        roots.pem              the roots that are trusted, the newest first; it issues
        revoked.pem            their revocation lists
        issued/<name>-<serial>.pem
    roots.pem, revoked.pem     copies, the same for all sites
    kits/<name>/               goes to the site, and need not stay here; see fanstream.security.kit
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from pydantic import ValidationError

from ..errors import KitError
from .authority import Authority, Issued
from .files import read_checked, write_whole
from .identity import Role, parsing, read_profile
from .kit import CERTIFICATE, KEY, REVOKED, ROOTS, SETTINGS, first_fault
from .plan import Certificates, Hub, Plan, Site
from .trust import Trust, read_roots

__all__ = ["Certificates", "Federation", "Hub", "Plan", "Site"]

_PLAN: Final = "plan.json"
_HEADER: Final = "# Written by fanstream provision. Read as the engine starts; the other files, whenever they change.\n"


class Federation:
    """The folder of a federation: its authority, and the kits to be copied to the sites.

    Each change is written into the kits here; which files have to be copied then is what the methods say.

    Attributes:
        folder: where it is.
        kits: its folder of kits, each under its site's name.
        plan: what it was made of.
    """

    def __init__(self, folder: Path, plan: Plan, clock: Callable[[], float]) -> None:
        self.folder = folder
        self.plan = plan
        self._clock = clock
        self._authority = folder / "authority"
        self.kits = folder / "kits"

    # --- making ---

    @classmethod
    def make(cls, plan: Plan, folder: str | Path, *, clock: Callable[[], float] = time.time) -> Self:
        """Make a federation; or bring one up to its plan: who is new gets a kit, and kits that are there stay.

        Args:
            plan: who belongs to it.
            folder: where; the folder that holds it has to be there.
            clock: returns seconds since 1970.

        Raises:
            KitError: the folder holds something else, or the plan contradicts what was made before.
            OSError: the system refuses to write.
        """
        folder = Path(folder).absolute()
        if (folder / "authority").exists():
            made = cls.open(folder, clock=clock)
            made._adopt(plan)
        elif folder.exists() and any(folder.iterdir()):
            raise KitError(folder, "is not empty, and holds no federation", "Name a new folder")
        else:
            made = cls(folder, plan, clock)
            made._found()
        made._complete()
        return made

    @classmethod
    def open(cls, folder: str | Path, *, clock: Callable[[], float] = time.time) -> Self:
        """Open a federation that was made before.

        Raises:
            KitError: there is none, or a file of it is broken.
        """
        folder = Path(folder).absolute()
        path = folder / "authority" / _PLAN
        try:
            plan = Plan.model_validate_json(read_checked(path))
        except ValidationError as exc:
            raise KitError(path, f"is refused: {first_fault(exc)}", "Restore it from a backup") from exc
        return cls(folder, plan, clock)

    def _found(self) -> None:
        """Make the authority, in one step."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".authority.", dir=self.folder) as scratch:
            draft = Path(scratch) / "authority"
            draft.mkdir(mode=0o700)
            (draft / "issued").mkdir(mode=0o700)
            root = self._make_root()
            self._store_root(draft, root)
            write_whole(draft / ROOTS, root.certificate_pem)
            write_whole(draft / REVOKED, root.revoke([], number=1, now=self._clock()))
            write_whole(draft / _PLAN, self.plan.model_dump_json(indent=1).encode())
            draft.rename(self._authority)

    def _adopt(self, plan: Plan) -> None:
        if plan.federation != self.plan.federation:
            raise KitError(
                self.folder,
                f"is that of the federation {self.plan.federation}, and the plan that of {plan.federation}",
                "Name another folder",
            )
        before = self.plan.roles()
        for name, role in plan.roles().items():
            if before.get(name, role) is not role:
                raise KitError(
                    self.folder, f"has {name} as a {before[name]}, and the plan as a {role}", "Choose another name"
                )
        self.plan = plan
        write_whole(self._authority / _PLAN, plan.model_dump_json(indent=1).encode())

    def _complete(self) -> None:
        """Make kits for those who never had one, and bring those that are here up to date."""
        self.kits.mkdir(mode=0o700, exist_ok=True)
        for shared in (ROOTS, REVOKED):
            self._share(shared, read_checked(self._authority / shared))
        for name, role in self.plan.roles().items():
            if (self.kits / name).exists():
                write_whole(self.kits / name / SETTINGS, self._settings(name, role))
            elif not self.issued(name):
                self._make_kit(self._issuer(), name, role)

    def _make_kit(self, issuer: Authority, name: str, role: Role) -> None:
        with tempfile.TemporaryDirectory(prefix=".kit.", dir=self.folder) as scratch:
            draft = Path(scratch) / name
            draft.mkdir(mode=0o700)
            write_whole(draft / SETTINGS, self._settings(name, role))
            self._issue(issuer, name, role, draft)
            for shared in (ROOTS, REVOKED):
                write_whole(draft / shared, read_checked(self._authority / shared))
            draft.rename(self.kits / name)

    def _settings(self, name: str, role: Role) -> bytes:
        lines = [_HEADER]
        facts: dict[str, Any] = {"federation": self.plan.federation, "name": name, "role": role.value}
        hubs = {hub.name: hub for hub in self.plan.hubs}
        if role is Role.HUB:
            facts["listen"] = [f"tls://{_bracketed(hubs[name].bind)}:{hubs[name].port}"]
        else:
            site = next(site for site in self.plan.sites if site.name == name)
            dialled = [hubs[hub] for hub in (hubs if site.hubs is None else site.hubs)]
            facts["connect"] = [f"tls://{_bracketed(hub.host)}:{hub.port}?name={hub.name}" for hub in dialled]
        # JSON's strings and arrays of ASCII text are TOML's too.
        lines += [f"{key} = {json.dumps(value)}\n" for key, value in facts.items()]
        lines += ["\n# [engine] takes what fanstream.EngineSettings takes, such as heartbeat = 7.0\n"]
        return "".join(lines).encode()

    # --- keeping ---

    def issued(self, name: str) -> list[x509.Certificate]:
        """Return all certificates that a name was ever issued, the oldest first."""
        paths = (self._authority / "issued").glob("*.pem")
        found = [x509.load_pem_x509_certificate(read_checked(path)) for path in paths]
        own = [certificate for certificate in found if read_profile(certificate)[1] == name]
        return sorted(own, key=lambda certificate: certificate.not_valid_after_utc)

    def renew(self, names: Iterable[str] | None = None) -> list[str]:
        """Issue new certificates, with new keys, from the newest root: of these names, or of all.

        ``certificate.pem`` and ``key.pem`` are to be copied; or the whole kit, which is made anew where it is not here.
        What was issued before stays valid until it expires.

        Returns:
            The names.

        Raises:
            KitError: a name is not in the plan.
        """
        roles = self.plan.roles()
        chosen = list(roles if names is None else names)
        for name in chosen:
            self._check_name(name)
        issuer = self._issuer()
        for name in chosen:
            if (self.kits / name).is_dir():
                self._issue(issuer, name, roles[name], self.kits / name)
            else:
                self._make_kit(issuer, name, roles[name])
        return chosen

    def _check_name(self, name: str) -> None:
        roles = self.plan.roles()
        if name not in roles and not self.issued(name):
            raise KitError(self.folder, f"has no {name}", f"There are {', '.join(sorted(roles))}")

    def revoke(self, names: Iterable[str]) -> int:
        """Revoke every certificate that these names were ever issued; ``renew`` then gives them new ones.

        ``revoked.pem`` is to be copied to every site and hub.

        Returns:
            The number of the new list.

        Raises:
            KitError: a name was never issued a certificate.
        """
        trust = self._trust()
        serials = {root: set(revoked) for root, revoked in trust.revoked.items()}
        for name in names:
            self._check_name(name)
            for certificate in self.issued(name):
                for root, trusted in trust.roots.items():
                    if certificate.issuer == trusted.subject:
                        serials[root].add(certificate.serial_number)
        return self._publish(trust, serials)

    def add_root(self) -> str:
        """Make a new root that is trusted beside the old: the first step of its replacement.

        ``roots.pem`` and ``revoked.pem`` are to be copied everywhere; then ``renew`` issues from the new root.

        Returns:
            The new root's name.
        """
        root = self._make_root()
        trust = self._trust()
        self._store_root(self._authority, root)
        lists = read_checked(self._authority / REVOKED) + root.revoke([], number=1, now=self._clock())
        roots = root.certificate_pem + read_checked(self._authority / ROOTS)
        # The list first: a root without its list is refused, and a list without its root is not looked at.
        self._share(REVOKED, lists)
        self._share(ROOTS, roots)
        assert len(self._trust().roots) == len(trust.roots) + 1
        return root.certificate.subject.rfc4514_string()

    def retire_roots(self) -> list[str]:
        """Trust the newest root alone: the last step. Their keys are deleted.

        ``roots.pem`` is to be copied everywhere, after new certificates are in use at every site and hub.

        Returns:
            The names of the roots that were retired.

        Raises:
            KitError: a name in the plan has no certificate from the newest root yet.
        """
        roots = list(self._trust().roots.values())
        newest, old = roots[0], roots[1:]
        for name in self.plan.roles():
            if all(certificate.issuer != newest.subject for certificate in self.issued(name)):
                raise KitError(self.folder, f"has no certificate of {name} from the newest root", "Renew it first")
        self._share(ROOTS, newest.public_bytes(Encoding.PEM))
        for root in old:
            self._key_path(self._authority, root).unlink(missing_ok=True)
        return [root.subject.rfc4514_string() for root in old]

    # --- parts ---

    def _make_root(self) -> Authority:
        certificates = self.plan.certificates
        return Authority.make(
            self.plan.federation,
            kind=certificates.key,
            lifetime=timedelta(days=certificates.root_days),
            now=self._clock(),
        )

    def _issue(self, issuer: Authority, name: str, role: Role, folder: Path) -> None:
        certificates = self.plan.certificates
        issued: Issued = issuer.issue(
            self.plan.federation,
            name,
            role,
            kind=certificates.key,
            lifetime=timedelta(days=certificates.days),
            now=self._clock(),
        )
        # On record before it is of any use, so that there is nothing that could not be revoked.
        serial = f"{issued.certificate.serial_number:x}"
        write_whole(self._authority / "issued" / f"{name}-{serial}.pem", issued.certificate_pem)
        write_whole(folder / KEY, issued.key_pem, secret=True)
        write_whole(folder / CERTIFICATE, issued.certificate_pem)

    def _publish(self, trust: Trust, serials: dict[str, set[int]]) -> int:
        number = max(trust.numbers.values()) + 1
        now = self._clock()
        lists = [
            self._load_root(trust.roots[root]).revoke(serials[root], number=number, now=now) for root in trust.roots
        ]
        self._share(REVOKED, b"".join(lists))
        return number

    def _share(self, name: str, data: bytes) -> None:
        """Write a file that is the same everywhere."""
        for folder in (self._authority, self.folder, *self.kits.glob("*")):
            write_whole(folder / name, data)

    def _trust(self) -> Trust:
        path = self._authority / ROOTS
        try:
            return Trust.read(self.plan.federation, read_checked(path), read_checked(self._authority / REVOKED))
        except ValueError as exc:
            raise KitError(path, f"is not usable: {exc}", "Restore the authority from a backup") from exc

    def _issuer(self) -> Authority:
        roots = read_roots(read_checked(self._authority / ROOTS))
        return self._load_root(next(iter(roots.values())))

    def _load_root(self, certificate: x509.Certificate) -> Authority:
        path = self._key_path(self._authority, certificate)
        try:
            with parsing():
                key: Any = load_pem_private_key(read_checked(path, secret=True), None)
        except (ValueError, TypeError) as exc:
            raise KitError(path, "is no private key in PEM", "Restore it from a backup") from exc
        if key.public_key() != certificate.public_key():
            raise KitError(path, "does not belong to its root", "Restore it from a backup")
        return Authority(certificate, key)

    def _store_root(self, folder: Path, root: Authority) -> None:
        write_whole(self._key_path(folder, root.certificate), root.key_pem, secret=True)

    @staticmethod
    def _key_path(folder: Path, root: x509.Certificate) -> Path:
        own = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return folder / f"root-{own.digest.hex()[:8]}.key.pem"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
