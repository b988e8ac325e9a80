"""fanstream: streams of objects from one site to many, for federated learning, on asyncio."""

from typing import TYPE_CHECKING

from .abort import AbortSignal
from .codec import register_type
from .context import FLContext, StreamContext, StreamContextKey
from .engine import StreamEngine
from .policies import Drop, Quorum
from .shareable import ReturnCode, Shareable, make_copy, make_reply
from .streaming import (
    ConsumedCallback,
    ConsumerFactory,
    ObjectConsumer,
    ObjectProducer,
    SeekableProducer,
    SiteResult,
    StreamableEngine,
    StreamDoneCallback,
    StreamResult,
    stream_done_cb_signature,
)

if TYPE_CHECKING:
    from .options import EngineSettings, Limits, StreamOptions
else:

    def __getattr__(name):
        """Load the settings once one is asked for: pydantic takes longer than all the rest of this package."""
        if name not in {"EngineSettings", "Limits", "StreamOptions"}:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import options

        return getattr(options, name)


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
    "SeekableProducer",
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
