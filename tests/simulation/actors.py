"""Producers and consumers that do as a scenario says, write down what happens to them, and object to what must not."""

from __future__ import annotations

import random
from typing import Any, Final

import anyio

from fanstream import (
    ConsumerFactory,
    FLContext,
    ObjectConsumer,
    ObjectProducer,
    Shareable,
    StreamContext,
    StreamContextKey,
    StreamEngine,
    StreamResult,
    make_reply,
)
from tests.simulation.scenario import SiteScript, StreamScript

BASE: Final = random.Random(0).randbytes(500_000)

ENGINES_OWN: Final = frozenset(
    ("TIMEOUT", "COMMUNICATION_ERROR", "TOPIC_UNKNOWN", "TASK_ABORTED", "SERVICE_UNAVAILABLE")
)
"""Codes that no consumer here gives: in a reply, they say that the site gave none."""


class ScriptedError(Exception):
    """What an actor raises because its script says so."""


def data(number: int, seq: int, size: int, direction: int) -> bytes:
    begin = (number * 7919 + seq * 10_477 + direction * 99_991) % 250_000
    return BASE[begin : begin + size]


class Book:
    """What is written down of one stream in one life of a site.

    Attributes:
        dead: the site has crashed: whatever it still does was never done.
        log: what was called, in order.
        consumed: numbers of the objects whose ``consume`` began.
        answered: how many of them returned a reply.
        rc: the code that ``finalize`` found.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.consumed: list[int] = []
        self.answered = 0
        self.rc: str | None = None
        self.contexts: set[int] = set()
        self.running = False
        self.dead = False


class Actors:
    """All that is known about one stream while it runs.

    Attributes:
        number: the stream's.
        books: by site, one for each of its lives.
        heard: by site, the objects whose replies the application has seen.
        opener: in its life that has it under way.
        resumed: this is not its first.
        judged: how many objects the application has judged, in any life of the opener.
        garbled: a bit has been flipped on some link: what comes need not be what was sent.
        objections: what must not happen, and did.
    """

    def __init__(self, number: int, script: StreamScript, objections: list[str]) -> None:
        self.number = number
        self.script = script
        self.objections = objections
        self.sites = dict(script.sites)
        self.books: dict[str, list[Book]] = {name: [] for name in self.sites}
        self.result: StreamResult | None = None
        self.stopped = False  # aborted, cancelled, or ended by an exception
        self.heard: dict[str, set[int]] = {name: set() for name in self.sites}
        self.opener: StreamEngine | None = None
        self.resumed = False
        self.judged = 0
        self.said_end = False  # an application has said that there are no more, or why to end
        self.value: Any = None  # what it has ended the stream with, in any life of the opener
        self.garbled = False
        self.producer: Producer
        self.produce_from(0)

    def produce_from(self, first: int) -> None:
        """Begin with a new producer: the opener's application has just been started."""
        self.resumed = self.opener is not None
        self.producer = (Watcher if self.script.watching else Producer)(self, first)

    @property
    def begun(self) -> bool:
        """Whether anything of it has happened at a site, or its producer has ended it."""
        return self.said_end or self.producer.raised or any(one.log for books in self.books.values() for one in books)

    def object(self, what: str) -> None:
        self.objections.append(f"stream {self.number}: {what}")


class Producer(ObjectProducer):
    """Makes what the script says.

    Attributes:
        made: objects that ``produce`` returned.
        seen: the codes of the replies to each object, by site.
        first: the object that a resumed stream begins with.
        exhausted: ``produce`` has said that there are no more.
        value: what ``process_replies`` ended the stream with.
    """

    def __init__(self, actors: Actors, first: int = 0) -> None:
        self.actors = actors
        self.script = actors.script
        self.first = first
        self.dead = False  # the opener has crashed
        self.sought: list[int] = []
        self.made = first
        self.seen: list[dict[str, str]] = []
        self.offered: dict[str, list[int]] = {}
        self.exhausted = False
        self.value: Any = None
        self.raised = False
        self.busy: set[str] = set()

    def enter(self, what: str) -> None:
        if what in self.busy or (self.script.window == 1 and self.busy):
            self.actors.object(f"{what} while {self.busy} runs")
        self.busy.add(what)

    @property
    def judged(self) -> int:
        """The number of the next object to be judged."""
        return self.first + len(self.seen)

    async def seek(self, seq: int, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        self.sought.append(seq)
        if self.sought != [self.first] or self.made != self.first:
            self.actors.object(f"sought {self.sought} of a stream that goes on at {self.first}, {self.made} were made")

    async def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, Any]:
        self.enter("produce")
        try:
            return await self.make()
        finally:
            self.busy.discard("produce")

    async def make(self, *, ahead: bool = False) -> tuple[Shareable | None, Any]:
        script, seq = self.script, self.made
        if self.exhausted or self.value is not None:
            self.actors.object("produce after the end")
        if seq - self.judged > script.window - 1 and not ahead:
            self.actors.object(f"produce of object {seq} after {self.judged} were judged")
        if script.makes[seq]:
            await anyio.sleep(script.makes[seq])
        if seq == len(script.sizes):
            self.exhausted = self.actors.said_end = True
            return None, 0
        if seq == script.at and script.ending in ("raise in produce", "wrong type", "bad timeout"):
            self.raised = True
            if script.ending == "raise in produce":
                raise ScriptedError("produce")
            if script.ending == "wrong type":
                return 5  # type: ignore[return-value]  # on purpose
            return Shareable({"n": seq}), -1.0
        self.made += 1
        return Shareable({"n": seq, "data": data(self.actors.number, seq, script.sizes[seq], 0)}), script.timeouts[seq]

    async def process_replies(self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        self.enter("process_replies")
        try:
            return await self.judge(replies)
        finally:
            self.busy.discard("process_replies")

    async def judge(self, replies: dict[str, Shareable]) -> Any:
        script, seq = self.script, self.judged
        if seq >= self.made or self.value is not None:
            self.actors.object(f"process_replies {seq} of {self.made} objects, after {self.value}")
        self.seen.append({site: reply.get_return_code() for site, reply in replies.items()})
        for site, reply in replies.items():
            if reply.get_return_code() in ("OK", "EMPTY_RESULT"):
                self.check(site, seq, reply)
        if script.judges[seq]:
            await anyio.sleep(script.judges[seq])
        if not self.dead:
            self.actors.judged = max(self.actors.judged, seq + 1)
        if seq != script.at or script.ending not in ("value", "false value", "raise in judge"):
            return None
        if script.ending == "raise in judge":
            self.raise_in_judge()
        self.value = script.ending == "value"
        self.actors.said_end = True
        self.actors.value = self.value
        return self.value

    def raise_in_judge(self) -> None:
        self.raised = True
        raise ScriptedError("judge")

    def check(self, site: str, seq: int, reply: Shareable) -> None:
        if not self.dead:
            self.actors.heard[site].add(seq)
        if self.actors.garbled:
            return
        size = self.actors.sites[site].reply_sizes[seq]
        if reply["n"] != seq or reply["data"] != data(self.actors.number, seq, size, 1):
            self.actors.object(f"{site} replied to object {reply['n']}, taken for {seq}")


class Watcher(Producer):
    """The same, and it looks at replies as they come."""

    async def process_reply(
        self, site: str, seq: int, reply: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> None:
        offered = self.offered.setdefault(site, [])
        if offered and seq != offered[-1] + 1:
            self.actors.object(f"reply {seq} of {site} was offered after {offered}")
        offered.append(seq)
        if reply.get_return_code() in ("OK", "EMPTY_RESULT"):
            self.check(site, seq, reply)

    process_late_reply = process_reply


class Factory(ConsumerFactory):
    """Makes the consumer of one stream at one site, and writes its book."""

    def __init__(self, actors: Actors, site: str) -> None:
        self.actors = actors
        self.site = site
        self.script: SiteScript = actors.sites[site]
        self.book = Book()
        actors.books[site].append(self.book)

    def note(self, what: str, fl_ctx: FLContext) -> None:
        if self.book.running:
            self.actors.object(f"{what} at {self.site} while consume runs")
        self.book.log.append(what)
        self.book.contexts.add(id(fl_ctx))

    async def act(self, what: str) -> None:
        if self.script.fails == f"raise in {what}":
            raise ScriptedError(what)
        if self.script.fails == f"slow {what}":
            await anyio.sleep(0.5)
        if self.script.fails == f"hang in {what}":
            await anyio.sleep_forever()

    def may_consume(self, seq: int) -> bool:
        """Whether an object is the next; after a crash, the one that was the last then may be consumed again."""
        if self.book.consumed:
            return seq == self.book.consumed[-1] + 1
        before = [book.consumed[-1] for book in self.actors.books[self.site] if book.consumed]
        return seq in (before[-1], before[-1] + 1) if before else seq == 0

    async def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        self.note("get_consumer", fl_ctx)
        self.kept = fl_ctx  # so that its id stays its own
        await self.act("get_consumer")
        return Consumer(self)

    async def done(self, stream_ctx: StreamContext, fl_ctx: FLContext, **kwargs: Any) -> Any:
        self.note("done", fl_ctx)
        await self.act("done")
        return self.script.end_result

    async def return_consumer(self, consumer: ObjectConsumer, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        self.note("return_consumer", fl_ctx)
        await self.act("return")


class Consumer(ObjectConsumer):
    """Consumes as the script says."""

    def __init__(self, factory: Factory) -> None:
        self.factory = factory

    async def consume(
        self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> tuple[bool, Shareable]:
        factory = self.factory
        book, script, actors = factory.book, factory.script, factory.actors
        seq = stream_ctx[StreamContextKey.SEQ] if actors.garbled else shareable["n"]
        if book.dead:
            await anyio.sleep_forever()
        if book.running or "finalize" in book.log or not factory.may_consume(seq):
            actors.object(f"consume of {seq} at {factory.site} after {book.consumed}, {book.log}")
        if seq in actors.heard[factory.site]:
            actors.object(f"{factory.site} consumes {seq}, to which its reply was heard, once more")
        if seq != stream_ctx[StreamContextKey.SEQ]:
            actors.object(f"object {seq} came to {factory.site} as number {stream_ctx[StreamContextKey.SEQ]}")
        if not actors.garbled and shareable["data"] != data(actors.number, seq, actors.script.sizes[seq], 0):
            actors.object(f"object {seq} came to {factory.site} as another")
        book.consumed.append(seq)
        book.running = True
        try:
            if script.delays[seq]:
                await anyio.sleep(script.delays[seq])
            if seq == script.at:
                await factory.act("consume")
                if script.fails in ("end in consume", "end and answer"):
                    stream_ctx[StreamContextKey.END_STREAM](script.ends_with)
                    if script.fails == "end in consume":
                        await anyio.sleep_forever()
                if script.fails == "nonsense":
                    return 5  # type: ignore[return-value]  # on purpose
        finally:
            book.running = False
        reply = make_reply("OK")
        leaves = seq == script.at and script.fails == "leave"
        if leaves:
            reply = make_reply(script.leaves_with)
        reply["n"] = seq
        reply["data"] = data(actors.number, seq, script.reply_sizes[seq], 1)
        if book.dead:
            await anyio.sleep_forever()
        book.answered += 1
        return not leaves, reply

    async def finalize(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        self.factory.book.rc = stream_ctx["__RC__"]
        self.factory.note("finalize", fl_ctx)
        await self.factory.act("finalize")
