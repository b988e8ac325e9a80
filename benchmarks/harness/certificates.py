"""Certificates for a run over TLS: a script makes them, and its processes find them through an environment variable."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

_VARIABLE: Final = "FANSTREAM_BENCH_CERTIFICATES"


@contextmanager
def certificates() -> Iterator[dict[str, str]]:
    """Issue a certificate for 127.0.0.1, which every process of the run shows, in a folder that is gone afterwards.

    Yields:
        The environment variable that tells a process where they are.
    """
    import trustme  # the processes that only read them do without

    authority = trustme.CA()
    with TemporaryDirectory() as folder:
        authority.cert_pem.write_to_path(Path(folder) / "authority.pem")
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(Path(folder) / "own.pem")
        yield {_VARIABLE: folder}


def context(purpose: ssl.Purpose) -> ssl.SSLContext:
    """TLS 1.3 with OpenSSL's own choice of cipher, where both sides show their certificate.

    Args:
        purpose: ``CLIENT_AUTH`` for the side that listens, ``SERVER_AUTH`` for the one that connects.
    """
    folder = Path(os.environ[_VARIABLE])
    made = ssl.create_default_context(purpose, cafile=str(folder / "authority.pem"))
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_cert_chain(folder / "own.pem")
    return made
