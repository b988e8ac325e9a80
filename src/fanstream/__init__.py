"""fanstream: streams of objects from one site to many, for federated learning, on asyncio."""

from .abort import AbortSignal
from .codec import register_type
from .context import FLContext, StreamContext, StreamContextKey
from .engine import StreamEngine
from .options import Drop, EngineSettings, Limits, Quorum, StreamOptions
from .shareable import ReturnCode, Shareable, make_copy, make_reply
from .streaming import (
    ConsumedCallback,
    ConsumerFactory,
    ObjectConsumer,
    ObjectProducer,
    SiteResult,
    StreamableEngine,
    StreamDoneCallback,
    StreamResult,
    stream_done_cb_signature,
)

__all__ = [
    "AbortSignal",
    "ConsumedCallback",
    "ConsumerFactory",
    "Drop",
    "EngineSettings",
    "FLContext",
    "Limits",
    "ObjectConsumer",
    "ObjectProducer",
    "Quorum",
    "ReturnCode",
    "Shareable",
    "SiteResult",
    "StreamContext",
    "StreamContextKey",
    "StreamDoneCallback",
    "StreamEngine",
    "StreamOptions",
    "StreamResult",
    "StreamableEngine",
    "make_copy",
    "make_reply",
    "register_type",
    "stream_done_cb_signature",
]
