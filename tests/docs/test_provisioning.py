"""The guide to provisioning works as it stands: its file, its commands and its programs, in their order."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from fanstream.security import Kit
from tests.docs.pages import Block, run_blocks

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "provision-a-federation.md"


def steps(port: int) -> Iterator[Block]:
    """The blocks of the page as Python: a file is written, a command is run."""
    for token in MarkdownIt("commonmark").parse(PAGE.read_text(encoding="utf-8")):
        if token.type != "fence":
            continue
        assert token.map is not None
        line = token.map[0] + 2
        text = token.content.replace("8102", str(port))
        match token.info:
            case "python":
                yield Block(line, text)
            case "toml":
                yield Block(line, f"import pathlib; pathlib.Path('federation.toml').write_text({text!r})\n")
            case "console" if text.startswith("$ fanstream "):
                arguments = shlex.split(text.removeprefix("$ fanstream "))
                yield Block(line, f"from fanstream.cli import main; assert main({arguments!r}) == 0\n")
            case _:
                assert token.info in ("", "console")


def test_the_guide_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = list(steps(free_port))
    assert sum("fanstream.cli" in block.source for block in blocks) == 8
    run_blocks(blocks, str(PAGE))
    roots = Kit.load("hospitals/kits/server").trust.roots
    assert len(roots) == 1
    # All that the page says is in the folder is there, and nothing else.
    assert {path.name for path in Path("hospitals").iterdir()} == {"authority", "kits", "roots.pem", "revoked.pem"}
    assert {path.name for path in Path("hospitals/kits").iterdir()} == {"server", "site-1", "site-2"}
