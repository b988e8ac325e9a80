"""Counting what an envelope holds without building any of it."""

from __future__ import annotations

from typing import Final

from ..errors import chained
from .faults import Fault

# One entry for each first byte of a msgpack value: its whole width if that is fixed, 0 where a length follows.
_WIDTH: Final = tuple(
    1 if lead < 0x80 or lead >= 0xE0 or lead in (0xC0, 0xC2, 0xC3)  # small ints, nil, false, true
    else lead - 0xA0 + 1 if 0xA0 <= lead <= 0xBF  # short strings
    else {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}.get(lead, 0)
    for lead in range(256)
)  # fmt: skip
_IS_TEXT: Final = tuple(0xA0 <= lead <= 0xBF or 0xD9 <= lead <= 0xDB for lead in range(256))
# Bytes of the length field, for values that are a length and as many bytes, and for containers.
_BLOB: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAY: Final = {0xDC: 2, 0xDD: 4}
_MAP: Final = {0xDE: 2, 0xDF: 4}


def count_nodes(data: bytes, limit: int) -> int:
    """Count the msgpack values of an envelope: every container, key, and plain value is one.

    A bomb is found out after *limit* values at the latest, most often at the first length that promises too many, and
    nothing is allocated for it: decoding 256 KiB of empty arrays would take some 20 MB.

    Args:
        data: an envelope; it need not be valid beyond what is counted.
        limit: the most values it may hold.

    Raises:
        Fault: more values than *limit*, a map key that is not a str, an extension type, or truncated data.
    """
    nodes = 1
    position = 0
    left = 1  # values still to come in the innermost container
    keyed = False  # that container is a map; its next value is a key when *left* is even
    outer: list[tuple[int, bool]] = []
    try:
        while True:
            lead = data[position]
            if keyed and not left & 1 and not _IS_TEXT[lead]:
                # Keys that are not strings could be chosen to collide in the dict that the decoder builds.
                raise Fault("malformed envelope: a map has a key that is not a str")
            left -= 1
            width = _WIDTH[lead]
            if width:
                position += width
            elif lead in _BLOB:
                size = _BLOB[lead]
                position += 1 + size + int.from_bytes(data[position + 1 : position + 1 + size], "big")
            else:
                inner, is_map, width = _container(data, position, lead)
                position += width
                if inner:
                    nodes += inner
                    if nodes > limit:
                        raise Fault(f"the envelope holds at least {nodes} values, limit {limit}")
                    if left:
                        outer.append((left, keyed))
                    left, keyed = inner, is_map
                    continue
            while not left:
                if not outer:
                    return nodes
                left, keyed = outer.pop()
    except IndexError:
        raise chained(Fault("malformed envelope: it is truncated"), None)


def _container(data: bytes, position: int, lead: int) -> tuple[int, bool, int]:
    """Read the head of a container: the values in it, whether it is a map, and the width of its head in bytes."""
    if lead & 0xF0 == 0x90:
        return lead & 0x0F, False, 1
    if lead & 0xF0 == 0x80:
        return 2 * (lead & 0x0F), True, 1
    size = _ARRAY.get(lead)
    if size is not None:
        return int.from_bytes(data[position + 1 : position + 1 + size], "big"), False, 1 + size
    size = _MAP.get(lead)
    if size is not None:
        return 2 * int.from_bytes(data[position + 1 : position + 1 + size], "big"), True, 1 + size
    raise Fault("malformed envelope: it holds an extension type or an unused code")
