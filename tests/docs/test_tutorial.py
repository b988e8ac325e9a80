"""What the tutorial prints is what it says, and its two scripts find each other."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.docs.pages import find_blocks, run_blocks

PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "first-stream.md"


def shown() -> str:
    """What the page says that its blocks print."""
    return "".join(re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


def test_the_first_stream_prints_what_the_page_shows() -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_blocks(find_blocks(PAGE.read_text(encoding="utf-8")), str(PAGE))
    assert printed.getvalue() == shown()


def test_the_two_scripts_find_each_other(tmp_path: Path) -> None:
    sources = [block.source for block in find_blocks(PAGE.read_text(encoding="utf-8")) if block.left_out]
    # Not tmp_path, for a socket's path may have about 100 characters; and not the page's port, which may be taken.
    with tempfile.TemporaryDirectory() as folder:
        for name, source in zip(("server.py", "site_1.py"), sources, strict=True):
            assert source.count("tcp://127.0.0.1:8102") == 1
            (tmp_path / name).write_text(source.replace("tcp://127.0.0.1:8102", f"unix://{folder}/s"))
        with subprocess.Popen([sys.executable, "site_1.py"], cwd=tmp_path) as site:
            try:
                server = subprocess.run(
                    [sys.executable, "server.py"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True
                )
            finally:
                site.kill()
    first = shown().partition("OK ")[0]
    assert server.stdout == f"waiting for site-1\n{first}OK {{'replied': 3}}\n"
