"""Links within one process: bytes go from one core straight into the other's destinations, copied once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import anyio
from anyio.lowlevel import RunVar

from ..errors import BrokenError, ConnectError
from ..wakeup import current_face
from .base import Listener, OnConnect, Pump, Wire

_TURN: Final = 2 * 1024 * 1024  # bytes between two turns of the loop

Network = dict[str, OnConnect]
_network: RunVar[Network] = RunVar("fanstream_memory_network")
_watchers: RunVar[dict[int, Callable[[], object]]] = RunVar("fanstream_memory_watchers")

pairing: RunVar[Callable[[str, str], tuple[Wire, Wire]]] = RunVar("fanstream_memory_pairing")
"""What makes connections in place of ``pair``, for tests whose links are to fail (``fanstream.testing``)."""

LOCAL: Final = "local/"
"""What the names begin with that engines without any address are found under: the embedded default."""


class MemoryWire(Wire):
    """One end of a connection within the process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._wakeup = current_face().wakeup()
        self._pump: Pump | None = None
        self._closed = False
        self._flushing = False
        self._reason: Exception | None = None
        self.other: MemoryWire

    @property
    def name(self) -> str:
        return self._name

    async def run(self, pump: Pump) -> Exception | None:
        self._pump = pump
        self.other.wake()  # it may have waited for this end
        try:
            while not self._closed or self._flushing:
                await self._wakeup.wait()
                await self._write()
        finally:
            self._closed = True
            self._pump = None
            self.other.close(BrokenError(f"{self._name}: the other end closed it"))
        return self._reason

    async def _write(self) -> None:
        while not self._closed or self._flushing:
            other = self.other
            if other._pump is None or self._pump is None:
                if other._closed:
                    self._flushing = False
                return
            out = self._pump.next_output(_TURN)
            if not out:
                self._flushing = False
                return
            if await self._deliver(out):
                await anyio.lowlevel.checkpoint()

    async def _deliver(self, out: Sequence[bytes | memoryview]) -> bool:
        """Copy what was written into the other end; return whether it was much."""
        other = self.other
        total = 0
        for buffer in out:
            view = memoryview(buffer)
            total += len(view)
            while view and other._pump is not None and not other._closed:
                view = view[_copy(view, other._pump) :]
        return total >= _TURN // 2

    def wake(self) -> None:
        self._wakeup.set()

    def close(self, reason: Exception | None = None, *, flush: bool = False) -> None:
        if self._closed:
            if not flush:
                self._flushing = False
                self._wakeup.set()
            return
        self._closed = True
        self._flushing = flush and self._pump is not None
        self._reason = reason
        self._wakeup.set()
        if self._pump is None:  # it was never run
            self.other.close(BrokenError(f"{self._name}: the other end closed it"))


def _copy(view: memoryview, pump: Pump) -> int:
    """Copy as much of *view* as the pump's next buffers hold; return how much."""
    done = 0
    size = len(view)
    for destination in pump.get_buffers():
        piece = min(size - done, len(destination))
        destination[:piece] = view[done : done + piece]
        done += piece
        if done == size:
            break
    pump.received(done)
    return done


def pair(left: str, right: str) -> tuple[MemoryWire, MemoryWire]:
    """Make a connection; each end's name says where it leads."""
    near, far = MemoryWire(right), MemoryWire(left)
    near.other, far.other = far, near
    return near, far


class MemoryListener(Listener):
    """A name under which this process's engines can be dialled; it belongs to the running event loop."""

    def __init__(self, name: str, on_connect: OnConnect) -> None:
        network = network_now()
        if name in network:
            raise ConnectError(f"memory://{name} is in use")
        network[name] = on_connect
        self._network = network
        self._watchers = _watchers_now()
        self._name = name
        self.address = f"memory://{name}"
        _tell(self._watchers)

    def close(self) -> None:
        if self._network.pop(self._name, None) is not None:
            _tell(self._watchers)


def network_now() -> Network:
    """Return the running event loop's names."""
    network = _network.get(None)
    if network is None:
        network = {}
        _network.set(network)
    return network


def _watchers_now() -> dict[int, Callable[[], object]]:
    watchers = _watchers.get(None)
    if watchers is None:
        watchers = {}
        _watchers.set(watchers)
    return watchers


def _tell(watchers: dict[int, Callable[[], object]]) -> None:
    for watcher in list(watchers.values()):
        watcher()


def watch(callback: Callable[[], object]) -> Callable[[], object]:
    """Have *callback* called whenever a name comes or goes; returns a function that ends it."""
    watchers = _watchers_now()
    key = id(callback)
    watchers[key] = callback
    return lambda: watchers.pop(key, None)


def dial(name: str, from_name: str) -> Wire:
    """Connect to a name.

    Raises:
        ConnectError: nobody has it.
    """
    on_connect = network_now().get(name)
    if on_connect is None:
        raise ConnectError(f"memory://{name}: nobody listens")
    near, far = pairing.get(pair)(from_name, f"memory://{name}")
    on_connect(far)
    return near
