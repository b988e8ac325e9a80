"""T13: nothing that a peer sends is decompressed, so that nothing can unfold."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from fanstream.errors import CodecError
from tests.codec.carrying import CODEC, raw

SOURCE = Path(__file__).parents[2] / "src"

DECOMPRESSORS = frozenset(
    {
        "blosc",
        "blosc2",
        "brotli",
        "bz2",
        "compression",
        "cramjam",
        "gzip",
        "lz4",
        "lzma",
        "snappy",
        "tarfile",
        "zipfile",
        "zlib",
        "zopfli",
        "zstandard",
        "zstd",
    }
)


def imports(source: str) -> set[str]:
    """The packages that *source* imports, at its top or anywhere within."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize(
    "folder", sorted(path.name for path in (SOURCE / "fanstream").iterdir() if path.is_dir() and path.name[0] != "_")
)
def test_no_package_can_decompress(folder: str) -> None:
    for path in (SOURCE / "fanstream" / folder).rglob("*.py"):
        assert imports(path.read_text(encoding="utf-8")) & DECOMPRESSORS == set(), path


def test_no_module_of_the_top_level_can_either() -> None:
    for path in (SOURCE / "fanstream").glob("*.py"):
        assert imports(path.read_text(encoding="utf-8")) & DECOMPRESSORS == set(), path


@pytest.mark.parametrize(
    "source", ["import zlib", "def f():\n    from zstandard import ZstdDecompressor", "import lz4.frame as x"]
)
def test_what_decompresses_is_found(source: str) -> None:
    assert imports(source) & DECOMPRESSORS


# --- Arrow's streams could be compressed ---


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_a_compressed_table_is_refused_before_it_is_unpacked(compression: str, dictionary: bool) -> None:
    pa = pytest.importorskip("pyarrow")
    column = pa.array(["x" * 100_000] * 20)
    sent = pa.table({"a": column.dictionary_encode() if dictionary else column})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, sent.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as stream:
        stream.write_table(sent)
    packed = sink.getvalue().to_pybytes()
    decoding = CODEC.begin(raw(1, {}, {"a": [23, None]}), (len(packed),))
    decoding.destinations[0][:] = packed
    with pytest.raises(CodecError, match=r"^a: an Arrow table") as caught:
        decoding.finish()
    assert "compressed" in str(caught.value.__cause__)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("inline", [False, True])
def test_what_would_unfold_a_thousandfold_takes_no_memory(compression: str, inline: bool) -> None:
    pa = pytest.importorskip("pyarrow")
    sent = pa.table({"a": np.zeros(1_000_000, np.uint8)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, sent.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as stream:
        stream.write_table(sent)
    packed = sink.getvalue().to_pybytes()
    assert len(packed) * 100 < sent.nbytes
    sizes = () if inline else (len(packed),)
    before = pa.total_allocated_bytes()
    with pytest.raises(CodecError, match=r"^a: an Arrow table"):
        unpack(raw(1, {}, {"a": [23, packed if inline else None]}), sizes, packed)
    assert pa.total_allocated_bytes() - before < 100_000


def unpack(envelope: bytes, sizes: tuple[int, ...], packed: bytes) -> None:
    decoding = CODEC.begin(envelope, sizes)
    for destination in decoding.destinations:
        destination[:] = packed
    decoding.finish()
