"""How long does it take to encode and decode a model of 200 float32 arrays, 1 GiB in all, and in how much memory?

fanstream's codec beside safetensors, and msgpack with the arrays' bytes inline (what many a framework does). None of
them runs what it reads, and each gives arrays back. fanstream's decoding has two parts: ``begin`` allocates the
destinations, into which a socket then receives, and ``finish`` makes arrays of them; the receiving is not counted, and
the destinations are not touched. Its rows therefore say what encoding adds to moving the bytes, while the others' hold
at least one copy of them.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import msgspec
import numpy as np

from fanstream import Shareable
from fanstream.codec import Codec

from .harness.figures import GIB, MIB, add_rounds, arguments, say, spread
from .harness.usage import Meter

Model = dict[str, np.ndarray[Any, Any]]
Pair = tuple[Callable[[Model], Any], Callable[[Any], Any]]


def fanstream_codec() -> Pair:
    codec = Codec()

    def encode(model: Model) -> Any:
        return codec.encode(Shareable(model))

    def decode(encoded: Any) -> Shareable:
        return codec.begin(encoded.envelope, encoded.sizes).finish()

    return encode, decode


def inline_msgpack() -> Pair:
    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder()

    def encode(model: Model) -> bytes:
        return encoder.encode({name: (array.dtype.str, array.shape, array.data) for name, array in model.items()})

    def decode(data: bytes) -> Model:
        found = decoder.decode(data)
        return {name: np.frombuffer(raw, dtype).reshape(shape) for name, (dtype, shape, raw) in found.items()}

    return encode, decode


def safetensors() -> Pair:
    from safetensors.numpy import load, save

    return save, load


CODECS: dict[str, Callable[[], Pair]] = {
    "fanstream": fanstream_codec,
    "msgpack, inline": inline_msgpack,
    "safetensors": safetensors,
}


def timed(function: Callable[[Any], Any], argument: Any) -> tuple[Any, float, float]:
    """Call a function once.

    Returns:
        What it returned, the seconds, and the MiB by which this process grew at the peak.
    """
    gc.collect()
    meter = Meter(os.getpid())
    meter.reset_peak()
    held = meter.resident()
    started = time.perf_counter()
    result = function(argument)
    seconds = time.perf_counter() - started
    return result, seconds, (meter.peak() - held) / MIB


def main() -> None:
    parser = arguments(__doc__)
    add_rounds(parser, 3)
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    size = 8 * MIB if options.quick else GIB
    model: Model = {f"w{number}": np.full(size // 800, number, np.float32) for number in range(200)}
    pairs = {
        name: make() for name, make in CODECS.items() if name != "safetensors" or find_spec("safetensors") is not None
    }

    figures: dict[str, dict[str, list[float]]] = {name: {} for name in pairs}
    for _ in range(options.rounds):
        for name, (encode, decode) in pairs.items():
            encoded, seconds, growth = timed(encode, model)
            decoded, seconds_back, growth_back = timed(decode, encoded)
            if any(array.shape != decoded[key].shape for key, array in model.items()):
                raise RuntimeError(f"{name}: what came back is not what was encoded")
            found = {
                "encode_ms": seconds * 1000,
                "decode_ms": seconds_back * 1000,
                "encode_growth_mib": growth,
                "decode_growth_mib": growth_back,
            }
            del encoded, decoded
            for figure, value in found.items():
                figures[name].setdefault(figure, []).append(value)
    rows = [
        {"codec": name, "mib": size // MIB, **{figure: spread(values) for figure, values in each.items()}}
        for name, each in figures.items()
    ]
    say("encoding", options, rows, distributions=["safetensors"])


if __name__ == "__main__":
    main()
