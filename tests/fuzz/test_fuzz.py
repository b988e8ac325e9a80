"""Each input of the corpus, and each that ever crashed a target, goes through its target in the normal suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.make_corpus import FOLDER, inputs
from tests.fuzz.targets import TARGETS

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_goes_through(name: str) -> None:
    files = sorted((FOLDER / name).iterdir())
    assert files
    for file in files:
        TARGETS[name](file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_what_crashed_once_goes_through(name: str) -> None:
    for file in sorted((HERE / "crashes" / name).glob("*")):
        TARGETS[name](file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_empty_and_tiny_inputs_go_through(name: str) -> None:
    TARGETS[name](b"")
    for byte in range(256):
        TARGETS[name](bytes([byte]))


def test_every_target_has_its_corpus_and_no_folder_is_left_over() -> None:
    assert set(TARGETS) <= set(inputs())
    assert {folder.name for folder in FOLDER.iterdir()} == set(inputs())
    assert {folder.name for folder in (HERE / "crashes").glob("*")} <= set(TARGETS) | {"table"}
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 1024 * 1024
