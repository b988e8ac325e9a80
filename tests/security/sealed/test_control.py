from __future__ import annotations

import pytest

from fanstream.errors import SealError
from fanstream.security.sealed.control import OPENER, SITE, Control

END, ABORT, ENDED = 22, 23, 25
STREAM = bytes(16)


def ends(pair: bytes = b"p" * 32, bound: bytes = b"h" * 32 + b"site-1") -> tuple[Control, Control]:
    return Control(pair, STREAM, bound, OPENER), Control(pair, STREAM, bound, SITE)


def test_words_are_heard_in_order() -> None:
    opener, site = ends()
    assert site.hear(END, opener.say(END, b"12")) == b"12"
    assert site.hear(ABORT, opener.say(ABORT, b"why")) == b"why"
    assert opener.hear(ENDED, site.say(ENDED, b"")) == b""


def test_the_very_same_word_may_come_again() -> None:
    opener, site = ends()
    first, second = opener.say(END, b"12"), opener.say(ABORT, b"why")
    for _ in range(2):
        assert site.hear(END, first) == b"12"
        assert site.hear(ABORT, second) == b"why"


def test_an_older_word_that_was_not_heard_is_too_late() -> None:
    opener, site = ends()
    first, second = opener.say(END, b"12"), opener.say(ABORT, b"why")
    site.hear(ABORT, second)
    with pytest.raises(SealError, match="control word 1 after 2"):
        site.hear(END, first)


def test_a_word_is_of_one_kind_direction_stream_and_site() -> None:
    opener, site = ends()
    word = opener.say(END, b"12")
    site.hear(END, word)
    others = (ends(pair=b"q" * 32)[1], ends(bound=b"h" * 32 + b"site-2")[1], opener)
    for hearer, kind in ((site, ABORT), *((other, END) for other in others)):
        with pytest.raises(SealError, match="not the other side's"):
            hearer.hear(kind, word)


def test_every_bit_and_length_counts() -> None:
    opener, site = ends()
    word = opener.say(END, b"12")
    for at in range(len(word) * 8):
        changed = bytearray(word)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(SealError):
            site.hear(END, bytes(changed))
    for length in range(len(word)):
        with pytest.raises(SealError):
            site.hear(END, word[:length])
    with pytest.raises(SealError):
        site.hear(END, word + b"\0")
    assert site.hear(END, word) == b"12"


def test_what_is_remembered_is_bounded() -> None:
    opener, site = ends()
    for _ in range(64):
        site.hear(END, opener.say(END, b""))
    with pytest.raises(SealError, match="64 of 64 heard"):
        site.hear(END, opener.say(END, b""))
