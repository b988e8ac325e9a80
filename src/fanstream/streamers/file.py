"""A file in chunks; its size and BLAKE2b digest are checked at the end, and the receiver names the copy itself."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import anyio
import anyio.to_thread

from ..adapters import call
from ..context import FLContext, StreamContext
from ..engine import StreamEngine
from ..options import GIB, MIB, StreamOptions
from ..shareable import ReturnCode, Shareable, make_reply
from ..streaming import ConsumerFactory, ObjectConsumer, ObjectProducer, Registration, StreamResult, Timeout
from .entries import DEFAULT_OPTIONS

_LABEL: Final = 255  # characters of a sender's name; what most file systems allow
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """A file that has arrived whole.

    Attributes:
        path: where it is, under a random name.
        label: what the sender calls it: for people to read, never a path.
        size: in bytes.
        digest: BLAKE2b, 32 bytes.
    """

    path: Path
    label: str
    size: int
    digest: bytes


class FileProducer(ObjectProducer):
    """Sends an open file: its label and size, its chunks, its digest. Reads in worker threads."""

    def __init__(self, file: BinaryIO, label: str, chunk_size: int, timeout: Timeout) -> None:
        self._file = file
        self._label = label
        self._chunk_size = chunk_size
        self._timeout = timeout
        self._hash = hashlib.blake2b(digest_size=32)
        self._size = 0
        self._state = "begin"

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, Timeout]:
        if self._state == "end":
            return None, 0
        if self._state == "begin":
            self._state = "chunks"
            size = os.fstat(self._file.fileno()).st_size
            return Shareable({"part": "begin", "label": self._label, "size": size}), self._timeout
        chunk = await anyio.to_thread.run_sync(self._read)
        if chunk:
            return Shareable({"part": "chunk", "data": chunk}), self._timeout
        self._state = "end"
        return Shareable({"part": "end", "size": self._size, "digest": self._hash.digest()}), self._timeout

    def _read(self) -> bytes:
        chunk = self._file.read(self._chunk_size)
        self._hash.update(chunk)
        self._size += len(chunk)
        return chunk

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        return None


class _BadFileError(Exception):
    """What arrived is no file, or not the one that was announced."""


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
        self._hash = hashlib.blake2b(digest_size=32)
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
        if step != self._finish:
            return True, make_reply(ReturnCode.OK)
        reply = None
        if self._on_file is not None:
            received = ReceivedFile(self._directory / self._name, self._label, self._size, self._hash.digest())
            reply = await call(self._on_file, received, stream_ctx, fl_ctx, limiter=self._limiter)
        if reply is not None and not isinstance(reply, Shareable):
            raise TypeError(f"on_file returned {type(reply).__name__}, expected a Shareable or None")
        self._kept = True
        return True, make_reply(ReturnCode.OK) if reply is None else reply

    def _begin(self, part: Shareable) -> None:
        label, size = part.get("label"), part.get("size")
        if self._folder != -1 or not isinstance(label, str) or len(label) > _LABEL or type(size) is not int:
            raise _BadFileError("a second beginning, or one without a proper label and size")
        if not 0 <= size <= self._max_size:
            raise _BadFileError(f"a file of {size} bytes, at most {self._max_size} are accepted")
        self._label, self._announced = label, size
        self._folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
        os.rename(self._name, whole, src_dir_fd=self._folder, dst_dir_fd=self._folder)
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


class _FileFactory(ConsumerFactory):
    def __init__(self, make: Callable[[], FileConsumer]) -> None:
        self._make = make

    async def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        return self._make()


class FileStreamer:
    """Sends and receives files."""

    @staticmethod
    async def stream_file(
        engine: StreamEngine,
        channel: str,
        topic: str,
        targets: Sequence[str],
        path: str | os.PathLike[str],
        fl_ctx: FLContext,
        stream_ctx: StreamContext | None = None,
        *,
        chunk_size: int = MIB,
        timeout: Timeout = 60.0,  # noqa: ASYNC109 - a site's time for each object, not the call's
        options: StreamOptions | None = None,
    ) -> StreamResult:
        """Send one file to sites.

        Args:
            engine: the opener's.
            channel: the stream's channel.
            topic: its topic.
            targets: names of the sites.
            path: the file; its last part is the label that receivers see.
            fl_ctx: the opener's context.
            stream_ctx: reaches every receiver once.
            chunk_size: bytes per object; the last may be shorter.
            timeout: how long a site may take to answer one chunk.
            options: how the stream runs; a window of 8 when None.

        Raises:
            ValueError: *chunk_size* is less than 1.
            OSError: the file cannot be read.
        """
        if chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}, expected at least 1")
        context = {} if stream_ctx is None else stream_ctx
        file = await anyio.to_thread.run_sync(lambda: Path(path).open("rb"))  # noqa: SIM115 - closed below
        try:
            label = os.fsencode(Path(path).name).decode("utf-8", "replace")  # a name need not be UTF-8, a str is
            producer = FileProducer(file, label[:_LABEL], chunk_size, timeout)
            return await engine.stream_objects(
                channel, topic, context, targets, producer, fl_ctx, options=options or DEFAULT_OPTIONS
            )
        finally:
            file.close()

    @staticmethod
    def register_files(
        engine: StreamEngine,
        channel: str,
        topic: str,
        directory: str | os.PathLike[str],
        on_file: Callable[..., Any] | None = None,
        *,
        max_size: int = 16 * GIB,
    ) -> Registration:
        """Receive files into a directory, each under a random name.

        Args:
            engine: the receiving site's, running.
            channel: as in ``register_stream_processing``.
            topic: likewise.
            directory: where they go.
            on_file: called with ``(ReceivedFile, stream_ctx, fl_ctx)`` once a file is whole, sync (in a worker thread)
                or async; what it returns is the reply to the end, None means OK. If it fails, the file is removed.
            max_size: the largest file accepted, in bytes.
        """
        folder = Path(directory).resolve()
        return engine.register_stream_processing(
            channel, topic, _FileFactory(lambda: FileConsumer(folder, on_file, engine.limiter, max_size))
        )


stream_file = FileStreamer.stream_file
register_files = FileStreamer.register_files
