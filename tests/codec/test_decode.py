from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fanstream.codec import Codec
from fanstream.errors import CodecError, UnknownTypeError

from .carrying import CODEC, raw


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ([], "neither a plain value nor a map nor a tagged array"),
        (["x"], "neither a plain value"),
        ([True], "neither a plain value"),
        ([None], "neither a plain value"),
        ([1.0], "neither a plain value"),
        (msgspec.msgpack.Ext(5, b"x"), "neither a plain value"),
        ({1: 2}, "a map has a key that is not a str"),
        ({"x": {b"y": 2}}, "a map has a key that is not a str"),
        ([2, [0]], "cannot be hashed"),
        ([2, [2]], "cannot be hashed"),
        ([2, {}], "cannot be hashed"),
        ([2, 1, 1], "a set with equal members"),
        ([3, 0, False], "a set with equal members"),
        ([4, 1], "a dict ends with a key"),
        ([4, 1, 2, 1, 3], "a dict with equal keys"),
        ([4, 1.5, 2], "a key that is no str"),
        ([4, [0], 2], "a key that is no str"),
        ([4, [1, [1, 1.5]], 2], "a key that is no str"),
        ([4, [], 2], "a key that is no str"),
        ([4, [9, None], 2], "a key that is no str"),
        ([4, [9, [10]], 2], "a key that is no str"),
        ([4, {}, 2], "a key that is no str"),
        ([5, {}], "a Shareable without headers or data"),
        ([5, [0], {}], "headers that are no map"),
        ([5, {}, [0]], "the data of a Shareable are no dict"),
        ([5, {}, None], "the data of a Shareable are no dict"),
        ([5, {}, {"__headers__": {}}], "headers among the data"),
        ([6], "without tag or content"),
        ([6, 1, 2], "without tag or content"),
        ([7], "a large int without its bytes"),
        ([7, 5], "a large int without its bytes"),
        ([7, b"\1"], "not in its shortest form"),
        ([7, bytes(20)], "not in its shortest form"),
        ([7, bytes(8) + b"\1\0"], "not in its shortest form"),
        ([8, 1, 2], "a complex number without its parts"),
        ([8, 1.0], "a complex number without its parts"),
        ([9, b"plain"], "a plain str that is spelt as one with surrogates"),
        ([9, b"\xff"], "not UTF-8 with surrogates"),
        ([9, "x"], "a str where a bytes belongs"),
        ([9, None], "a NoneType where a bytes belongs"),
        ([9], "holds 0 nodes, expected 1"),
        ([10], "names more buffers than the 0 announced"),
        ([11], "names more buffers than the 0 announced"),
        ([10, 1], "holds 1 nodes, expected none"),
        ([12], "a bytearray without content"),
        ([12, "x"], "a bytearray without content"),
        ([12, None], "names more buffers"),
        ([17, "<f4", None, 3], "names more buffers"),
        ([24], "tag 24 is not known to this version"),
        ([-1], "tag -1 is not known to this version"),
        ([1 << 63], "tag 9223372036854775808 is not known"),
    ],
)
def test_malformed_nodes_are_refused_by_their_path(node: Any, message: str) -> None:
    envelope = raw(1, {"h": 1}, {"a": {"b": [0, 1, node]}})
    with pytest.raises(CodecError, match=r"^a\['b'\]\[1\].*: .*" + message):
        CODEC.begin(envelope, ())
    with pytest.raises(CodecError, match=r"^__headers__\['a'\].*: .*" + message):
        CODEC.begin(raw(1, {"a": node}, {}), ())
    with pytest.raises(CodecError, match=r"^end_result.*: .*" + message):
        CODEC.decode_value(msgspec.msgpack.encode(node), name="end_result")


@pytest.mark.parametrize(
    "envelope",
    [
        *(b"\xc0", b"\x93", b"\x90", b"\0", b"\x93\0", b"\xc1", b"\x93\1\x80\x80\xc0", b"\x93\0\x80\x80\xc0"),
        *(raw(0), raw(0, {}), raw(0, {}, {}, {}), raw(2, {}, {}), raw(True, {}, {}), raw("0", {}, {}), raw(-1, {}, {})),
        *(
            raw(0, {}, []),
            raw(0, [], {}),
            raw(0, {}, {"a": []}),
            raw(0, {"a": {}}, {}),
            raw(0, {}, {1: 1}),
            raw(0, {1: 1}, {}),
        ),
        *(raw(0, {}, {"__headers__": 1}), raw(1, {}, {"__headers__": {}}), raw(1, {}, [4, "__headers__", 1])),
        *(raw(1, {}, []), raw(1, {}, [0]), raw(1, [4, 1, 1], {}), raw(1, {}, None), raw(1, None, {})),
        *(b"\x93\0\x80\x81\xa1\xff\1", b"\x93\0\x80\x81\xa1a\xa1\xff", b"\x93\1\x80\x81\xa1a\x92\0\xa1\xff"),
        msgspec.msgpack.encode({"a": 1}),
        b"\x93\0\x80\x81\xa1a\xd6\xff\0\0\0\0",  # a timestamp, which the decoder would turn into a datetime
        b"\x93\1\x80\x81\xa1a\xd6\xff\0\0\0\0",
    ],
)
def test_malformed_envelopes_are_refused(envelope: bytes) -> None:
    with pytest.raises(CodecError):
        CODEC.begin(envelope, ())
    with pytest.raises(CodecError):
        CODEC.begin(envelope, (5000,))


def test_an_unknown_tag_may_come_from_a_newer_version() -> None:
    with pytest.raises(UnknownTypeError) as caught:
        CODEC.begin(raw(1, {}, {"a": {"b": [200]}}), ())
    assert caught.value.path == "a['b']"


def test_a_text_that_is_not_utf8() -> None:
    encoded = CODEC.encode({"a": ["x" * 5000]})
    decoding = CODEC.begin(encoded.envelope, encoded.sizes)
    decoding.destinations[0][:] = b"x" * 4999 + b"\xff"
    with pytest.raises(CodecError, match=r"^a\[0\]: a text of 5000 bytes is not UTF-8: .* at byte 4999$"):
        decoding.finish()


def test_buffers_that_turn_out_wrong_at_the_end() -> None:
    def finish(node: Any, *contents: bytes) -> Any:
        decoding = CODEC.begin(raw(1, {}, {"a": node}), tuple(map(len, contents)))
        for destination, content in zip(decoding.destinations, contents, strict=True):
            destination[:] = content
        return decoding.finish()["a"]

    assert finish([2, [10], [10]], b"x", b"y") == {b"x", b"y"}
    with pytest.raises(CodecError, match=r"^a: malformed envelope: a set with equal members"):
        finish([2, [10], [10]], b"x", b"x")
    with pytest.raises(CodecError, match=r"^a: .* cannot be hashed"):
        finish([2, [12, None]], b"x")
    with pytest.raises(CodecError, match=r"^a: malformed envelope: a plain str"):
        finish([9, [10]], b"plain")
    with pytest.raises(CodecError, match=r"^a: malformed envelope: a str where a bytes belongs"):
        finish([9, [11]], b"plain")


@pytest.mark.parametrize(
    "flat",
    [
        b"\x93\0\x80\x81\xa1a\xcc\1",
        b"\x93\0\x80\x81\xa1a\xd9\1b",
        b"\x93\0\x80\x81\xd9\1a\1",
        b"\x93\0\x80\x82\xa1a\1\xa1a\2",
        b"\x93\0\xde\0\0\x81\xa1a\1",
        b"\xdc\0\3\0\x80\x81\xa1a\1",
    ],
    ids=["int", "text", "key", "equal keys", "headers", "array"],
)
def test_a_flat_envelope_has_one_form_whichever_way_it_is_decoded(flat: bytes) -> None:
    for decode in (CODEC.decode, lambda envelope: CODEC.begin(envelope, ()).finish()):
        with pytest.raises(CodecError, match="shortest form"):
            decode(flat)


def test_a_missing_library_is_a_codec_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a machine without pyarrow: the name resolves to None, and importing it fails.
    import sys

    from fanstream.codec import decode

    monkeypatch.delitem(decode._HANDLERS, 23, raising=False)
    monkeypatch.delitem(sys.modules, "fanstream.codec.tables", raising=False)
    import fanstream.codec as package

    monkeypatch.delattr(package, "tables", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CodecError, match=r"^a: a value of pyarrow was received, and pyarrow cannot be imported here"):
        Codec().begin(raw(1, {}, {"a": [23, b""]}), ())
