from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from fanstream.codec.blocks import Block, ByteArrayBlock, BytesBlock, TextBlock
from fanstream.codec.faults import Fault


@pytest.mark.parametrize("size", [1, 2, 16, 5000, 1_000_000])
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (BytesBlock, lambda content: content),
        (ByteArrayBlock, bytearray),
        (TextBlock, lambda content: content.decode()),
    ],
)
def test_a_block_becomes_what_was_written_into_it(
    size: int, make: Callable[[int], Block], expected: Callable[[bytes], object]
) -> None:
    content = (b"0123456789" * (size // 10 + 1))[:size]
    block = make(size)
    view = block.allocate()
    assert (len(view), view.ndim, view.format, view.readonly) == (size, 1, "B", False)
    for start in range(0, size, 4096):
        view[start : start + 4096] = content[start : start + 4096]
    value = block.value()
    assert value == expected(content)
    assert type(value) is type(expected(content))


def test_a_received_bytes_is_like_any_other() -> None:
    block = BytesBlock(3)
    block.allocate()[:] = b"abc"
    value = block.value()
    assert hash(value) == hash(b"abc")
    assert {b"abc": 1}[value] == 1
    assert value + b"d" == b"abcd"


def test_one_byte_is_not_the_byte_that_everyone_shares() -> None:
    # CPython keeps one object for each bytes of length 1; writing into that one would change it everywhere.
    for _ in range(3):
        BytesBlock(1).allocate()[:] = b"\xee"
    assert [bytes([number]) for number in range(256)] == [number.to_bytes(1, "big") for number in range(256)]
    assert bytes([0xEE]) == b"\xee"
    assert b"".join([b"\0"]) == b"\0"


@pytest.mark.parametrize("make", [BytesBlock, ByteArrayBlock, TextBlock])
def test_a_view_keeps_its_memory_alive(make: Callable[[int], Block]) -> None:
    view = make(100_000).allocate()[50_000:]
    gc.collect()
    others = [bytes(100_000) for _ in range(20)]
    view[:] = b"\7" * 50_000
    assert bytes(view) == b"\7" * 50_000
    assert not any(map(any, others))


def test_a_text_has_to_be_utf8() -> None:
    block = TextBlock(4)
    block.allocate()[:] = b"ab\xffc"
    with pytest.raises(Fault, match=r"a text of 4 bytes is not UTF-8: invalid start byte at byte 2"):
        block.value()


def test_more_memory_than_there_is() -> None:
    with pytest.raises(MemoryError):
        BytesBlock(1 << 62).allocate()
