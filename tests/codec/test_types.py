from __future__ import annotations

import datetime as dt
from collections import OrderedDict
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, StrEnum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fanstream.codec import Codec, TypeRegistry, default_types, register_type
from fanstream.errors import CodecError, UnknownTypeError
from fanstream.shareable import Shareable

from .carrying import CODEC, carry_one, raw, receive, same


@dataclass(frozen=True)
class Model:
    name: str
    weights: Any


class Deeper(Model):
    pass


class Phase(Enum):
    TRAIN = 1


class Word(StrEnum):
    YES = "yes"


@pytest.fixture
def types() -> TypeRegistry:
    registry = TypeRegistry()
    registry.register_type("model", Model, lambda model: [model.name, model.weights], lambda parts: Model(*parts))
    registry.register_type("decimal", Decimal, str, Decimal)
    registry.register_type("ordered", OrderedDict, lambda value: list(value.items()), OrderedDict)
    registry.register_type("phase", Phase, lambda phase: phase.value, Phase)
    registry.register_type("word", Word, lambda word: word.value, Word)
    return registry


@pytest.fixture
def codec(types: TypeRegistry) -> Codec:
    return Codec(types=types)


def test_registered_values_travel_with_their_arrays(codec: Codec) -> None:
    model = Model("net", {"layer": np.ones(5000, np.float32), "rate": Decimal("0.10")})
    encoded = codec.encode({"models": (model, Phase.TRAIN, Word.YES)})
    assert encoded.sizes == (20_000,)
    received, phase, word = receive(encoded, codec)["models"]
    assert type(received) is Model
    assert same(received.weights, model.weights)
    assert phase is Phase.TRAIN
    assert word is Word.YES
    assert same(carry_one(OrderedDict(b=1, a=2), codec), OrderedDict(b=1, a=2))
    assert codec.decode_value(codec.encode_value({Decimal(1)})) == {Decimal(1)}


def test_only_the_exact_class_is_meant(codec: Codec) -> None:
    with pytest.raises(UnknownTypeError, match=r"^a: type .*Deeper is not in the registry"):
        codec.encode({"a": Deeper("net", None)})


def test_both_sides_have_to_register(codec: Codec) -> None:
    with pytest.raises(UnknownTypeError, match=r"^a\[0\]: type .*Model is not in the registry") as caught:
        CODEC.encode({"a": [Model("net", 1)]})
    assert caught.value.path == "a[0]"
    encoded = codec.encode({"a": [Model("net", bytes(5000))]})
    with pytest.raises(UnknownTypeError, match=r"^a\[0\]: type 'model' is not in the registry; register it") as caught:
        CODEC.begin(encoded.envelope, encoded.sizes)
    assert caught.value.path == "a[0]"


def test_errors_inside_are_named_by_the_tag(codec: Codec) -> None:
    with pytest.raises(UnknownTypeError, match=r"^a<model>\[1\]\['x'\]: type object"):
        codec.encode({"a": Model("net", {"x": object()})})
    with pytest.raises(CodecError, match=r"^a<model>\[0\]: malformed"):
        codec.begin(raw(1, {}, {"a": [6, "model", [0, []]]}), ())


def test_encoders_and_decoders_that_fail() -> None:
    types = TypeRegistry()

    def fail(_value: Any) -> Any:
        raise ZeroDivisionError("secret")

    types.register_type("fraction", Fraction, fail, fail)
    types.register_type("decimal", Decimal, str, lambda text: text)
    codec = Codec(types=types)
    with pytest.raises(
        CodecError, match=r"^a: the encoder registered for 'fraction' raised ZeroDivisionError$"
    ) as caught:
        codec.encode({"a": Fraction(1)})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(
        CodecError, match=r"^a: the decoder registered for 'fraction' raised ZeroDivisionError$"
    ) as caught:
        codec.begin(raw(1, {}, {"a": [6, "fraction", None]}), ())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(CodecError, match=r"^a: the decoder registered for 'decimal' returned a str$"):
        codec.begin(codec.encode({"a": Decimal(1)}).envelope, ())
    with pytest.raises(CodecError, match=r"^value: the decoder"):
        codec.decode_value(codec.encode_value(Decimal(1)))


def test_a_decoder_runs_only_once_the_buffers_are_there() -> None:
    seen: list[Any] = []
    types = TypeRegistry()

    def decode(value: Any) -> Model:
        seen.append(value)
        return Model("", value)

    types.register_type("model", Model, lambda model: model.weights, decode)
    codec = Codec(types=types)
    encoded = codec.encode({"a": Model("net", bytes(5000))})
    decoding = codec.begin(encoded.envelope, encoded.sizes)
    assert seen == []
    decoding.destinations[0][:] = bytes(5000)
    decoding.finish()
    assert seen == [bytes(5000)]


def test_an_encoder_that_returns_its_own_type_ends() -> None:
    types = TypeRegistry()
    types.register_type("decimal", Decimal, lambda value: value, lambda value: value)
    with pytest.raises(CodecError, match=r"nest deeper than 32"):
        Codec(types=types).encode({"a": Decimal(1)})


def test_a_type_registered_later_is_known_to_codecs_made_before() -> None:
    types = TypeRegistry()
    codec = Codec(types=types)
    with pytest.raises(UnknownTypeError):
        codec.encode({"a": Decimal(1)})
    types.register_type("decimal", Decimal, str, Decimal)
    assert carry_one(Decimal(1), codec) == Decimal(1)


def test_register_type_fills_the_default_registry() -> None:
    class Local:
        pass

    register_type("tests.codec.Local", Local, lambda _value: None, lambda _value: Local())
    assert default_types.for_class(Local) is default_types.for_tag("tests.codec.Local")
    assert isinstance(carry_one([Local()])[0], Local)


@pytest.mark.parametrize(
    "cls",
    [
        int,
        dict,
        object,
        type(None),
        dt.datetime,
        dt.date,
        Shareable,
        StrEnum,
        np.ndarray,
        np.memmap,
        np.float64,
        np.generic,
    ],
)
def test_known_types_cannot_be_registered(cls: type) -> None:
    with pytest.raises(ValueError, match=r"^cls is .*, which the codec knows already"):
        TypeRegistry().register_type("tag", cls, repr, repr)


def test_torch_and_arrow_types_cannot_be_registered() -> None:
    torch = pytest.importorskip("torch")
    pa = pytest.importorskip("pyarrow")
    for cls in (torch.Tensor, torch.nn.Parameter, pa.Table):
        with pytest.raises(ValueError, match=r"^cls is .*, which the codec knows already"):
            TypeRegistry().register_type("tag", cls, repr, repr)


def test_duplicates_are_refused(types: TypeRegistry) -> None:
    with pytest.raises(ValueError, match=r"^tag 'model' is taken by .*Model$"):
        types.register_type("model", Fraction, str, Fraction)
    with pytest.raises(ValueError, match=r"^class .*Model is registered already, as 'model'$"):
        types.register_type("other", Model, repr, Model)  # type: ignore[arg-type]  # never called


@pytest.mark.parametrize("tag", ["", "x" * 65, "é", "a\nb", 1, None])
def test_tags_are_checked(tag: Any) -> None:
    with pytest.raises(ValueError, match=r"^tag is .*, expected 1 to 64 printable ASCII characters$"):
        TypeRegistry().register_type(tag, Fraction, str, Fraction)


def test_arguments_are_checked() -> None:
    wrong: Any = "Fraction"
    with pytest.raises(TypeError, match=r"^cls is 'Fraction', expected a class"):
        TypeRegistry().register_type("tag", wrong, str, Fraction)
    with pytest.raises(TypeError, match=r"^encode and decode of 'tag' are"):
        TypeRegistry().register_type("tag", Fraction, str, wrong)
