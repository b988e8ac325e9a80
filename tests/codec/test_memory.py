from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fanstream import Shareable
from fanstream.codec import Codec
from fanstream.codec.memory import SMALLEST, Memory
from fanstream.options import Limits

SIZE = 2 * SMALLEST
Array = np.ndarray[Any, Any]


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def receive(codec: Codec, obj: Shareable) -> Shareable:
    encoded = codec.encode(obj)
    decoding = codec.begin(encoded.envelope, encoded.sizes)
    for destination, buffer in zip(decoding.destinations, encoded.buffers, strict=True):
        destination[:] = buffer
    destination = memoryview(b"")
    return decoding.finish()


def test_a_block_is_used_again_once_no_view_of_it_is_left() -> None:
    memory = Memory(10 * SIZE)
    view = memory.take(SIZE)
    first = address(view)
    assert (memory.lent, memory.idle) == (SIZE, 0)
    array = np.frombuffer(view, np.float32)
    row = array[5:]
    del view, array
    other = memory.take(SIZE)
    assert address(other) != first, "a view of it is still there"
    del row
    assert address(memory.take(SIZE)) == first


DERIVED: list[Callable[[Array], Any]] = [
    lambda array: array,
    lambda array: array.reshape(2, -1)[1],
    lambda array: array[::3].T.view(np.int8),
    lambda array: array[None].squeeze(),
    lambda array: array.ravel(),
    lambda array: np.asarray(array).view(np.recarray),
    lambda array: np.ndarray(array.shape, array.dtype, array),
    lambda array: np.ndarray((10,), np.uint8, array.data, offset=100),
    lambda array: np.frombuffer(array.data, np.uint8),
    lambda array: array.data[5:],
    lambda array: np.lib.stride_tricks.sliding_window_view(array, 10),
    np.ma.masked_array,
]


@pytest.mark.parametrize("derive", DERIVED, ids=range(len(DERIVED)))
def test_what_is_received_does_not_change_under_whoever_keeps_it(derive: Callable[[Array], Any]) -> None:
    codec = Codec()
    kept = derive(receive(codec, Shareable({"w": np.full(SIZE, 7, np.uint8)}))["w"])
    for value in range(3):
        receive(codec, Shareable({"w": np.full(SIZE, value, np.uint8)}))
    gc.collect()
    assert np.asarray(kept).min() == np.asarray(kept).max() == 7


def test_a_tensor_keeps_its_memory() -> None:
    torch = pytest.importorskip("torch")
    codec = Codec()
    kept = receive(codec, Shareable({"w": torch.full((SIZE,), 7, dtype=torch.bfloat16)}))["w"][10:].view(torch.int16)
    expected = kept.clone()
    for value in range(3):
        receive(codec, Shareable({"w": torch.full((SIZE,), value, dtype=torch.bfloat16)}))
    gc.collect()
    assert torch.equal(kept, expected)


def test_arrays_of_one_size_land_in_the_same_memory_again() -> None:
    codec = Codec()
    places = set()
    for _ in range(10):
        array = receive(codec, Shareable({"w": np.zeros((SIZE // 8, 2), ">f4", order="F")}))["w"]
        assert array.flags.f_contiguous
        places.add(array.ctypes.data)
        del array
    assert len(places) == 1
    assert codec.memory.lent + codec.memory.idle <= SIZE


def test_idle_memory_never_adds_to_the_peak() -> None:
    memory = Memory(1 << 30)
    views = [memory.take(SIZE) for _ in range(4)]
    views.clear()
    for factor in range(1, 40):
        view = memory.take(SIZE + factor)  # of another size each time: nothing fits
        assert memory.lent + memory.idle <= 4 * SIZE + factor
        del view


def test_idle_memory_has_a_limit() -> None:
    memory = Memory(2 * SIZE)
    views = [memory.take(SIZE) for _ in range(5)]
    views.clear()
    view = memory.take(SIZE)
    assert (memory.lent, memory.idle) == (SIZE, SIZE)
    del view


def test_no_limit_at_all_keeps_nothing() -> None:
    memory = Codec(Limits(idle_memory=0)).memory
    view = memory.take(SIZE)
    del view
    view = memory.take(SIZE)
    assert (memory.lent, memory.idle) == (SIZE, 0)
    del view


def test_what_is_still_lent_when_everything_is_cleared_is_nobodys_business_any_more() -> None:
    memory = Memory(10 * SIZE)
    early = memory.take(SIZE)
    memory.clear()
    late = memory.take(SIZE)
    del early
    assert memory.lent == SIZE
    del late
    memory.take(SIZE)
    assert (memory.lent, memory.idle) == (SIZE, 0)


def test_arrays_dropped_in_other_threads() -> None:
    memory = Memory(100 * SIZE)
    held = [[memory.take(SIZE) for _ in range(10)] for _ in range(4)]
    threads = [threading.Thread(target=views.clear) for views in held]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    view = memory.take(SIZE)
    assert (memory.lent, memory.idle) == (SIZE, 39 * SIZE)
    del view


def test_small_arrays_are_the_allocators() -> None:
    codec = Codec(Limits(inline=0))
    receive(codec, Shareable({"w": np.zeros(SMALLEST - 1, np.uint8)}))
    assert codec.memory.idle == codec.memory.lent == 0
