"""Objects to bytes and back: a small msgpack envelope, and the large buffers beside it, untouched.

The package does no I/O and imports numpy, torch and pyarrow only where a value of theirs is met. Nothing in it runs
what a peer sent: a closed registry of types says what travels, and applications add to it at both sides.
"""

from __future__ import annotations

from .codec import Codec
from .payloads import Decoding, Encoded, Undecoded
from .types import TypeRegistry, default_types, register_type

__all__ = ["Codec", "Decoding", "Encoded", "TypeRegistry", "Undecoded", "default_types", "register_type"]
