"""Cryptographic primitives are called where they can be reviewed: in ``security/sealed``, and for certificates in
``security``; nowhere else.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "fanstream"
SECURITY = SOURCE / "security"
PRIMITIVES = {"cryptography", "blake3", "hmac", "nacl", "Crypto", "OpenSSL", "_hashlib"}
# hashlib makes checksums too: those of received files, which the sealed layer or TLS protects.
MAY_HASH = {SOURCE / "streamers" / "file.py"}
# What security's own certificate handling may use: X.509, keys and signatures; no cipher, no key derivation, no HPKE.
CERTIFICATES = (
    "cryptography",
    "cryptography.exceptions",
    "cryptography.x509",
    "cryptography.hazmat.primitives",
    "cryptography.hazmat.primitives.asymmetric",
    "cryptography.hazmat.primitives.hashes",
    "cryptography.hazmat.primitives.serialization",
)
NO_CERTIFICATE = {"ciphers", "hpke", "kdf", "hmac", "cmac", "poly1305", "mlkem", "x25519", "keywrap", "constant_time"}


def imports(source: str) -> Iterator[tuple[str, set[str]]]:
    """Each module that is imported absolutely, anywhere in the source, with the names taken from it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, set()
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module), {alias.name for alias in node.names}


def offences(path: Path, source: str) -> list[str]:
    found = []
    for module, names in imports(source):
        top = module.split(".")[0]
        if path.is_relative_to(SECURITY / "sealed"):
            continue
        if path.is_relative_to(SECURITY) and top == "cryptography":
            beyond = not any(module == known or module.startswith(f"{known}.") for known in CERTIFICATES)
            if beyond or NO_CERTIFICATE & (names | set(module.split("."))):
                found.append(f"{path.name}: {module} {sorted(names)}")
        elif top in PRIMITIVES or (top == "hashlib" and path not in MAY_HASH and not path.is_relative_to(SECURITY)):
            found.append(f"{path.name}: {module}")
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_other_module_calls_a_primitive(path: Path) -> None:
    assert offences(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("link.py", "from cryptography.hazmat.primitives.ciphers.aead import AESGCM"),
        ("link.py", "import hashlib"),
        ("codec/codec.py", "import hmac"),
        ("engine.py", "def f():\n    from blake3 import blake3"),
        ("security/identity.py", "from cryptography.hazmat.primitives.ciphers.aead import AESGCM"),
        ("security/identity.py", "from cryptography.hazmat.primitives import hpke"),
        ("security/identity.py", "from cryptography.hazmat.primitives.kdf.hkdf import HKDF"),
        ("security/identity.py", "import hmac"),
    ],
)
def test_the_check_sees_a_call(where: str, line: str) -> None:
    assert offences(SOURCE / where, line)
