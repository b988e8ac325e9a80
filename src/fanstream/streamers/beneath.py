"""Opening a file that somebody else has named: beneath one directory, and through no symbolic link (threat T20)."""

from __future__ import annotations

import os
import stat
from pathlib import PurePath


def open_regular(path: str, flags: int, *, folder: int | None = None) -> int:
    """Open a regular file, relative to an opened *folder* if there is one; return its descriptor.

    Raises:
        ValueError: it is none.
        OSError: it cannot be opened.
    """
    # Without O_NONBLOCK, opening a named pipe waits for its writer.
    file = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), dir_fd=folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise ValueError(f"path is {path!r}, expected a regular file")
    return file


def open_beneath(root: str | os.PathLike[str], path: str | os.PathLike[str]) -> int:
    """Open a regular file for reading; return its descriptor.

    Each directory on the way is opened from the one before, so that nobody can put a link in its place in between.

    Args:
        root: a directory; a link to one is followed, for it is not the peer that names it.
        path: relative to *root*, and not out of it.

    Raises:
        ValueError: *path* is absolute, has a part ``..``, or is no regular file.
        OSError: it cannot be opened, or leads through a symbolic link.
        NotImplementedError: this platform cannot open files relative to a directory, as Windows cannot.
    """
    if os.open not in os.supports_dir_fd:
        raise NotImplementedError("no file beneath a root can be opened on a platform that opens none relative to it")
    named = PurePath(path)
    if not named.parts or named.is_absolute() or ".." in named.parts:
        raise ValueError(f"path is {os.fspath(path)!r}, expected a relative one that does not leave its root")
    *folders, name = named.parts
    inside = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for step in folders:
            inner = os.open(step, inside | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = inner
        return open_regular(name, inside, folder=folder)
    finally:
        os.close(folder)
