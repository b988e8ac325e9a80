"""The files of a kit: read with their permissions checked, and written so that they are whole or not there."""

from __future__ import annotations

import os
import stat
import tempfile
import tomllib
from pathlib import Path
from typing import Any, Final

from ..errors import KitError

_LARGEST: Final = 1024 * 1024  # bytes: a kit's files have a few thousand
_AT_ONCE: Final = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe without a writer never opens
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def read_checked(path: Path, *, secret: bool = False, again: str = "Copy the whole kit again") -> bytes:
    """Read a file that nobody else may change; and, where it is secret, that nobody else may read.

    Args:
        path: the file.
        secret: whether others may not even read it.
        again: what to do where the file is not the one that it should be.

    Raises:
        KitError: it is not there, is too long, or is open to others.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _AT_ONCE)
        try:
            _check_access(path, os.fstat(descriptor), secret=secret, again=again)
            data = os.read(descriptor, _LARGEST + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError as exc:
        raise KitError(path, "is not there", again) from exc
    except OSError as exc:
        raise KitError(path, f"cannot be read: {exc.strerror}", "Let the engine's user read it") from exc
    if len(data) > _LARGEST:
        raise KitError(path, f"has more than {_LARGEST} bytes", again)
    return data


def parse_toml(path: Path, data: bytes, *, fix: str = "Mend it, or copy it again") -> dict[str, Any]:
    """Parse what a file holds.

    Args:
        path: the file.
        data: its content.
        fix: what to do where it cannot be parsed.

    Raises:
        KitError: it is no TOML in UTF-8, or nested too deeply.
    """
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as exc:
        raise KitError(path, "is no text in UTF-8", fix) from exc
    except RecursionError as exc:
        raise KitError(path, "is nested too deeply", fix) from exc
    except ValueError as exc:  # also what Python says of a number with thousands of digits
        raise KitError(path, f"is no TOML: {exc}", fix) from exc


def _check_access(path: Path, status: os.stat_result, *, secret: bool, again: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KitError(path, "is no regular file", again)
    if os.name != "posix":  # elsewhere the mode says nothing
        return
    if status.st_uid not in (os.geteuid(), 0):
        raise KitError(
            path,
            f"belongs to user {status.st_uid}, and the engine runs as {os.geteuid()}",
            f"Run: chown {os.geteuid()} {path}",
        )
    mode = stat.S_IMODE(status.st_mode)
    if secret and mode & _OTHERS:
        raise KitError(path, f"has mode {mode:04o}, and other users may use it", f"Run: chmod 600 {path}")
    if mode & _OTHERS_WRITE:
        raise KitError(path, f"has mode {mode:04o}, and other users may change it", f"Run: chmod go-w {path}")


def write_whole(path: Path, data: bytes, *, secret: bool = False) -> None:
    """Replace a file in one step: its reader finds the old content or the new.

    Args:
        path: where; its folder has to be there.
        data: all of it.
        secret: whether only this user may read it.

    Raises:
        OSError: the system refuses.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # of mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not secret:
            Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
