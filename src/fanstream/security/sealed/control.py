"""Words between a stream's opener and one site that nobody between them can put into their mouths: end, abort, ended.

Each is encrypted and authenticated under a key of that direction, with a counter of its own as its nonce.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ...errors import SealError
from .suites import expand

_NONCE: Final = struct.Struct(">4xQ")
_COUNTER: Final = struct.Struct(">Q")
_TAG: Final = 16
_MOST_HEARD: Final = 64
"""Words of one stream that one side takes; it has fewer than ten to say."""

OPENER: Final = b"opener"
SITE: Final = b"site"


class Control:
    """One side's end of the control words of one stream and site.

    Args:
        pair: the secret that the opener and the site share.
        stream: the stream's id.
        bound: the header's hash and the site's name.
        side: ``OPENER`` or ``SITE``: whose end this is.
    """

    __slots__ = ("_bound", "_heard", "_hears", "_last", "_said", "_says")

    def __init__(self, pair: bytes, stream: bytes, bound: bytes, side: bytes) -> None:
        other = SITE if side == OPENER else OPENER
        self._says = AESGCM(expand(pair, b"ctl", stream + side))
        self._hears = AESGCM(expand(pair, b"ctl", stream + other))
        self._bound = bound
        self._said = 0
        self._last = 0
        self._heard: dict[bytes, tuple[int, bytes]] = {}

    def say(self, kind: int, body: bytes) -> bytes:
        """Seal one word.

        Args:
            kind: a byte that says what it is.
            body: the rest of it, hidden.
        """
        self._said += 1
        nonce = _NONCE.pack(self._said)
        return _COUNTER.pack(self._said) + self._says.encrypt(nonce, body, self._bound + bytes([kind]))

    def hear(self, kind: int, data: bytes) -> bytes:
        """Open one word; the very same one may come again, after a link was lost.

        Raises:
            SealError: the other side did not say it, or said it before something else that was heard.
        """
        data = bytes(data)
        known = self._heard.get(data)
        if known is not None and known[0] == kind:
            return known[1]
        if len(data) < _COUNTER.size + _TAG:
            raise SealError(f"a sealed word of {len(data)} bytes, expected at least {_COUNTER.size + _TAG}")
        (counter,) = _COUNTER.unpack_from(data)
        try:
            body = self._hears.decrypt(_NONCE.pack(counter), data[_COUNTER.size :], self._bound + bytes([kind]))
        except InvalidTag as exc:
            raise SealError("a control word is not the other side's") from exc
        if counter <= self._last or len(self._heard) >= _MOST_HEARD:
            raise SealError(f"control word {counter} after {self._last}, {len(self._heard)} of {_MOST_HEARD} heard")
        self._last = counter
        self._heard[data] = (kind, body)
        return body
