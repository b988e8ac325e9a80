from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanstream.codec.faults import Fault
from fanstream.codec.hashes import check_spread
from fanstream.errors import CodecError

from .carrying import CODEC, hashables

MODULUS = sys.hash_info.modulus
COLLIDING = [key * MODULUS for key in range(9, 3000)]  # all beyond 64 bits, all with hash 0


@given(st.lists(hashables()))
def test_honest_members_pass(members: list[Any]) -> None:
    check_spread(set(members))


def test_numbers_around_zero_pass() -> None:
    check_spread(range(-1000, 1000))
    check_spread([complex(a, b) for a in range(-30, 30) for b in range(-30, 30)])
    check_spread([(a, b) for a in range(-30, 30) for b in range(-30, 30)])


def test_a_few_collisions_pass() -> None:
    check_spread(COLLIDING[:17])
    with pytest.raises(Fault, match=r"17 of 18 members or keys have a hash that another has too, limit 16"):
        check_spread(COLLIDING[:18])


def test_members_that_cannot_be_hashed() -> None:
    with pytest.raises(Fault, match=r"cannot be hashed: unhashable type: 'list'"):
        check_spread([1, []])  # type: ignore[list-item]  # as it may come from the wire


def test_the_sender_is_told_too() -> None:
    with pytest.raises(CodecError, match=r"^a: 2990 of 2991 members or keys"):
        CODEC.encode({"a": set(COLLIDING)})
    with pytest.raises(CodecError, match=r"^a: 2990 of 2991 members or keys"):
        CODEC.encode({"a": dict.fromkeys(COLLIDING)})
