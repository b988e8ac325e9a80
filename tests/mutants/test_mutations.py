"""The mutations fit the package as it is; `nox -s mutants` makes them, and sees that the tests notice."""

from __future__ import annotations

from pathlib import Path

import pytest

import fanstream

from .mutations import MUTATIONS, Mutation

PACKAGE = Path(fanstream.__file__).parent
TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.file}: {mutation.breaks}")
def test_the_text_stands_once_and_the_tests_are_there(mutation: Mutation) -> None:
    source = (PACKAGE / mutation.file).read_text(encoding="utf-8")
    assert source.count(mutation.old) == 1, f"{mutation.file} changed: change the mutation {mutation.breaks!r} too"
    assert mutation.new != mutation.old
    compile(source.replace(mutation.old, mutation.new), mutation.file, "exec")
    assert mutation.tests
    for test in mutation.tests:
        assert (TESTS / test).exists()


def test_no_mutation_is_there_twice() -> None:
    assert len({(mutation.file, mutation.old, mutation.new) for mutation in MUTATIONS}) == len(MUTATIONS)
    assert len(MUTATIONS) >= 50
