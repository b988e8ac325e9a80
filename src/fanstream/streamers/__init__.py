"""Ready-made streams: files, containers and tensors, each with its sending function and its registration."""

from __future__ import annotations

from .container import register_containers, stream_container
from .file import FileStreamer, ReceivedFile, register_files, stream_file
from .tensors import TensorProducer, register_tensors, stream_tensors

__all__ = [
    "FileStreamer",
    "ReceivedFile",
    "TensorProducer",
    "register_containers",
    "register_files",
    "register_tensors",
    "stream_container",
    "stream_file",
    "stream_tensors",
]
