from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fanstream.codec import Codec
from fanstream.errors import CodecError, UnknownTypeError
from fanstream.options import Limits

from .carrying import CODEC, carry_one, raw, receive

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

APART = Codec(Limits(inline=0))
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "bfloat16"),
    *("float32", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"),
)


def same_tensor(left: Any, right: Any) -> bool:
    """Compare two tensors exactly, NaN and all."""
    return (
        type(left) is torch.Tensor
        and left.dtype == right.dtype
        and left.shape == right.shape
        and bool((as_bytes(left) == as_bytes(right)).all())
    )


def as_bytes(tensor: Any) -> Any:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 0, 4), (2, 3, 4, 5), (70, 70)])
@pytest.mark.parametrize("name", DTYPES)
def test_tensors_of_every_dtype(name: str, shape: tuple[int, ...]) -> None:
    tensor = (torch.arange(int(np.prod(shape))) % 2).reshape(shape).to(getattr(torch, name))
    for codec in (CODEC, APART):
        received = carry_one(tensor, codec)
        assert same_tensor(received, tensor)
        assert received.is_contiguous()


def test_strided_conjugated_and_broadcast_tensors() -> None:
    base = torch.arange(10_000, dtype=torch.float32).reshape(100, 100)
    number = torch.complex(base, -base)
    for tensor in (base.T, base[::2], base[:, 3:7], base[:1].expand(5, 100), number.conj(), number.conj().imag):
        assert same_tensor(carry_one(tensor), tensor.resolve_conj().resolve_neg())


def test_parameters_arrive_as_tensors_without_gradient() -> None:
    for tensor in (torch.nn.Parameter(torch.ones(3)), torch.ones(5000, requires_grad=True)):
        received = carry_one(tensor)
        assert same_tensor(received, tensor)
        assert not received.requires_grad


def test_a_state_dict_shares_its_memory() -> None:
    model = torch.nn.Linear(100, 100, dtype=torch.bfloat16)
    state = dict(model.state_dict())
    encoded = CODEC.encode({"weights": state})
    assert encoded.sizes == (20_000,)
    before = receive(encoded)["weights"]
    with torch.no_grad():
        model.weight.zero_()
    after = receive(encoded)["weights"]
    assert list(after) == ["weight", "bias"]
    assert before["weight"].any()
    assert not after["weight"].any()
    after["weight"].add_(1)
    assert not model.weight.any()


def test_a_copy_is_a_snapshot() -> None:
    tensor = torch.zeros(5000)
    encoded = CODEC.encode({"a": tensor}, copy=True)
    tensor.add_(1)
    assert not receive(encoded)["a"].any()


def test_tensors_without_plain_data_are_refused() -> None:
    for tensor in (torch.ones(3).to_sparse(), torch.ones(3, device="meta")):
        with pytest.raises(UnknownTypeError, match=r"^a\[0\]: a torch tensor of layout .* does not travel"):
            CODEC.encode({"a": [tensor]})


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_other_dtypes_are_refused() -> None:
    with pytest.raises(UnknownTypeError, match=r"^a\[0\]: torch dtype torch.complex32 is not in the registry"):
        CODEC.encode({"a": [torch.zeros(3, dtype=torch.complex32)]})


def test_derived_tensors_are_refused() -> None:
    with pytest.raises(
        UnknownTypeError, match=r"^a: type .*Derived is not in the registry; it is derived from torch.Tensor"
    ):
        CODEC.encode({"b": torch.ones(1), "a": torch.ones(1).as_subclass(Derived)})


class Derived(torch.Tensor):  # type: ignore[name-defined,misc]  # torch is not typed here
    pass


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ([22], "without dtype or content"),
        ([22, "float32"], "without dtype or content"),
        ([22, "load", b""], "torch dtype 'load' is not known"),
        ([22, "float32", b"abc", 1], "a tensor of 4 bytes with other content"),
        ([22, "float32", b"abcd", -1], "whole number from 0 up"),
        ([22, "float32", b"", 0, 1 << 62], "cannot be addressed"),
        ([22, "bool", b"\2", 1], "bytes other than 0 and 1"),
    ],
)
def test_tensors_from_the_wire_are_checked(node: list[Any], message: str) -> None:
    with pytest.raises(CodecError, match=rf"^a: .*{message}"):
        CODEC.begin(raw(1, {}, {"a": node}), ())
