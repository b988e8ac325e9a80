from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanstream.codec import Codec, Encoded
from fanstream.codec.scan import count_nodes
from fanstream.errors import CodecError, UnknownTypeError
from fanstream.options import Limits
from fanstream.shareable import ReturnCode, Shareable, make_reply

from .carrying import CODEC, carry, carry_one, names, raw, receive, same, values

# Nothing but the smallest buffers inline, so that every kind of value is also seen out of band.
APART = Codec(Limits(inline=0))


def test_importing_the_codec_imports_no_tensor_library() -> None:
    code = "import sys, fanstream.codec; print(sorted({'numpy', 'torch', 'pyarrow'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# -- what arrives is what was sent -----------------------------------------------------------------------------------


@given(st.dictionaries(names(), values(), max_size=4))
def test_every_object_arrives_as_it_was_sent(data: dict[str, Any]) -> None:
    for codec in (CODEC, APART):
        received = carry(data, codec)
        assert type(received) is Shareable
        assert received.pop("__headers__") == {}
        assert same(dict(received), data)


@given(values(), values())
def test_headers_and_data_travel_together(header: Any, item: Any) -> None:
    sent = Shareable({"item": item})
    sent.set_header("header", header)
    received = carry(sent, APART)
    assert same(received.headers, {"header": header})
    assert same(received["item"], item)


@given(values())
def test_a_value_travels_alone(value: Any) -> None:
    assert same(CODEC.decode_value(CODEC.encode_value(value)), value)
    assert same(APART.decode_value(APART.encode_value(value)), value)


def test_an_empty_shareable_is_an_empty_envelope() -> None:
    for empty in (Shareable(), {}, {"__headers__": None}):
        assert CODEC.encode(empty).envelope == b""
    for envelope in (b"", raw(0, {}, {}), raw(1, {}, {})):
        received = CODEC.begin(envelope, ()).finish()
        assert received == Shareable()
        assert received.get_return_code() == ReturnCode.OK


def test_two_empty_objects_share_nothing() -> None:
    CODEC.begin(b"", ()).finish().set_return_code(ReturnCode.ERROR)
    assert CODEC.begin(b"", ()).finish().headers == {}


def test_a_flat_object_takes_the_flat_form() -> None:
    sent = make_reply(ReturnCode.TIMEOUT, {"tries": 3})
    sent |= {"none": None, "bool": True, "int": -(1 << 63), "float": 0.5, "str": "é", "bytes": b"\0"}
    encoded = CODEC.encode(sent)
    assert encoded.envelope[:2] == b"\x93\0"
    received = receive(encoded)
    assert received == sent
    assert type(received.get_return_code()) is str


def test_data_without_headers_are_flat_too() -> None:
    encoded = CODEC.encode({"round": 1})
    assert encoded.envelope == raw(0, {}, {"round": 1})
    assert receive(encoded) == Shareable({"round": 1})


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1, "\ud800", [1], 1j, np.float64(1), "x" * 4097, b"x" * 4097])
def test_what_is_not_flat_takes_the_tree_form(value: Any) -> None:
    encoded = CODEC.encode({"value": value})
    assert encoded.envelope[:2] == b"\x93\1"
    assert same(receive(encoded)["value"], value)


def test_the_flat_form_yields_when_it_grows_large() -> None:
    sent = {str(index): bytes([index]) * 4096 for index in range(100)}
    encoded = CODEC.encode(sent)
    assert len(encoded.envelope) < 40_000
    assert dict(receive(encoded)) == sent | {"__headers__": {}}


def test_entries_keep_their_order_after_the_headers() -> None:
    assert list(carry({"b": 1, "a": [2], "c": 3})) == ["__headers__", "b", "a", "c"]


def test_a_nested_shareable_stays_one() -> None:
    inner = make_reply(ReturnCode.ERROR)
    inner["weights"] = [1, 2]
    received = carry_one({"inner": inner})["inner"]
    assert type(received) is Shareable
    assert received == inner


def test_a_derived_shareable_and_other_mappings_arrive_as_a_shareable() -> None:
    class Model(Shareable):
        __slots__ = ()

    assert carry(Model({"a": [1]})) == Shareable({"a": [1]})
    assert carry(OrderedDict(a=[1])) == Shareable({"a": [1]})


def test_string_enums_arrive_as_strings() -> None:
    class Phase(StrEnum):
        TRAIN = "train"

    received = carry({Phase.TRAIN: [Phase.TRAIN, ReturnCode.OK], "flat": Phase.TRAIN})
    assert received["train"] == ["train", "OK"]
    assert [type(key) for key in received] == [str, str, str]
    assert {type(item) for item in received["train"]} == {str}


def test_top_level_keys_need_not_be_strings() -> None:
    assert carry({1: "one", "two": 2, (3, b"x"): [3]}) == {"__headers__": {}, 1: "one", "two": 2, (3, b"x"): [3]}  # type: ignore[dict-item]


@pytest.mark.parametrize("count", [1000, 2500])
def test_a_state_dict_of_many_small_arrays_fits(count: int) -> None:
    sent = {f"blocks.{index}.norm.weight": np.full(32, index, np.float32) for index in range(count)}
    encoded = CODEC.encode({"weights": sent})
    assert len(encoded.envelope) <= Limits().envelope
    assert len(encoded.buffers) < count
    assert same(receive(encoded)["weights"], sent)


# -- ownership -------------------------------------------------------------------------------------------------------


def test_buffers_are_the_senders_own_memory() -> None:
    array = np.arange(10_000, dtype=np.float32)
    columns = np.asfortranarray(array.reshape(100, 100))
    blob = bytes(5000)
    encoded = CODEC.encode({"a": array, "b": blob, "c": memoryview(blob), "d": columns})
    first, second, third, fourth = (np.frombuffer(view, np.uint8) for view in encoded.buffers)
    assert np.shares_memory(first, array)
    assert np.shares_memory(second, np.frombuffer(blob, np.uint8))
    assert np.shares_memory(third, second)
    assert np.shares_memory(fourth, columns)
    array[0] = 7
    assert first[:4].tobytes() == np.float32(7).tobytes()
    assert encoded.sizes == (40_000, 5000, 5000, 40_000)


def test_a_copy_keeps_nothing_of_the_senders_memory() -> None:
    array = np.zeros(10_000, np.uint8)
    blob = bytearray(10_000)
    encoded = CODEC.encode({"a": array, "b": blob, "c": memoryview(blob), "d": array[::2]}, copy=True)
    array[:] = 1
    blob[:] = b"\1" * len(blob)
    blob.append(1)  # nothing holds on to it either
    received = receive(encoded)
    assert not received["a"].any()
    assert received["b"] == bytearray(10_000)
    assert received["c"] == bytes(10_000)


@pytest.mark.parametrize("size", [10, 10_000])
def test_received_values_are_private_and_writable(size: int) -> None:
    encoded = CODEC.encode({"array": np.zeros(size, np.uint8), "blob": bytearray(size)})
    first, second = receive(encoded), receive(encoded)
    first["array"][:] = 1
    first["blob"][0] = 1
    assert not second["array"].any()
    assert second["blob"] == bytearray(size)


def test_destinations_are_the_arrays_memory() -> None:
    encoded = CODEC.encode({"a": np.zeros(5000, np.uint8), "b": bytes(5000)})
    decoding = CODEC.begin(encoded.envelope, encoded.sizes)
    first, second = decoding.destinations
    first[:] = b"\1" * 5000
    second[:] = b"\2" * 5000
    received = decoding.finish()
    assert np.shares_memory(received["a"], np.frombuffer(first, np.uint8))
    assert np.shares_memory(np.frombuffer(received["b"], np.uint8), np.frombuffer(second, np.uint8))
    assert received["b"] == b"\2" * 5000
    assert hash(received["b"]) == hash(b"\2" * 5000)


def test_a_destination_outlives_its_object() -> None:
    # An aborted stream drops its object while a read into it may still be under way.
    encoded = CODEC.encode({"a": bytes(100_000), "b": np.zeros(100_000, np.uint8)})
    views = CODEC.begin(encoded.envelope, encoded.sizes).destinations
    for view in views:
        view[:] = b"\5" * len(view)
        assert bytes(view) == b"\5" * len(view)


def test_payloads_show_no_content() -> None:
    encoded = CODEC.encode({"secret": "hunter2", "big": bytes(5000)})
    assert repr(encoded) == f"<Encoded envelope={len(encoded.envelope)} buffers=1 total=5000>"
    assert repr(CODEC.begin(encoded.envelope, encoded.sizes)) == "<Decoding destinations=1>"


@pytest.mark.parametrize("value", [{}, {"a": 1}, {"a": [1]}, {"a": bytes(5000)}])
def test_finishing_twice_is_refused(value: dict[str, Any]) -> None:
    encoded = CODEC.encode(value)
    decoding = CODEC.begin(encoded.envelope, encoded.sizes)
    decoding.finish()
    with pytest.raises(RuntimeError, match=r"called before"):
        decoding.finish()


# -- errors name the place -------------------------------------------------------------------------------------------


class Colour(IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        ({"weights": {"layer1": [OrderedDict()]}}, "weights['layer1'][0]", "collections.OrderedDict is not in the reg"),
        ({"a": {1: {"b": Colour.RED}}}, "a[1]['b']", "send its .value"),
        ({"a": ({object()},)}, "a[0]{}", "type object is not in the registry"),
        ({"a": np.array([None])}, "a", "arrays of Python objects do not travel"),
        ({"a": [0, np.zeros(2, "i4,f4")]}, "a[1]", "structured and void arrays"),
        ({"a": {"b": np.zeros(2, np.longdouble)}}, "a['b']", "send float64"),
        ({"a": np.clongdouble(1)}, "a", "long double"),
        ({"a": np.ma.masked_array([1])}, "a", "MaskedArray is not in the registry"),
        ({"a": {1.5: 1}}, "a[float]", "a key of type float"),
        ({"a": {(1, (2.5,)): 1}}, "a[(1, (2.5,))]", "a key of type float"),
        ({"__headers__": {"h": [object()]}}, "__headers__['h'][0]", "type object"),
        ({"__headers__": [1]}, "__headers__", "headers are a list, expected a dict"),
        ({"a": [make_reply("OK", {"x": object()})]}, "a[0]['__headers__']['x']", "type object"),
        ({"a": {"k" * 500: object()}}, "a['" + "k" * 76 + "...]", "type object"),
        ({"two\nlines": object()}, "'two\\nlines'", "type object"),
    ],
)
def test_an_unknown_type_is_refused_by_its_path(value: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(UnknownTypeError) as caught:
        CODEC.encode(value)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_derived_type_gets_a_hint() -> None:
    with pytest.raises(UnknownTypeError, match=r"^a: type .*OrderedDict .* derived from dict: send a plain dict"):
        CODEC.encode({"a": OrderedDict()})


def test_a_value_is_named_by_its_owner() -> None:
    with pytest.raises(UnknownTypeError, match=r"^stream_ctx\['a'\]: type object") as caught:
        CODEC.encode_value({"a": object()}, name="stream_ctx")
    assert caught.value.path == "stream_ctx['a']"
    with pytest.raises(CodecError, match=r"^stream_ctx: cannot be decoded"):
        CODEC.decode_value(b"\xc1", name="stream_ctx")


@pytest.mark.parametrize("value", [None, 1, "text", [("a", 1)]])
def test_an_object_is_a_mapping(value: Any) -> None:
    with pytest.raises(CodecError, match=r"expected a Shareable or another mapping"):
        CODEC.encode(value)


def test_header_names_are_strings() -> None:
    with pytest.raises(CodecError, match=r"^__headers__: the names of headers have to be str"):
        CODEC.encode({"__headers__": {1: 2}})


def test_an_object_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(CodecError, match=r"^a\[0\]\[0\].*: containers nest deeper than 32, or one contains itself"):
        CODEC.encode({"a": loop})


def test_a_released_memoryview_is_refused() -> None:
    view = memoryview(b"abc")
    view.release()
    with pytest.raises(CodecError, match=r"^a: the memoryview cannot be read"):
        CODEC.encode({"a": view})


# -- limits, each at its edge ----------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_depth() -> None:
    codec = Codec(Limits(depth=5))
    assert carry_one(nested(4), codec) == nested(4)
    with pytest.raises(CodecError, match=r"^a.* containers nest deeper than 5"):
        codec.encode({"a": nested(5)})
    with pytest.raises(CodecError, match=r"^a.* containers nest deeper than 5$"):
        codec.begin(CODEC.encode({"a": nested(5)}).envelope, ())
    assert codec.decode_value(codec.encode_value(nested(5))) == nested(5)
    with pytest.raises(CodecError, match=r"deeper than 5"):
        codec.encode_value(nested(6))


def test_nodes() -> None:
    # An array, a form, two maps, a key, a list with its tag, and 93 numbers.
    codec = Codec(Limits(nodes=100))
    assert carry_one([300] * 93, codec) == [300] * 93
    with pytest.raises(
        CodecError, match=r"^value: the object holds at least 101 values, limit 100: send numbers as an"
    ):
        codec.encode({"value": [300] * 94})
    with pytest.raises(CodecError, match=r"the envelope holds at least 101 values, limit 100"):
        codec.begin(CODEC.encode({"value": [300] * 94}).envelope, ())


@given(st.dictionaries(names(), values(), max_size=3))
def test_both_sides_count_alike(data: dict[str, Any]) -> None:
    data |= {"tree": [1]}
    encoded = APART.encode(data)
    nodes = count_nodes(encoded.envelope, len(encoded.envelope))
    exact, short = (Codec(Limits(inline=0, nodes=limit)) for limit in (nodes, nodes - 1))
    assert exact.encode(data).envelope == encoded.envelope
    exact.begin(encoded.envelope, encoded.sizes)
    with pytest.raises(CodecError, match=rf"values, limit {nodes - 1}"):
        short.encode(data)
    with pytest.raises(CodecError, match=rf"values, limit {nodes - 1}"):
        short.begin(encoded.envelope, encoded.sizes)


def test_envelope() -> None:
    codec = Codec(Limits(envelope=1024))
    sent = {f"key {index:03}": [index] for index in range(70)}
    assert carry(sent, codec) == Shareable(sent)
    sent |= {f"key {index:03}": [index] for index in range(70, 100)}
    with pytest.raises(CodecError, match=r"the envelope is \d+ bytes, limit 1024; it holds all keys"):
        codec.encode(sent)
    with pytest.raises(CodecError, match=r"the envelope is \d+ bytes, limit 1024"):
        codec.begin(CODEC.encode(sent).envelope, ())


def test_buffers() -> None:
    codec = Codec(Limits(buffers=3))
    assert carry({"a": [bytes(5000)] * 3}, codec)["a"] == [bytes(5000)] * 3
    with pytest.raises(CodecError, match=r"^a\[3\]: the object has more than 3 buffers"):
        codec.encode({"a": [bytes(5000)] * 4})
    with pytest.raises(CodecError, match=r"4 buffers announced, limit 3"):
        codec.begin(CODEC.encode({"a": [bytes(5000)] * 4}).envelope, (5000,) * 4)


def test_object() -> None:
    codec = Codec(Limits(object=65_536))
    overhead = len(CODEC.encode({"a": bytes(5000)}).envelope)
    most = 65_536 - overhead
    assert carry_one(bytes(most - 4), codec) == bytes(most - 4)
    assert len(codec.encode({"a": bytes(most)}).buffers) == 1
    with pytest.raises(CodecError, match=r"the object is at least 65537 bytes, limit 65536"):
        codec.encode({"a": bytes(most + 1)})
    with pytest.raises(CodecError, match=r"^a\['b'\]\[1\]: the object is at least 80000 bytes, limit 65536"):
        codec.encode({"a": {"b": [bytes(40_000), np.zeros(10_000, np.float32)]}})
    encoded = CODEC.encode({"a": bytes(most + 1)})
    with pytest.raises(CodecError, match=r"the object is 65537 bytes, limit 65536"):
        codec.begin(encoded.envelope, encoded.sizes)


def test_inline() -> None:
    codec = Codec(Limits(inline=100))
    for value in (b"x" * 100, "x" * 100, bytearray(100), np.zeros(100, np.uint8), "é" * 50, memoryview(bytes(100))):
        assert codec.encode({"a": value}).buffers == ()
    for value in (b"x" * 101, "x" * 101, bytearray(101), np.zeros(101, np.uint8), "é" * 51, memoryview(bytes(101))):
        assert len(codec.encode({"a": [value]}).buffers) == 1
    assert len(codec.encode({"a": b"x" * 101}).buffers) == 1
    assert len(codec.encode({"a": "x" * 101}).buffers) == 1


def test_the_limit_of_a_value() -> None:
    assert CODEC.decode_value(CODEC.encode_value(bytes(100), limit=102), limit=102) == bytes(100)
    for too_much in (bytes(101), [None] * 110, "é" * 60):
        with pytest.raises(CodecError, match=r"^end_result: .*limit 102"):
            CODEC.encode_value(too_much, limit=102, name="end_result")
    with pytest.raises(CodecError, match=r"at least 1000000 bytes, limit 262144"):
        CODEC.encode_value({"a": [bytes(1_000_000)]})
    with pytest.raises(CodecError, match=r"101 bytes, limit 100"):
        CODEC.decode_value(bytes(101), limit=100)


def test_a_huge_int_is_refused_before_it_is_written_out() -> None:
    with pytest.raises(CodecError, match=r"^a: an int of \d+ bytes, limit 262144"):
        CODEC.encode({"a": 1 << 10_000_000})


# -- what does not fit its sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((), "names more buffers than the 0 announced"),
        ((20_000,), "names more buffers than the 1 announced"),
        ((20_000, 5000, 1), "names 2 buffers of 3 announced"),
        ((20_001, 5000), "buffer 0 has 20001 bytes, its descriptor asks for 20000"),
        ((0, 5000), "buffer 0 is announced with 0 bytes"),
        ((20_000, -5000), "buffer 1 is announced with -5000 bytes"),
        ((20_000, True), "buffer 1 is announced with True bytes"),
        ((20_000, 1 << 80), "the object is .* bytes, limit"),
    ],
)
def test_sizes_have_to_match(sizes: tuple[int, ...], message: str) -> None:
    encoded = CODEC.encode({"a": np.zeros(5000, np.float32), "b": bytes(5000)})
    with pytest.raises(CodecError, match=message):
        CODEC.begin(encoded.envelope, sizes)


def test_an_empty_or_flat_envelope_has_no_buffers() -> None:
    for envelope in (b"", raw(0, {}, {"a": 1}), raw(0, {}, {})):
        with pytest.raises(CodecError, match=r"."):
            CODEC.begin(envelope, (1,))


def test_nothing_is_allocated_before_everything_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_args: Any) -> None:
        raise AssertionError("allocated")

    envelope = raw(1, {}, {"a": [17, "|u1", None, 1 << 30], "b": [99]})
    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", allocate)
        with pytest.raises(UnknownTypeError, match=r"^b: tag 99"):
            CODEC.begin(envelope, (1 << 30,))


def test_memory_that_is_not_there_is_an_error_of_this_object() -> None:
    size = 1 << 62
    codec = Codec(Limits(object=1 << 63))
    with pytest.raises(CodecError, match=r"no memory for an object of"):
        codec.begin(raw(1, {}, {"a": [10]}), (size,))


def test_one_codec_object_serves_all() -> None:
    first, second = CODEC.encode({"a": [bytes(5000)]}), CODEC.encode({"b": [bytearray(6000)]})
    assert isinstance(first, Encoded)
    assert receive(second) == Shareable({"b": [bytearray(6000)]})
    assert receive(first) == Shareable({"a": [bytes(5000)]})


@pytest.mark.parametrize(
    ("value", "slow"),
    [
        ("x" * 70_000, True),
        (bytes(70_000), False),
        (bytearray(70_000), False),
        (np.zeros(2_000_000, np.uint8), False),
        (np.zeros(70_000, bool), False),
        (np.zeros(2_000_000, bool), True),
        (np.zeros(300_000, "<U1"), True),
    ],
)
def test_what_has_to_be_looked_through_once_it_is_there_is_slow(value: Any, slow: bool) -> None:
    encoded = CODEC.encode({"a": value})
    assert CODEC.begin(encoded.envelope, encoded.sizes).slow is slow
