"""What does a file of 20 GiB cost in memory, at either end?

``stream_file`` to one site over TCP, which ``register_files`` has written to disk, checked and synchronised before it
answers; the opener and the site are processes of their own. The source is sparse, so reading it costs no disk; what
arrives does, in --directory, and is removed. Growth is the peak of each process during the stream less what it held
before, after a file of a few MiB has warmed it up; the kernel's page cache is not counted. The rate is one of hashing
and of the disk as much as of the wire.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import anyio.to_thread

from fanstream import FLContext, StreamContext, StreamEngine, StreamOptions
from fanstream.streamers import ReceivedFile, register_files, stream_file

from .harness.figures import GIB, MIB, add_loops, arguments, loops, say
from .harness.teams import START_TIMEOUT, Worker
from .harness.usage import Meter
from .peers.__main__ import claim_output
from .peers.fanstream import CHANNEL, TOPIC, site_name

WARM = 8 * MIB


async def be_site(address: str, directory: Path, size: int) -> None:
    """Receive files until standard input closes; say of each how large it was."""
    say_line = claim_output()

    def take(file: ReceivedFile, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        on_disk = file.path.stat().st_size
        file.path.unlink()
        say_line({"size": file.size, "on_disk": on_disk})

    async with StreamEngine(site_name(0), connect=address) as engine:
        register_files(engine, CHANNEL, TOPIC, directory, take, max_size=size)
        await engine.wait_for_sites(["server"])
        say_line({"ready": True})
        await anyio.to_thread.run_sync(sys.stdin.read)


async def send(engine: StreamEngine, site: Worker, path: Path, size: int, options: argparse.Namespace) -> float:
    """Stream one file of *size* bytes; return the seconds that it took.

    Raises:
        RuntimeError: it did not arrive.
    """
    started = time.perf_counter()
    result, _ = await stream_file(
        engine, CHANNEL, TOPIC, [site_name(0)], path, engine.new_context(), chunk_size=options.chunk,
        digest=options.digest, timeout=600, options=StreamOptions(window=options.window, end_timeout=600),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    if not result.complete:
        raise RuntimeError(f"the stream ended {result.rc}: {result.sites}")
    if (heard := await anyio.to_thread.run_sync(site.hear, START_TIMEOUT)) != {"size": size, "on_disk": size}:
        raise RuntimeError(f"of {size} bytes there arrived {heard}")
    return seconds


async def measure(loop: str, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Memory of both ends, and the rate."""
    async with StreamEngine("server", listen="tcp://127.0.0.1:0") as engine:
        arguments = [
            f"--connect={engine.addresses[0]}", f"--directory={directory}", f"--size={options.size}", f"--loop={loop}"
        ]  # fmt: skip
        with closing(Worker("benchmarks.huge_file", *arguments)) as site:
            await anyio.to_thread.run_sync(site.hear, START_TIMEOUT)
            meters = {"opener": Meter(os.getpid()), "site": site.meter}
            await send(engine, site, sparse(directory / "warm", WARM), WARM, options)
            before = {name: meter.resident() for name, meter in meters.items()}
            cpu = {name: meter.cpu() for name, meter in meters.items()}
            for meter in meters.values():
                meter.reset_peak()
            seconds = await send(engine, site, sparse(directory / "huge", options.size), options.size, options)
            gib = options.size / GIB
            return {
                "gib": round(gib, 3),
                "loop": loop,
                "window": options.window,
                "chunk_mib": round(options.chunk / MIB, 2),
                "digest": options.digest,
                **{f"{name}_growth_mib": round((meters[name].peak() - before[name]) / MIB, 1) for name in meters},
                "gb_per_s": round(options.size / seconds / 1e9, 3),
                "cpu_s_per_gib": {name: round((meters[name].cpu() - cpu[name]) / gib, 3) for name in meters},
            }


def sparse(path: Path, size: int) -> Path:
    """Make a file of so many bytes that takes no room."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def main() -> None:
    parser = arguments(__doc__)
    add_loops(parser)
    parser.add_argument("--size", type=int, default=20 * GIB, help="bytes of the file")
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=MIB, help="bytes of one object")
    parser.add_argument("--digest", choices=("blake2b", "xxh3"), default="blake2b")
    parser.add_argument("--directory", type=Path, help="where the file arrives; the system's own by default")
    parser.add_argument("--connect", help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = options.loops or loops()[-1:]
    if options.connect:
        backend = {"use_uvloop": chosen == ["uvloop"]}
        anyio.run(be_site, options.connect, options.directory, options.size, backend_options=backend)
        return
    if options.quick:
        options.size = 16 * MIB
    rows = []
    for loop in chosen:
        with TemporaryDirectory(dir=options.directory) as folder:
            if (free := shutil.disk_usage(folder).free) < options.size + GIB:
                sys.exit(f"{folder} has {free / GIB:.1f} GiB free, expected {options.size / GIB:.1f} and 1 more")
            rows.append(
                anyio.run(measure, loop, options, Path(folder), backend_options={"use_uvloop": loop == "uvloop"})
            )
    options.directory = str(options.directory or "")
    say("huge_file", options, rows)


if __name__ == "__main__":
    main()
