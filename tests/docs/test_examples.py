"""Every Python block of the README and of the documentation runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import PageError, find_blocks, run_blocks

ROOT = Path(__file__).parents[2]


def pages_with_examples(root: Path) -> list[Path]:
    """The README and the pages under docs/ that have a block to run, or one that is marked wrongly."""
    pages = [page for page in [root / "README.md", *sorted((root / "docs").rglob("*.md"))] if page.is_file()]
    return [page for page in pages if "_build" not in page.parts and has_examples(page)]


def has_examples(page: Path) -> bool:
    try:
        return any(block.left_out is None for block in find_blocks(page.read_text(encoding="utf-8")))
    except PageError:
        return True  # so that its test fails, and not the collection of all


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in pages_with_examples(ROOT)]
)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = find_blocks(page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix())
    monkeypatch.chdir(tmp_path)  # what an example writes stays out of the work tree
    run_blocks(blocks, str(page))


def test_pages_without_examples_give_no_test(tmp_path: Path) -> None:
    (tmp_path / "docs" / "how-to").mkdir(parents=True)
    (tmp_path / "docs" / "_build").mkdir()
    (tmp_path / "README.md").write_text("# No blocks\n")
    (tmp_path / "docs" / "index.md").write_text("<!-- not run: it is only shown -->\n```python\n1 / 0\n```\n")
    (tmp_path / "docs" / "how-to" / "send.md").write_text("```python\npass\n```\n")
    (tmp_path / "docs" / "how-to" / "wrong.md").write_text("```py\npass\n```\n")
    (tmp_path / "docs" / "_build" / "copy.md").write_text("```python\npass\n```\n")

    found = [page.relative_to(tmp_path).as_posix() for page in pages_with_examples(tmp_path)]

    assert found == ["docs/how-to/send.md", "docs/how-to/wrong.md"]
