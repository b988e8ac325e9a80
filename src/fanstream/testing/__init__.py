"""Tools for tests of what is built on fanstream: a clock that jumps, links that fail as told, and a peer to script.

``virtual_time`` makes waiting free, ``faults`` breaks links within the process and ``proxy`` real ones, ``peer`` speaks
frames by hand, and ``conformance`` (which needs pytest) is the suite that each transport has to pass.
``docs/how-to/test-your-streams.md`` and ``docs/how-to/break-real-links.md`` show them.
"""

from __future__ import annotations

from .faults import Direction, FaultyNetwork, LinkControl
from .frames import Frame
from .peer import RawPeer
from .proxy import Fault, FaultProxy, Faults, ProxiedConnection
from .virtual_time import VirtualTimeLoop, asyncio_backend, trio_backend

__all__ = [
    "Direction",
    "Fault",
    "FaultProxy",
    "Faults",
    "FaultyNetwork",
    "Frame",
    "LinkControl",
    "ProxiedConnection",
    "RawPeer",
    "VirtualTimeLoop",
    "asyncio_backend",
    "trio_backend",
]
