"""A file in chunks; its size and digest are checked at the end, and the receiver names the copy itself."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, Protocol, TypeGuard, get_args

import anyio
import anyio.to_thread
import xxhash

from ..adapters import call
from ..arguments import check_count, check_timeout
from ..context import FLContext, StreamContext
from ..engine import StreamEngine
from ..options import GIB, KIB, MIB, StreamOptions
from ..shareable import ReturnCode, Shareable, make_reply
from ..streaming import ObjectConsumer, Registration, StreamResult, Timeout
from .arguments import check_callback, check_engine, check_options
from .beneath import open_beneath, open_regular
from .whole import WholeFactory, WholeProducer, send_whole

_log = logging.getLogger(__name__)

Digest = Literal["blake2b", "xxh3"]
"""BLAKE2b of 32 bytes, which is also a name for the content; or XXH3 of 16, which is several times faster."""


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...

    def digest(self) -> bytes: ...


_HASHES: Final[Mapping[str, Callable[[], _Hash]]] = {
    "blake2b": partial(hashlib.blake2b, digest_size=32),
    "xxh3": xxhash.xxh3_128,
}
_LABEL: Final = 255  # characters of a sender's name; what most file systems allow
_ROOM: Final = KIB  # bytes of an object beside its chunk, generously
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


_NO_LINKS: Final = frozenset((errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS))  # as on FAT


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """A file that has arrived whole.

    Attributes:
        path: where it is, under a random name.
        label: what the sender calls it: for people to read, never a path.
        size: in bytes.
        algorithm: of the digest: ``"blake2b"`` or ``"xxh3"``.
        digest: of the content; 32 bytes of BLAKE2b, or 16 of XXH3.
    """

    path: Path
    label: str
    size: int
    algorithm: str
    digest: bytes


# --- The sender ---


class FileProducer(WholeProducer):
    """Sends an open file: its label and size, its chunks, its digest. Reads in worker threads.

    Args:
        file: open for reading, at its beginning.
        label: what receivers see as its name.
        chunk_size: bytes per object.
        digest: what checks the whole.
        timeout: how long a site may take to answer one object.
        withdraw: end the stream as soon as the last gather is complete, without waiting for sites outside a quorum.
    """

    def __init__(
        self, file: BinaryIO, label: str, chunk_size: int, digest: Digest, timeout: Timeout, *, withdraw: bool
    ) -> None:
        super().__init__(timeout, withdraw=withdraw)
        self._file = file
        self._label = label
        self._chunk_size = chunk_size
        self._algorithm = digest
        self._hash = _HASHES[digest]()
        self._stat = os.fstat(file.fileno())
        self._left = self._stat.st_size  # bytes
        self._begun = False

    async def part(self) -> tuple[Mapping[str, Any], bool]:
        if not self._begun:
            self._begun = True
            return {"part": "begin", "label": self._label, "size": self._left, "algorithm": self._algorithm}, False
        if chunk := await anyio.to_thread.run_sync(self._read):
            return {"part": "chunk", "data": chunk}, False
        return {"part": "end", "size": self._stat.st_size, "digest": self._hash.digest()}, True

    def _read(self) -> bytes:
        chunk = self._file.read(min(self._chunk_size, self._left))
        self._left -= len(chunk)
        self._hash.update(chunk)
        if not chunk:
            self._check_unchanged()
        return chunk

    def _check_unchanged(self) -> None:
        now, before = os.fstat(self._file.fileno()), self._stat
        same = (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        # Files of /proc have more to read than their size says.
        if self._left or not same or self._file.read(1):
            raise OSError(f"{self._label} of {before.st_size} bytes changed while it was sent: no site keeps it")


def _open(path: str | os.PathLike[str], root: str | os.PathLike[str] | None) -> BinaryIO:
    if root is None:
        return open(os.fspath(path), "rb", opener=open_regular)
    return os.fdopen(open_beneath(root, path), "rb")


async def stream_file(
    engine: StreamEngine,
    channel: str,
    topic: str,
    targets: Sequence[str],
    path: str | os.PathLike[str],
    fl_ctx: FLContext,
    stream_ctx: StreamContext | None = None,
    *,
    root: str | os.PathLike[str] | None = None,
    chunk_size: int = MIB,
    digest: Digest = "blake2b",
    timeout: Timeout = 60.0,  # noqa: ASYNC109 - a site's time for each object, not the call's
    optional: bool = False,
    secure: bool = False,
    options: StreamOptions | None = None,
) -> tuple[StreamResult, dict[str, Shareable]]:
    """Send one file to sites, a chunk in each object.

    *path* is a regular file, not to be changed while the stream runs; its last part is the label that receivers see.
    Where somebody else has named it, *root* is the directory that it may not leave: then *path* is relative to that,
    and leads through no symbolic link.
    *chunk_size* is in bytes, and every site's ``Limits.object`` has to have room for it. *digest* is how receivers
    check the whole: ``"blake2b"``, or ``"xxh3"``, which costs less time, but by which a file can be made to look like
    another. The other arguments, and what is returned, are as for all of ``fanstream.streamers``: its docstring tells.

    Raises:
        OSError: the file cannot be read, or changed while it was sent; no site keeps it.
    """
    check_engine(engine)
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path is {path!r} of type {type(path).__name__}, expected a str or a path")
    if root is not None and not isinstance(root, (str, os.PathLike)):
        raise TypeError(f"root is {root!r} of type {type(root).__name__}, expected a str, a path or None")
    limit = engine.settings.limits.object - _ROOM
    if check_count(chunk_size, "chunk_size", least=1) > limit:
        raise ValueError(f"chunk_size is {chunk_size}, expected at most {limit}: Limits.object less {_ROOM}")
    if digest not in get_args(Digest):
        raise ValueError(f"digest is {digest!r}, expected one of {', '.join(map(repr, get_args(Digest)))}")
    options = check_options(options)
    seconds = check_timeout(timeout)

    file = await anyio.to_thread.run_sync(_open, path, root)
    try:
        label = os.fsencode(Path(path).name).decode("utf-8", "replace")  # a name need not be UTF-8, a str is
        withdraw = options.gather != "all"
        producer = FileProducer(file, label[:_LABEL], chunk_size, digest, seconds, withdraw=withdraw)
        return await send_whole(
            engine, channel, topic, stream_ctx, targets, producer, fl_ctx, optional, secure, options
        )
    finally:
        file.close()


# --- The receiver ---


class _BadFileError(Exception):
    """What arrived is no file, or not the one that was announced."""


def _sender(fl_ctx: FLContext) -> str:
    peer = fl_ctx.get_peer_context()
    return "a site" if peer is None else peer.get_identity_name()


def _rename_to_new(old: str, new: str, folder: int) -> None:
    """Rename a file, and replace none.

    Raises:
        FileExistsError: there is a file of the new name.
    """
    try:
        os.link(old, new, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)  # nobody can foresee the name
    else:
        try:
            os.unlink(old, dir_fd=folder)
        except OSError:
            os.unlink(new, dir_fd=folder)
            raise


def _is_label(label: Any) -> TypeGuard[str]:
    if not isinstance(label, str) or len(label) > _LABEL:
        return False
    try:
        label.encode()
    except UnicodeEncodeError:  # a lone surrogate, on which whoever prints the label would fail
        return False
    return True


class FileConsumer(ObjectConsumer):
    """Writes one file, in worker threads, and removes it unless all of it arrived and was taken.

    Args:
        directory: where files go; what a symbolic link inside it points to is never followed.
        on_file: called with ``(ReceivedFile, stream_ctx, fl_ctx)``.
        limiter: for worker threads.
        max_size: the largest file accepted, in bytes.
    """

    def __init__(
        self, directory: Path, on_file: Callable[..., Any] | None, limiter: anyio.CapacityLimiter, max_size: int
    ) -> None:
        self._directory = directory
        self._on_file = on_file
        self._limiter = limiter
        self._max_size = max_size
        self._algorithm = ""
        self._hash: _Hash
        self._size = 0
        self._announced = 0
        self._label = ""
        self._folder = -1
        self._file = -1
        self._name = ""  # of what is to be removed if the file fails
        self._kept = False

    async def consume(
        self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> tuple[bool, Shareable]:
        steps = {"begin": self._begin, "chunk": self._write, "end": self._finish}
        try:
            step = steps.get(str(shareable.get("part")))
            if step is None or self._kept:
                raise _BadFileError("an object that is no part of a file")
            await anyio.to_thread.run_sync(step, shareable, limiter=self._limiter)
        except _BadFileError as exc:
            return False, make_reply(ReturnCode.BAD_REQUEST_DATA, {"reason": str(exc)})
        except OSError as exc:  # a full disk, a failing fsync: this file's matter (threat T21)
            _log.warning("a file from %s cannot be kept in %s: %s", _sender(fl_ctx), self._directory, exc)
            reason = f"the file cannot be kept here: {exc.strerror or type(exc).__name__}"  # without the path
            return False, make_reply(ReturnCode.EXECUTION_EXCEPTION, {"reason": reason})
        if step != self._finish:
            return True, make_reply(ReturnCode.OK)
        reply = None
        if self._on_file is not None:
            path = self._directory / self._name
            received = ReceivedFile(path, self._label, self._size, self._algorithm, self._hash.digest())
            reply = await call(self._on_file, received, stream_ctx, fl_ctx, limiter=self._limiter)
        if reply is not None and not isinstance(reply, Shareable):
            raise TypeError(f"on_file returned {type(reply).__name__}, expected a Shareable or None")
        self._kept = True
        return True, make_reply(ReturnCode.OK) if reply is None else reply

    def _begin(self, part: Shareable) -> None:
        label, size, algorithm = part.get("label"), part.get("size"), part.get("algorithm")
        if self._folder != -1 or not _is_label(label) or type(size) is not int:
            raise _BadFileError("a second beginning, or one without a proper label and size")
        if not isinstance(algorithm, str) or algorithm not in _HASHES:
            raise _BadFileError(f"a digest that is none of {', '.join(_HASHES)}")
        if not 0 <= size <= self._max_size:
            raise _BadFileError(f"a file of {size} bytes, at most {self._max_size} are accepted")
        self._label, self._announced = label, size
        self._algorithm, self._hash = algorithm, _HASHES[algorithm]()
        self._folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        name = secrets.token_hex(16) + ".part"
        self._file = os.open(name, _NEW, 0o600, dir_fd=self._folder)
        self._name = name

    def _write(self, part: Shareable) -> None:
        data = part.get("data")
        if self._file == -1 or not isinstance(data, (bytes, bytearray, memoryview)):
            raise _BadFileError("a chunk without data, or outside a file")
        view = memoryview(data).cast("B")
        self._size += len(view)
        if self._size > self._announced:
            raise _BadFileError(f"more than the {self._announced} bytes announced")
        self._hash.update(view)
        while view:
            view = view[os.write(self._file, view) :]

    def _finish(self, part: Shareable) -> None:
        if self._file == -1:
            raise _BadFileError("an end without a beginning")
        if not self._size == self._announced == part.get("size"):
            raise _BadFileError(f"{self._size} bytes came, {self._announced} were announced: did the file change?")
        digest = part.get("digest")
        if not isinstance(digest, bytes) or not secrets.compare_digest(digest, self._hash.digest()):
            raise _BadFileError("the digest of what came is not the digest of what was sent")
        os.fsync(self._file)
        whole = self._name.removesuffix(".part")
        _rename_to_new(self._name, whole, self._folder)
        self._name = whole
        os.fsync(self._folder)
        os.close(self._file)
        self._file = -1

    async def finalize(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        await anyio.to_thread.run_sync(self._clean_up, limiter=self._limiter)

    def _clean_up(self) -> None:
        if self._file != -1:
            os.close(self._file)
            self._file = -1
        if self._folder != -1:
            try:
                if self._name and not self._kept:
                    os.unlink(self._name, dir_fd=self._folder)
            except FileNotFoundError:  # on_file may have moved it
                pass
            finally:
                os.close(self._folder)
                self._folder = -1


def register_files(
    engine: StreamEngine,
    channel: str,
    topic: str,
    directory: str | os.PathLike[str],
    on_file: Callable[..., Any] | None = None,
    *,
    max_size: int = 64 * GIB,
) -> Registration:
    """Receive files into a directory, each under a random name and readable by its owner alone.

    *on_file* gets a :class:`ReceivedFile`; if it fails, the file is removed, and otherwise it stays until the
    application takes it. Files of more than *max_size* bytes are refused. The other arguments are as for all of
    ``fanstream.streamers``: its docstring tells.

    Raises:
        ValueError: *directory* is no directory that exists, or *max_size* is negative.
        NotImplementedError: this platform cannot open files relative to a directory, as Windows cannot.
    """
    check_engine(engine)
    if not isinstance(directory, (str, os.PathLike)):
        raise TypeError(f"directory is {directory!r} of type {type(directory).__name__}, expected a str or a path")
    if on_file is not None:
        check_callback(on_file, "on_file")
    check_count(max_size, "max_size")
    if not {os.link, os.open, os.rename, os.unlink} <= os.supports_dir_fd:
        raise NotImplementedError("files cannot be received on a platform that opens none relative to a directory")
    folder = Path(directory).resolve()  # once: whoever puts a link in its place later redirects nothing
    if not folder.is_dir():
        raise ValueError(f"directory is {os.fspath(directory)!r}, expected an existing directory")
    return engine.register_stream_processing(
        channel, topic, WholeFactory(lambda: FileConsumer(folder, on_file, engine.limiter, max_size))
    )
