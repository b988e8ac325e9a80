"""T14: an envelope that nests deep, holds much or collides costs little."""

from __future__ import annotations

import pytest

from fanstream.protocol.frames import PAYLOAD_SIZE
from tests.federation import (
    hubs,
)
from tests.threats.siege import (
    Offence,
    offend,
    second_object,
)

pytestmark = pytest.mark.anyio

OFFENCES: dict[str, Offence] = {
    "envelope of garbage": (
        second_object(lambda two: two._replace(body=two.body[:PAYLOAD_SIZE] + b"\xc1\xc1")),
        "object 1 from stranger",
    ),
}


@hubs
@pytest.mark.parametrize("offence", OFFENCES)
async def test_an_offence_ends_its_link_by_name_and_no_other(transport: str, offence: str) -> None:
    await offend(transport, *OFFENCES[offence])
