"""NVIDIA FLARE: its ObjectStreamer, over its AuxRunner and a Cell in each process.

Settings: all of FLARE's own stack as it is, with the plain tcp driver and no TLS; around it stands only what its
ServerEngine and ClientEngine would do for a streamer. An object is bytes in a Shareable, larger ones are objects of 16
MiB. It is lock step by design: the next object leaves when every site has answered the last, so the window of the work
is not used.

FLARE keeps a thread for each reply for 65 seconds (2.9.0), and slows down as they gather: runs are kept short, so that
what is measured is FLARE at its start.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from nvflare.apis.fl_constant import FLContextKey, ProcessType, ReturnCode
from nvflare.apis.fl_context import FLContextManager
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.apis.streaming import ConsumerFactory, ObjectConsumer, ObjectProducer, StreamableEngine
from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.app_common.decomposers import common_decomposers
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import CellChannel, MessageHeaderKey
from nvflare.fuel.f3.cellnet.defs import ReturnCode as CellReturnCode
from nvflare.fuel.f3.cellnet.utils import new_cell_message
from nvflare.fuel.utils.network_utils import get_open_ports
from nvflare.private.aux_runner import AuxMsgTarget, AuxRunner
from nvflare.private.stream_runner import ObjectStreamer

from . import MIB, Assembly, Opener, Work

LOOP: Final = "asyncio"

CHANNEL, TOPIC, JOINED = "bench", "data", "joined"
TIMEOUT: Final = 120.0


class Engine(StreamableEngine):
    """What a streamer needs of FLARE's engines."""

    def __init__(self, name: str, url: str, process_type: str) -> None:
        self._signal = Signal()
        self._contexts = FLContextManager(
            engine=self,
            identity_name=name,
            job_id="bench",
            public_stickers={},
            private_stickers={FLContextKey.PROCESS_TYPE: process_type},
        )
        self._cell = Cell(name, url, secure=False, credentials={})
        self.aux = AuxRunner(self)
        self.streamer = ObjectStreamer(self.aux)
        self._cell.register_request_cb(channel=CellChannel.AUX_COMMUNICATION, topic="*", cb=self._dispatch)

    def _dispatch(self, request: Any) -> Any:
        with self.new_context() as context:
            topic = request.get_header(MessageHeaderKey.TOPIC)
            reply = new_cell_message({}, self.aux.dispatch(topic=topic, request=request.payload, fl_ctx=context))
            reply.set_header(MessageHeaderKey.RETURN_CODE, CellReturnCode.OK)
            return reply

    def start(self) -> None:
        """Listen, or connect."""
        self._cell.core_cell.start()

    def get_cell(self) -> Any:
        """What the AuxRunner asks for."""
        return self._cell

    def new_context(self) -> Any:
        """Make a context that has the run's abort signal."""
        context = self._contexts.new_context()
        context.put(FLContextKey.RUN_ABORT_SIGNAL, self._signal, private=True, sticky=False)
        return context

    def stream_objects(
        self,
        channel: str,
        topic: str,
        stream_ctx: dict[str, Any],
        targets: list[str],
        producer: Any,
        fl_ctx: Any,
        optional: bool = False,
        secure: bool = False,
    ) -> Any:
        """Stream, blocking."""
        return self.streamer.stream(
            channel, topic, stream_ctx, as_targets(targets), producer, fl_ctx, secure=secure, optional=optional
        )

    def register_stream_processing(
        self,
        channel: str,
        topic: str,
        factory: Any,
        stream_done_cb: Any = None,
        consumed_cb: Any = None,
        **cb_kwargs: Any,
    ) -> None:
        """Register a consumer factory."""
        self.streamer.register_stream_processing(channel, topic, factory, stream_done_cb, consumed_cb, **cb_kwargs)

    def shutdown_streamer(self) -> None:
        """End the streamer's threads."""
        self.streamer.shutdown()

    def stop(self) -> None:
        """End everything."""
        self.shutdown_streamer()
        self._cell.core_cell.stop()


def as_targets(names: list[str]) -> list[Any]:
    """Sites as the AuxRunner names them."""
    return [AuxMsgTarget(name, name) for name in names]


class Repeat(ObjectProducer):
    """Sends one object a number of times, and insists on every reply."""

    def __init__(self, pieces: list[bytes], count: int) -> None:
        self._pieces = pieces
        self._left = count * len(pieces)

    def produce(self, stream_ctx: Any, fl_ctx: Any) -> tuple[Any, float]:
        self._left -= 1
        obj = Shareable()
        obj["x"], obj["last"] = self._pieces[-1 - self._left % len(self._pieces)], self._left == 0
        return obj, TIMEOUT

    def process_replies(self, replies: dict[str, Any], stream_ctx: Any, fl_ctx: Any) -> Any:
        if any(reply.get_return_code() != ReturnCode.OK for reply in replies.values()):
            return False
        return True if self._left == 0 else None


class Take(ObjectConsumer):
    """Takes an object and says that it did."""

    def __init__(self) -> None:
        self._assembly = Assembly()

    def consume(self, shareable: Any, stream_ctx: Any, fl_ctx: Any) -> tuple[bool, Any]:
        self._assembly.take(shareable["x"])
        return not shareable["last"], make_reply(ReturnCode.OK)


class Takers(ConsumerFactory):
    """Makes a consumer for each stream."""

    def get_consumer(self, stream_ctx: Any, fl_ctx: Any) -> Any:
        return Take()


class FlareOpener(Opener):
    """Streams to sites."""

    piece = 16 * MIB

    def __init__(self, engine: Engine, address: str, sites: int) -> None:
        self.address = address
        self._engine = engine
        self._names = [f"site-{index + 1}" for index in range(sites)]

    async def wait_for_sites(self) -> None:
        missing = self._names
        # A request waits for its site no longer than a moment, and sites start in their own time.
        while missing:
            replies = self._engine.aux.send_aux_request(
                as_targets(missing), JOINED, Shareable(), 2.0, self._engine.new_context(), optional=True
            )
            missing = [
                name for name in missing if name not in replies or replies[name].get_return_code() != ReturnCode.OK
            ]

    async def run(self, work: Work) -> None:
        rc, _ = self._engine.stream_objects(
            CHANNEL,
            TOPIC,
            {},
            self._names[: work.sites],
            Repeat(self.pieces(work), work.count),
            self._engine.new_context(),
        )
        if rc != ReturnCode.OK:
            raise RuntimeError(f"the stream ended {rc}")


def _start(name: str, url: str, process_type: str) -> Engine:
    logging.basicConfig(level=logging.ERROR)
    flare_decomposers.register()
    common_decomposers.register()
    return Engine(name, url, process_type)


@asynccontextmanager
async def opener(sites: int, transport: str) -> AsyncIterator[Opener]:
    """Run the cell that listens."""
    address = f"tcp://localhost:{get_open_ports(1)[0]}"
    engine = _start("server", address, ProcessType.SERVER_PARENT)
    engine.start()
    yield FlareOpener(engine, address, sites)
    engine.stop()
    os._exit(0)  # FLARE's pools have threads that keep a process from ending


@asynccontextmanager
async def site(address: str, index: int) -> AsyncIterator[None]:
    """Run a cell that connects."""
    engine = _start(f"site-{index + 1}", address, ProcessType.CLIENT_PARENT)
    engine.register_stream_processing(CHANNEL, TOPIC, Takers())
    engine.aux.register_aux_message_handler(JOINED, lambda topic, request, fl_ctx: make_reply(ReturnCode.OK))
    engine.start()
    yield
    engine.stop()
    os._exit(0)
