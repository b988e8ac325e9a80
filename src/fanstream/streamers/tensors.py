"""A state dict, tensor by tensor: numpy arrays and torch tensors, bfloat16 included."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
import numpy as np

from ..arguments import check_count
from ..context import FLContext, StreamContext
from ..engine import StreamEngine
from ..options import GIB, StreamOptions
from ..shareable import Shareable
from ..streaming import Registration, StreamResult, Timeout
from .arguments import check_callback, check_engine, check_options
from .entries import BadEntryError, EntryConsumer, EntryProducer
from .whole import WholeFactory, send_whole


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # a tensor can only be there once torch is
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))


class TensorProducer(EntryProducer):
    """Sends a state dict tensor by tensor; afterwards ``replies`` holds the sites' replies to the last of them.

    Args:
        state: name to numpy array or torch tensor; sent in its order, not to be changed while the stream runs.
        timeout: how long a site may take to answer one tensor.
        withdraw: end the stream as soon as the last gather is complete.

    Raises:
        TypeError: *state* is no mapping, a name is not a str, or a value is neither a numpy array nor a torch tensor.
        ValueError: *timeout* is not positive and finite.
    """

    def __init__(self, state: Mapping[str, Any], timeout: Timeout = 60.0, *, withdraw: bool = False) -> None:
        if not isinstance(state, Mapping):
            raise TypeError(f"state is of type {type(state).__name__}, expected a dict of arrays or tensors")
        for name, value in state.items():
            if not isinstance(name, str):
                raise TypeError(f"state has a key {name!r} of type {type(name).__name__}, expected str")
            if not _is_tensor(value):
                raise TypeError(f"state[{name!r}] is of type {type(value).__name__}, expected an array or a tensor")
        entries = [{"name": name, "value": value} for name, value in state.items()]
        super().__init__(entries, timeout, withdraw=withdraw)


class _TensorConsumer(EntryConsumer):
    def __init__(
        self, on_state: Callable[..., Any], limiter: anyio.CapacityLimiter, max_entries: int, max_bytes: int
    ) -> None:
        super().__init__(on_state, limiter, max_entries)
        self._room = max_bytes
        self._state: dict[str, Any] = {}

    def add(self, entry: Shareable) -> None:
        name = entry.get("name")
        value: Any = entry.get("value")
        if not isinstance(name, str) or name in self._state:
            raise BadEntryError("a tensor's name is no str, or was there before")
        if not _is_tensor(value):
            raise BadEntryError(f"entry {len(self._state)} is no tensor")
        self._room -= value.nbytes
        if self._room < 0:
            raise BadEntryError("the tensors are larger together than is accepted")
        self._state[name] = value

    def whole(self, first_and_last: Shareable | None) -> dict[str, Any]:
        return self._state


async def stream_tensors(
    engine: StreamEngine,
    channel: str,
    topic: str,
    targets: Sequence[str],
    state: Mapping[str, Any],
    fl_ctx: FLContext,
    stream_ctx: StreamContext | None = None,
    *,
    timeout: Timeout = 60.0,  # noqa: ASYNC109 - a site's time for each object, not the call's
    optional: bool = False,
    secure: bool = False,
    options: StreamOptions | None = None,
) -> tuple[StreamResult, dict[str, Shareable]]:
    """Send a state dict to sites, each tensor as one object.

    *state* maps names to numpy arrays or torch tensors; it is sent in its order, and not to be changed while the stream
    runs. The other arguments, and what is returned, are as for all of ``fanstream.streamers``: its docstring tells.
    """
    check_engine(engine)
    options = check_options(options)
    producer = TensorProducer(state, timeout, withdraw=options.gather != "all")
    return await send_whole(engine, channel, topic, stream_ctx, targets, producer, fl_ctx, optional, secure, options)


def register_tensors(
    engine: StreamEngine,
    channel: str,
    topic: str,
    on_state: Callable[..., Any],
    *,
    max_entries: int = 1_000_000,
    max_bytes: int = 16 * GIB,
) -> Registration:
    """Receive state dicts.

    *on_state* gets a dict of names to tensors. One of more than *max_entries* tensors, or of more than *max_bytes*
    bytes together, is refused. The other arguments are as for all of ``fanstream.streamers``: its docstring tells.
    """
    check_engine(engine)
    check_callback(on_state, "on_state")
    check_count(max_entries, "max_entries")
    check_count(max_bytes, "max_bytes")
    return engine.register_stream_processing(
        channel, topic, WholeFactory(lambda: _TensorConsumer(on_state, engine.limiter, max_entries, max_bytes))
    )
