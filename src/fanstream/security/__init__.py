"""Identity between the sites of a federation: kits, whom they trust, how they are made. Needs ``fanstream[security]``.

``provision`` makes kits, ``Kit.load`` checks one, and ``StreamEngine(..., identity=kit)`` takes it.
"""

from __future__ import annotations

try:
    import cryptography as _cryptography  # noqa: F401 - said here once, rather than wherever it is first missing
except ImportError as exc:
    raise ImportError("fanstream.security needs cryptography: pip install 'fanstream[security]'") from exc

from .authority import Authority, Issued, KeyKind
from .identity import Identity, Role
from .kit import Kit, KitSettings
from .policy import Policy
from .trust import Trust

__all__ = ["Authority", "Identity", "Issued", "KeyKind", "Kit", "KitSettings", "Policy", "Role", "Trust"]
