"""Ready-made streams: files, containers and tensors, each with its sending function and its registration.

A sending function takes the engine first, then what ``StreamEngine.stream_objects`` takes, with what is to be sent in
the place of the producer:

- ``channel``, ``topic``, ``targets``, ``fl_ctx``: as there;
- ``stream_ctx``: reaches every receiver once; empty when None;
- ``timeout``: how long a site may take to answer one object, and to work with the whole at the last one; seconds, or a
  timedelta;
- ``optional``, ``secure``: as there;
- ``options``: as there; a window of 8 when None, since no reply decides what is sent next. With a gather other than
  ``"all"`` the stream ends once the last gather is complete, and slower sites are cancelled.

It returns how the stream ended, and each site's reply to the last object, by the site's name; a site that refused an
object before has that reply there, whose header ``reason`` says why. A wrong argument is a ``TypeError`` or
``ValueError`` before anything is sent; whatever else ``stream_objects`` raises, it raises too.

A registration takes the receiving site's engine, channel and topic as in ``StreamEngine.register_stream_processing``,
and the function that gets each whole: ``(whole, stream_ctx, fl_ctx)``, async, or sync and then called in a worker
thread. What it returns is the reply to the last object; None means OK. What is not whole, or larger than is accepted,
is answered with ``BAD_REQUEST_DATA`` and never reaches the function.
"""

from __future__ import annotations

from .container import register_containers, stream_container
from .file import ReceivedFile, register_files, stream_file
from .tensors import TensorProducer, register_tensors, stream_tensors

__all__ = [
    "ReceivedFile",
    "TensorProducer",
    "register_containers",
    "register_files",
    "register_tensors",
    "stream_container",
    "stream_file",
    "stream_tensors",
]
