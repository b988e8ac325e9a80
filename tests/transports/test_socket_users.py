"""T1: a Unix socket is for one user's processes alone, even where its mode lets others in."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from fanstream import StreamEngine
from fanstream.errors import SecurityError

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(
        os.name != "posix" or os.geteuid() != 0 or not hasattr(socket, "SO_PEERCRED"),
        reason="needs to act as two users, and a system that tells who is at the other end",
    ),
]

NOBODY = 65534
CALL = f"""
import os, socket, sys
os.setuid({NOBODY})  # and not before Python has started, which that user need not be allowed to
with socket.socket(socket.AF_UNIX) as sock:
    sock.settimeout(10)
    sock.connect(sys.argv[1])
    sys.stdout.buffer.write(sock.recv(1) or b"closed")
"""
LISTEN = f"""
import os, socket, sys
os.setuid({NOBODY})
with socket.socket(socket.AF_UNIX) as sock:
    sock.bind(sys.argv[1])
    os.chmod(sys.argv[1], 0o666)
    sock.listen()
    print("listening", flush=True)
    while True:
        peer, _ = sock.accept()
        print(len(peer.recv(1000)), flush=True)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that another user may use; and short, for a socket's path may have about 100 characters."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o777)
        yield Path(path)


async def test_another_user_is_turned_away_whatever_the_mode_says(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "s"
    async with StreamEngine("server", listen=f"unix://{path}") as server:
        path.chmod(0o666)  # somebody was helpful
        with anyio.fail_after(20):
            called = await anyio.run_process([sys.executable, "-c", CALL, str(path)])
            assert called.stdout == b"closed"
            async with StreamEngine("site-1", connect=f"unix://{path}"):
                await server.wait_for_sites(["site-1"])
    assert f"the other end runs as user {NOBODY}, this one as 0" in caplog.text


async def test_a_socket_that_another_user_has_put_there_is_not_used(folder: Path) -> None:
    path = folder / "s"
    async with await anyio.open_process([sys.executable, "-c", LISTEN, str(path)]) as squatter:
        assert squatter.stdout is not None
        heard = BufferedByteReceiveStream(squatter.stdout)
        try:
            assert await heard.receive_until(b"\n", 100) == b"listening"
            with anyio.fail_after(20):
                async with StreamEngine("site-1", connect=f"unix://{path}") as site:
                    with pytest.raises(SecurityError, match=f"runs as user {NOBODY}, this one as 0"):
                        await site.wait_for_sites(["server"])
                    assert await heard.receive_until(b"\n", 100) == b"0", "it heard nothing"
        finally:
            squatter.kill()
