"""The numbers that stand first in a tagged array of an envelope, and the two forms of an envelope.

An envelope is one msgpack value in its shortest form (no other spelling is accepted, so no map can repeat a key)::

    b""                              an empty Shareable without headers
    [FLAT, headers, data]            two maps from str to None, bool, int, float, str or bytes
    [TREE, headers, data]            a map from str to node; data is a node that gives a dict

A *node* of the tree form is None, bool, int, float, str or bytes as itself, a dict with str keys as a map, and anything
else an array that begins with one of the tags below. A *content* is the bytes themselves, or nil for "the next of the
object's buffers": the n-th nil in the order of the envelope is buffer n, so every buffer is named exactly once.
"""

from __future__ import annotations

from typing import Final

FLAT: Final = 0
TREE: Final = 1

LIST: Final = 0  # [LIST, node...]
TUPLE: Final = 1  # [TUPLE, node...]
SET: Final = 2  # [SET, node...]
FROZENSET: Final = 3  # [FROZENSET, node...]
PAIRS: Final = 4  # [PAIRS, key, node, key, node...]: a dict with keys that are not all str
SHAREABLE: Final = 5  # [SHAREABLE, headers, data]: a Shareable inside another
APPLICATION: Final = 6  # [APPLICATION, registered tag, node]

BIG_INT: Final = 7  # [BIG_INT, two's complement, little-endian, shortest]: beyond 64 bits
COMPLEX: Final = 8  # [COMPLEX, real, imaginary]
SURROGATES: Final = 9  # [SURROGATES, bytes]: a str with lone surrogates, in UTF-8 with surrogatepass
BYTES: Final = 10  # [BYTES]: the next buffer is a bytes object
TEXT: Final = 11  # [TEXT]: the next buffer is a str in UTF-8
BYTEARRAY: Final = 12  # [BYTEARRAY, content]

# Times end with microseconds east of UTC where they are aware, and with (those or nil, and) 1 where their fold is 1.
DATETIME: Final = 13  # [DATETIME, ISO 8601 without offset, ...]
DATE: Final = 14  # [DATE, ISO 8601]
TIME: Final = 15  # [TIME, ISO 8601 without offset, ...]
TIMEDELTA: Final = 16  # [TIMEDELTA, days, seconds, microseconds]

ARRAY: Final = 17  # [ARRAY, dtype, content, dimension...]: numpy, rows first
ARRAY_F: Final = 18  # the same, columns first
SCALAR: Final = 19  # [SCALAR, dtype, bytes]: a numpy scalar
NUMPY_STR: Final = 20  # [NUMPY_STR, node of a str]
NUMPY_BYTES: Final = 21  # [NUMPY_BYTES, node of a bytes]
TENSOR: Final = 22  # [TENSOR, name of the dtype, content, dimension...]: torch, rows first, little-endian
TABLE: Final = 23  # [TABLE, content]: an Arrow table as an IPC stream
