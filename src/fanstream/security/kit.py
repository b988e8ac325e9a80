"""A site's kit: the folder that makes an engine a member of its federation.

::

    kit.toml          who the site is, where it listens or whom it dials, and settings of its engine
    certificate.pem   the site's certificate
    key.pem           its private key, mode 0600
    roots.pem         the federation's roots, the newest first
    revoked.pem       the roots' revocation lists
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Self, cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from ..arguments import check_site
from ..errors import IdentityError, KitError
from ..options import EngineSettings
from .authority import PrivateKey
from .files import parse_toml, read_checked
from .identity import Identity, Role, parsing
from .member import KitMember
from .tls import FederationContext, make_context
from .trust import Trust

_log = logging.getLogger(__name__)

SETTINGS: Final = "kit.toml"
CERTIFICATE: Final = "certificate.pem"
KEY: Final = "key.pem"
ROOTS: Final = "roots.pem"
REVOKED: Final = "revoked.pem"

_RENEW: Final = "Have the kit renewed (fanstream renew), and copy it again"
_AGAIN: Final = "Copy the whole kit again"
_WARNING: Final = 14 * 86_400.0  # seconds before the end at which a site is told to renew

Name = Annotated[str, AfterValidator(partial(check_site, argument="a name"))]


class KitSettings(BaseModel):
    """What ``kit.toml`` holds.

    Attributes:
        federation: the federation's name.
        name: the site's.
        role: hub or site.
        listen: a hub's addresses.
        connect: a site's hubs, tried in order; ``?name=`` says whose certificate has to answer.
        engine: settings of the engine; a relative path of a policy is one within the kit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    federation: Name
    name: Name
    role: Role
    listen: list[str] = []
    connect: list[str] = []
    engine: EngineSettings = EngineSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.role is Role.HUB and self.connect:
            raise ValueError("connect is set, but a hub's certificate cannot dial")
        if self.role is Role.SITE and self.listen:
            raise ValueError("listen is set, but a site's certificate cannot be dialled")
        return self


Stamps = tuple[tuple[int, int, int], ...]
"""Of each file: its inode, the time of its last change, its size."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A kit's files as they were at one moment."""

    stamps: Stamps
    identity: Identity
    certificate: x509.Certificate
    key: PrivateKey
    trust: Trust
    context: FederationContext


class Kit:
    """A kit that was loaded and checked: what makes an engine a member of its federation.

    An engine that has it looks after it: certificates, roots and revocation lists that are replaced in the folder are
    taken up while it runs; ``kit.toml`` is read once.

    Attributes:
        folder: where it is.
        settings: what its ``kit.toml`` says.
    """

    def __init__(self, folder: Path, settings: KitSettings, clock: Callable[[], float]) -> None:
        self.folder = folder
        self.settings = settings
        self._clock = clock
        self._paths = tuple(folder / name for name in (CERTIFICATE, KEY, ROOTS, REVOKED))
        self._loaded = self._load(self._stamps(), self._read_trust())

    @classmethod
    def load(cls, folder: str | Path, *, clock: Callable[[], float] = time.time) -> Self:
        """Load a kit.

        Args:
            folder: where it is.
            clock: returns seconds since 1970.

        Raises:
            KitError: a file is missing, broken, out of date, does not belong to the others, or is open to other users;
                the error says which, why, and what to do.
        """
        folder = Path(folder).absolute()
        if not folder.is_dir():
            raise KitError(folder, "is no folder", "Name the folder of a kit, as fanstream provision has made it")
        return cls(folder, _read_settings(folder / SETTINGS), clock)

    def __repr__(self) -> str:
        return f"<Kit of {self.identity.name}, a {self.identity.role} of {self.identity.federation}>"

    @property
    def identity(self) -> Identity:
        """Who this is."""
        return self._loaded.identity

    @property
    def certificate(self) -> x509.Certificate:
        """The site's certificate."""
        return self._loaded.certificate

    @property
    def key(self) -> PrivateKey:
        """The site's private key."""
        return self._loaded.key

    @property
    def trust(self) -> Trust:
        """The federation's roots, and what they have revoked."""
        return self._loaded.trust

    @property
    def context(self) -> FederationContext:
        """What TLS needs: to listen at a hub, to dial at a site. Another one after each change."""
        return self._loaded.context

    @property
    def member(self) -> KitMember:
        """This site as sealed streams see it now."""
        loaded = self._loaded
        return KitMember(loaded.identity, loaded.certificate, loaded.key, lambda: self.trust)

    def changed(self) -> bool:
        """Whether a file has changed since it was loaded."""
        return self._stamps() != self._loaded.stamps

    def reload(self) -> None:
        """Load the files again.

        Roots and revocation lists count even where the certificate or the key cannot be used; of all that cannot be,
        what was loaded before stays in use.

        Raises:
            KitError: as from :meth:`load`; or the name is another, or a revocation list is older than the one before.
        """
        stamps, before = self._stamps(), self._loaded
        trust = self._read_trust()
        try:
            before.trust.check_successor(trust)
        except ValueError as exc:
            raise KitError(self.folder / REVOKED, str(exc), "Copy the newest revoked.pem") from exc
        before.context.trust = trust
        self._loaded = replace(before, trust=trust)
        self._loaded = self._load(stamps, trust)

    def check(self, peer: Identity) -> None:
        """Check that a peer that was accepted before still is.

        Raises:
            IdentityError: its certificate has expired, is revoked, or its root is no longer trusted.
        """
        self._loaded.trust.check(peer, now=self._clock())

    # --- reading ---

    def _stamps(self) -> Stamps:
        stamps = []
        for path in self._paths:
            try:
                status = path.stat()
            except OSError:
                stamps.append((0, 0, 0))
            else:
                stamps.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(stamps)

    def _read_trust(self) -> Trust:
        _certificate, _key, roots_path, revoked_path = self._paths
        roots, revoked = read_checked(roots_path), read_checked(revoked_path)
        try:
            return Trust.read(self.settings.federation, roots, revoked)
        except ValueError as exc:
            raise KitError(roots_path, f"is not usable with {revoked_path.name}: {exc}", _AGAIN) from exc

    def _load(self, stamps: Stamps, trust: Trust) -> _Loaded:
        certificate_path, key_path, _roots, _revoked = self._paths
        certificate = _read_certificate(certificate_path)
        key = _read_key(key_path)
        if key.public_key() != certificate.public_key():
            raise KitError(key_path, f"does not belong to {certificate_path.name}", "Copy both files of the same kit")
        identity = self._identify(certificate, trust)
        try:
            context = make_context(identity.role, certificate_path, key_path, trust, self._clock)
        except (ValueError, OSError) as exc:  # those of ssl are errors of the system
            raise KitError(certificate_path, f"cannot be used for TLS: {exc}", _RENEW) from exc
        if self._stamps() != stamps:  # OpenSSL reads the files itself, and they must be those that were checked
            raise KitError(self.folder, "was changed while it was read", "Load it again")
        left = identity.not_after - self._clock()
        if left < _WARNING:
            _log.warning("%s: the certificate expires in %.1f days. %s", self.folder, left / 86_400, _RENEW)
        return _Loaded(stamps, identity, certificate, key, trust, context)

    def _identify(self, certificate: x509.Certificate, trust: Trust) -> Identity:
        path, settings = self.folder / CERTIFICATE, self.settings
        try:
            identity = trust.identify(certificate, now=self._clock())
        except IdentityError as exc:
            fix = {
                "untrusted": f"Copy {CERTIFICATE}, {KEY} and {ROOTS} of the same kit",
                "not-yet-valid": "Set this machine's clock",
            }
            raise KitError(path, f"is refused: {exc}", fix.get(exc.code, _RENEW)) from exc
        if (identity.name, identity.role) != (settings.name, settings.role):
            raise KitError(
                path,
                f"is that of the {identity.role} {identity.name}, and {SETTINGS} is that of the {settings.role} "
                f"{settings.name}",
                _AGAIN,
            )
        return identity


def _read_settings(path: Path) -> KitSettings:
    data = parse_toml(path, read_checked(path))
    try:
        settings = KitSettings.model_validate(data)
    except ValidationError as exc:
        raise KitError(path, f"is refused: {first_fault(exc)}", "Mend it, or copy it again") from exc
    policy = settings.engine.policy
    if not isinstance(policy, Path):
        return settings
    engine = settings.engine.model_copy(update={"policy": path.parent / policy})
    return settings.model_copy(update={"engine": engine})


def first_fault(exc: ValidationError) -> str:
    """Tell of the first thing that a model refused."""
    error = exc.errors()[0]
    where = ".".join(str(part) for part in error["loc"])
    return f"{where}: {error['msg']}" if where else error["msg"]


def _read_certificate(path: Path) -> x509.Certificate:
    data = read_checked(path)
    try:
        with parsing():
            found = x509.load_pem_x509_certificates(data)
            for certificate in found:
                certificate.public_key()
    except ValueError as exc:
        raise KitError(path, f"is no certificate in PEM: {exc}", _AGAIN) from exc
    if len(found) != 1:
        raise KitError(path, f"holds {len(found)} certificates, expected one", _AGAIN)
    return found[0]


def _read_key(path: Path) -> PrivateKey:
    data = read_checked(path, secret=True)
    try:
        key: Any = load_pem_private_key(data, None)
    except TypeError as exc:
        raise KitError(path, "is encrypted", "Store it unencrypted with mode 0600, on an encrypted disk") from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        # What it holds is not told: the text of some errors quotes it.
        raise KitError(path, "is no private key in PEM", _AGAIN) from exc
    return cast("PrivateKey", key)
