"""T3: a stream is its opener's: whoever else speaks on it is refused, and counted."""

from __future__ import annotations

import pytest

from fanstream.testing import Frame
from tests.federation import (
    hubs,
)
from tests.threats.siege import (
    Offence,
    T,
    first,
    just,
    large,
    offend,
)

pytestmark = pytest.mark.anyio

OFFENCES: dict[str, Offence] = {
    "chunk of a stranger's stream": (large(lambda data: data._replace(alias=99)), "stream 99, which was never opened"),
    "chunk of the engine's own": (large(lambda data: data._replace(alias=2)), "stream 2, which was never opened"),
    "object of a stranger's stream": (just(Frame(T.OBJECT, alias=41)), "stream 41, which was never opened"),
    "end of a stranger's stream": (just(Frame(T.END, alias=43)), "stream 43, which was never opened"),
    "grant on a stranger's stream": (just(Frame(T.GRANT, alias=4)), "stream 4, which was never opened"),
    "object of no stream": (just(Frame(T.OBJECT)), "stream 0, which was never opened"),
    "open with the engine's numbering": (first(lambda frame: frame._replace(alias=8)), "OPEN names stream 8"),
}


@hubs
@pytest.mark.parametrize("offence", OFFENCES)
async def test_an_offence_ends_its_link_by_name_and_no_other(transport: str, offence: str) -> None:
    await offend(transport, *OFFENCES[offence])
