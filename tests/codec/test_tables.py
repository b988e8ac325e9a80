from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest

from fanstream.errors import CodecError

from .carrying import CODEC, carry_one, raw, receive

pa = pytest.importorskip("pyarrow")


def table(rows: int) -> Any:
    return pa.table(
        {
            "id": pa.array(range(rows), pa.int64()),
            "name": pa.array([None if row % 3 else f"row {row}" for row in range(rows)]),
            "site": pa.array(["site-1", "site-2"] * (rows // 2)).dictionary_encode(),
            "seen": pa.array([dt.datetime(2026, 1, 1, tzinfo=dt.UTC)] * rows),
            "path": pa.array([[row, row + 1] for row in range(rows)]),
        },
        metadata={"made by": "a test"},
    )


@pytest.mark.parametrize("rows", [0, 2, 10_000])
def test_tables_arrive_as_they_were_sent(rows: int) -> None:
    sent = table(rows)
    received = carry_one([sent])[0]
    received.validate(full=True)
    assert received.equals(sent, check_metadata=True)


def test_slices_and_chunks() -> None:
    sent = pa.concat_tables([table(4000), table(6000)]).slice(100, 5000)
    assert carry_one(sent).equals(sent)
    assert CODEC.encode({"a": sent}).total < sum(CODEC.encode({"a": table(10_000)}).sizes)


def test_a_table_lies_where_it_was_received() -> None:
    encoded = CODEC.encode({"a": table(10_000)})
    assert len(encoded.buffers) == 1
    decoding = CODEC.begin(encoded.envelope, encoded.sizes)
    (destination,) = decoding.destinations
    destination[:] = encoded.buffers[0]
    received = decoding.finish()["a"]
    numbers = received["id"].chunk(0).to_numpy()
    assert np.shares_memory(numbers, np.frombuffer(destination, np.uint8))


def test_what_is_no_table_is_refused() -> None:
    encoded = CODEC.encode({"a": table(10_000)})
    decoding = CODEC.begin(encoded.envelope, encoded.sizes)
    decoding.destinations[0][:] = bytes(encoded.total)
    with pytest.raises(CodecError, match=r"^a: an Arrow table of .* bytes cannot be read"):
        decoding.finish()
    for node in ([23], [23, b"junk"], [23, "text"], [23, None, None]):
        with pytest.raises(CodecError, match=r"^a: .*table"):
            CODEC.begin(raw(1, {}, {"a": node}), ())


def test_damaged_tables_are_refused_or_valid() -> None:
    encoded = CODEC.encode({"a": table(200)})
    sent = bytearray(encoded.buffers[0])
    for position in range(0, len(sent), 7):
        damaged = bytearray(sent)
        damaged[position] ^= 0x55
        decoding = CODEC.begin(encoded.envelope, encoded.sizes)
        decoding.destinations[0][:] = damaged
        try:
            received = decoding.finish()["a"]
        except CodecError:
            continue
        received.validate(full=True)
    assert receive(encoded)["a"].equals(table(200))


def test_other_arrow_types_are_refused() -> None:
    with pytest.raises(CodecError, match=r"^a: type pyarrow.lib.RecordBatch is not in the registry"):
        CODEC.encode({"a": pa.record_batch({"a": [1]})})
