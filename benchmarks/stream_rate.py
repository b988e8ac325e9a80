"""How fast is a stream over TCP on loopback, against a raw socket in the same run?

``python -m benchmarks.stream_rate`` prints one JSON line: rates of 1 MiB arrays (window 16, 1 and 4 sites) with their
ratio to a raw socket's, 100-byte objects per second (window 1 and 64), and the peak memory of both sides. Each site is
a process of its own; runs of the raw socket and of the engine alternate, and the medians are quoted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

import anyio
import numpy as np

from fanstream import FLContext, ObjectProducer, Shareable, StreamContext, StreamEngine, StreamOptions, make_reply

MIB = 1024 * 1024


class Repeat(ObjectProducer):
    """Sends one object a number of times, and insists on every reply."""

    def __init__(self, obj: Shareable, count: int) -> None:
        self._obj = obj
        self._left = count

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, float]:
        if self._left == 0:
            return None, 0
        self._left -= 1
        return self._obj, 60.0

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        if any(reply.get_return_code() != "OK" for reply in replies.values()):
            return False
        return None


async def site(name: str, address: str) -> None:
    """Run one site until its standard input closes."""
    async with StreamEngine(name, connect=address) as engine:

        @engine.consumer("bench", "data")
        async def take(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
            pass

        @engine.consumer("bench", "memory")
        async def memory(shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Shareable:
            reply = make_reply("OK")
            reply["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return reply

        await anyio.to_thread.run_sync(sys.stdin.read)


def raw_rate(sites: int, size: int) -> float:
    """Return the bytes per second that blocking sockets move to *sites* processes in all."""
    script = (
        "import socket,sys\ns=socket.create_connection(('127.0.0.1',int(sys.argv[1])))\nb=bytearray(1<<20)\nn=0\n"
        "t=int(sys.argv[2])\nwhile n<t:\n n+=s.recv_into(b)\ns.sendall(b'k')\ns.recv(1)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", script, str(server.getsockname()[1]), str(size)]
        processes = [subprocess.Popen(command) for _ in range(sites)]
        connections = [server.accept()[0] for _ in processes]
        block = bytes(MIB)

        def send(connection: socket.socket) -> None:
            for _ in range(size // MIB):
                connection.sendall(block)
            connection.recv(1)

        threads = [threading.Thread(target=send, args=(connection,)) for connection in connections]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        for connection in connections:
            connection.close()
        for process in processes:
            process.wait()
    return sites * size / seconds


async def stream_rate(engine: StreamEngine, names: list[str], obj: Shareable, count: int, window: int) -> float:
    """Return the objects per second of one stream to some sites."""
    context = engine.new_context()
    started = time.perf_counter()
    result = await engine.stream_objects(
        "bench", "data", {}, names, Repeat(obj, count), context, options=StreamOptions(window=window)
    )
    seconds = time.perf_counter() - started
    if not result.complete:
        raise RuntimeError(f"the stream ended {result.rc}: {result.outcomes}")
    return count / seconds


def start(commands: list[list[str]]) -> list[subprocess.Popen[bytes]]:
    """Start processes that live until their standard input closes."""
    return [subprocess.Popen(command, stdin=subprocess.PIPE) for command in commands]


async def measure(quick: bool) -> dict[str, Any]:
    """Measure everything once."""
    rounds, count, small = (1, 8, 200) if quick else (5, 512, 20_000)
    names = [f"site-{index + 1}" for index in range(4)]
    figures: dict[str, list[float]] = {}
    async with StreamEngine("server", listen="tcp://127.0.0.1:0") as engine:
        command = [sys.executable, "-m", "benchmarks.stream_rate", "--connect", engine.addresses[0], "--site"]
        processes = start([[*command, name] for name in names])
        try:
            with anyio.fail_after(60):
                await engine.wait_for_sites(names)
            large = Shareable({"w": np.ones(MIB // 4, np.float32)})
            tiny = Shareable({"x": b"x" * 100})
            for _ in range(rounds):
                for sites in (1, 4):
                    raw = await anyio.to_thread.run_sync(raw_rate, sites, count * MIB // sites)
                    rate = await stream_rate(engine, names[:sites], large, count // sites, 16) * sites * MIB
                    figures.setdefault(f"large_{sites}_sites_gb_s", []).append(rate / 1e9)
                    figures.setdefault(f"large_{sites}_sites_of_raw", []).append(rate / raw)
                for window in (1, 64):
                    rate = await stream_rate(engine, names[:1], tiny, small, window)
                    figures.setdefault(f"small_window_{window}_per_s", []).append(rate)
                rate = await stream_rate(engine, names, tiny, small, 64) * len(names)
                figures.setdefault("small_window_64_4_sites_replies_per_s", []).append(rate)
            async with engine.open_stream("bench", "memory", names) as stream:
                replies = await stream.send(Shareable(), timeout=10)
            peaks = [reply["rss"] / 1024 for reply in replies.values()]
        finally:
            for process in processes:
                if process.stdin is not None:
                    process.stdin.close()
            for process in processes:
                process.wait()
    spread = {
        name: {"median": statistics.median(runs), "min": min(runs), "max": max(runs)} for name, runs in figures.items()
    }
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "figures": spread,
        "rounds": rounds,
        "peak_mib": {"server": own, "largest_site": max(peaks)},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run that only shows that it works")
    parser.add_argument("--site", help="run as this site")
    parser.add_argument("--connect", help="the server's address")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    options = parser.parse_args()
    backend = {"use_uvloop": options.loop == "uvloop"}
    if options.site:
        anyio.run(site, options.site, options.connect, backend_options=backend)
        return
    print(json.dumps(anyio.run(measure, options.quick, backend_options=backend)))


if __name__ == "__main__":
    main()
