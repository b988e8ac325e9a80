"""What an application asks for when it opens a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..options import StreamOptions


@dataclass(frozen=True, slots=True)
class Request:
    """One stream, as it was asked for, and checked.

    Attributes:
        channel, topic: the stream's address.
        targets: site names.
        options: how the stream runs.
        optional: sites that do not take the stream are skipped.
        secure: the stream is sealed; ``OutgoingStream.seal_with`` is called before it is opened.
    """

    channel: str
    topic: str
    targets: Sequence[str]
    options: StreamOptions
    optional: bool = False
    secure: bool = False
