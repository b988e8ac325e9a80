"""Small wrong changes to the package, and the tests that have to notice each of them.

``python -m tests.mutants`` makes each change in a copy of the package and runs its tests there. A mutation whose tests
stay green survives: something that the package promises is not tested. ``old`` stands exactly once in its file; whoever
changes that line changes it here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Mutation:
    """One wrong change.

    Attributes:
        file: below ``src/fanstream``.
        old, new: the text that is replaced, and what by.
        breaks: what no longer holds.
        tests: files or folders below ``tests``, of which at least one test has to fail.
    """

    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]


_CORE: Final = ("protocol/test_core.py",)
_SENDER: Final = ("test_contract_sender.py",)
_RECEIVER: Final = ("test_contract_receiver.py",)
_FILE: Final = ("streamers/test_file.py",)
_HOSTILE: Final = ("test_hostile_peers.py",)

MUTATIONS: Final[tuple[Mutation, ...]] = (
    # --- once, in order, from the right one ---
    Mutation(
        "protocol/legs.py",
        "            self._duplicate(seq)\n            return\n",
        "            self._duplicate(seq)\n",
        "an object that comes again is consumed again",
        _CORE,
    ),
    Mutation(
        "protocol/legs.py",
        "            if seq > inbound.expected:\n",
        "            if seq > inbound.expected + 1:\n",
        "a gap in the objects is skipped",
        (*_CORE, "threats/test_t06_reorder_and_gap.py"),
    ),
    Mutation(
        "protocol/legs.py",
        "if seq > self.inbound.expected or seq >= self.sent:  # threat T4",
        "if seq > self.inbound.expected:",
        "a reply to an object that was never sent is delivered",
        ("protocol/test_legs.py",),
    ),
    Mutation(
        "protocol/legs.py",
        "        if seq < self.inbound.expected:\n            self._core.duplicates += 1\n            return\n",
        "        if seq < self.inbound.expected:\n            self._core.duplicates += 1\n",
        "a reply that comes again is delivered again",
        (*_CORE, "threats/test_t04_unasked_reply.py"),
    ),
    Mutation(
        "protocol/legs.py",
        "if seq - self.answered >= self.opening.backlog:",
        "if seq - self.answered > self.opening.backlog:",
        "an opener leaves one more object unanswered than it said",
        (*_CORE, *_HOSTILE),
    ),
    Mutation(
        "protocol/legs.py",
        "                if old >= acked:\n",
        "                if old > acked:\n",
        "a cached reply is dropped before the opener has acknowledged it",
        ("protocol/test_legs.py",),
    ),
    Mutation(
        "connections.py",
        "if opening.opener != core.peer and not through_hub:",
        "if False and not through_hub:",
        "a site opens a stream in another's name",
        ("threats/test_t02_spoofed_name.py",),
    ),
    Mutation(
        "engine.py",
        "        if (opening.opener, opening.stream) in self._known:\n",
        "        if False:\n",
        "a stream's id can be opened twice",
        ("threats/test_t05_replay.py",),
    ),
    # --- names and ways ---
    Mutation(
        "connections.py",
        "elif old.core.session.peer is not None and old.core.session.peer.incarnation == hello.incarnation:",
        "elif old.core.session.peer is not None:",
        "another engine takes the name of one that lives",
        ("test_links.py",),
    ),
    Mutation(
        "connections.py",
        "        if hello.site == self.name:\n",
        "        if False:\n",
        "a site takes the hub's own name",
        ("test_links.py", "threats/test_t02_spoofed_name.py"),
    ),
    Mutation(
        "connections.py",
        "        if old.open and old.core.reads > before:\n",
        "        if old.open:\n",
        "a dead engine keeps its name for ever",
        ("test_links.py",),
    ),
    Mutation(
        "connections.py",
        "if self._closing or self._half_open >= self._settings.limits.half_open:",
        "if self._closing:",
        "any number of links may be half open",
        ("threats/test_t01_unauthenticated_peer.py",),
    ),
    Mutation(
        "connections.py",
        "if link.dialler and hello is not None and hello.hub:",
        "if link.dialler:",
        "what no hub says about other sites is believed",
        ("test_connections.py",),
    ),
    Mutation(
        "connections.py",
        "or link.dialler or through_hub or not self._listen:",
        "or link.dialler or not self._listen:",
        "a stream goes through two hubs",
        ("test_connections.py",),
    ),
    Mutation(
        "sites.py",
        "        self.beyond = {name: via for name, via in self.beyond.items() if via is not link}\n"
        "        if self.direct",
        "        if self.direct",
        "sites beyond a hub that is gone can still be reached",
        ("test_connections.py",),
    ),
    Mutation(
        "sites.py",
        "            if name != own:\n",
        "            if True:\n",
        "a hub leads a site to itself",
        ("test_connections.py",),
    ),
    # --- the session ---
    Mutation(
        "protocol/session.py",
        "        if hello.low > VERSIONS[1] or hello.high < VERSIONS[0]:\n",
        "        if False:\n",
        "a peer of another version is greeted",
        ("threats/test_t05_replay.py",),
    ),
    Mutation(
        "protocol/session.py",
        "        if SITE_NAME.match(hello.site) is None:\n",
        "        if not hello.site:\n",
        "any text is a site's name",
        _CORE,
    ),
    Mutation(
        "protocol/session.py",
        "        if now >= self.last_received + self._silence:\n",
        "        if now > self.last_received + 10 * self._silence:\n",
        "a silent peer is not noticed in time",
        _CORE,
    ),
    Mutation(
        "protocol/session.py",
        "            self.last_sent = now\n            self.ping()\n",
        "            self.last_sent = now\n",
        "no heartbeat is sent",
        _CORE,
    ),
    Mutation(
        "protocol/session.py",
        "            if now >= self._hello_deadline:\n",
        "            if False:\n",
        "a greeting may take for ever",
        _CORE,
    ),
    Mutation(
        "protocol/session.py",
        "return self._admitted and self.state in",
        "return self.state in",
        "a link that is turned away takes streams",
        (*_CORE, "threats/test_t01_unauthenticated_peer.py"),
    ),
    # --- frames ---
    Mutation(
        "protocol/receiving.py",
        "            if length > _SMALLEST_LIMIT and length > sink.limit(kind):\n",
        "            if False:\n",
        "a frame of any length is stored",
        ("protocol/test_receiving.py",),
    ),
    Mutation(
        "protocol/receiving.py",
        "        if size < 1 or size > sink.limit(_CHUNK_TYPE):\n",
        "        if False:\n",
        "a chunk of any length is taken",
        ("protocol/test_receiving.py",),
    ),
    Mutation(
        "protocol/receiving.py",
        "            if trailer:\n",
        "            if False:\n",
        "a trailer is taken for a part of the body",
        ("protocol/test_receiving.py",),
    ),
    Mutation(
        "protocol/core.py",
        "if flags & Flag.CRITICAL or not self.session.accepts_streams or kind in _KNOWN:",
        "if not self.session.accepts_streams or kind in _KNOWN:",
        "a critical frame of an unknown type is skipped",
        _CORE,
    ),
    Mutation(
        "protocol/core.py",
        "        if alias == NO_STREAM or (alias >= self._next_alias if mine else alias > self._last_opened):\n",
        "        if False:\n",
        "frames for streams that never were are taken for late ones",
        _CORE,
    ),
    Mutation(
        "protocol/core.py",
        "alias % 2 == self._next_alias % 2 or alias <= self._last_opened:",
        "alias % 2 == self._next_alias % 2:",
        "an alias is used again",
        (*_CORE, "threats/test_t05_replay.py"),
    ),
    Mutation(
        "protocol/core.py",
        "        if self._peer_streams.get(opening.opener, 0) >= limits.streams:\n",
        "        if False:\n",
        "one site opens any number of streams",
        (*_CORE, "threats/test_t17_open_and_reset_flood.py"),
    ),
    Mutation(
        "protocol/core.py",
        "        if begun is not None and now >= self._frame_deadline(begun):\n",
        "        if False:\n",
        "a frame may take for ever",
        ("threats/test_t15_slow_peer.py",),
    ),
    Mutation(
        "protocol/core.py",
        "        elif self._begun is None or self._frames != reader.frames:\n",
        "        else:\n",
        "each byte gives a frame its whole time anew",
        ("threats/test_t15_slow_peer.py",),
    ),
    # --- credit, grants, budgets ---
    Mutation(
        "protocol/sending.py",
        "            self.credit -= len(head) - HEADER_SIZE  # the window counts bodies\n",
        "",
        "heads that waited for credit do not use it up",
        ("protocol/test_sending.py", "protocol/test_core.py"),
    ),
    Mutation(
        "protocol/sending.py",
        "            self.credit -= size\n            done += size\n",
        "            done += size\n",
        "chunks do not use up credit",
        ("protocol/test_sending.py", "protocol/test_core.py"),
    ),
    Mutation(
        "protocol/sending.py",
        "granted = total + len(envelope) <= SMALL_OBJECT",
        "granted = total <= SMALL_OBJECT + len(envelope)",
        "an object a little too large goes without a grant",
        ("protocol/test_sending.py",),
    ),
    Mutation(
        "protocol/sending.py",
        "        if self._answers > _MOST_ANSWERS:\n",
        "        if False:\n",
        "a peer makes this side hold any number of answers",
        ("threats/test_t26_amplification.py", *_CORE),
    ),
    Mutation(
        "protocol/inbound.py",
        "        if self._landed * 2 >= self._limits.window:\n",
        "        if self._landed > self._limits.window:\n",
        "credit comes back too late, and a sender waits for ever",
        _CORE,
    ),
    Mutation(
        "protocol/inbound.py",
        "        if buffer != arrival.buffer or offset != arrival.offset:\n",
        "        if buffer != arrival.buffer:\n",
        "a chunk lands anywhere in its buffer",
        _CORE,
    ),
    Mutation(
        "protocol/inbound.py",
        "        if size > arrival.sizes[buffer] - offset:\n",
        "        if size > arrival.sizes[buffer]:\n",
        "a chunk goes beyond its buffer",
        ("protocol/test_legs.py",),
    ),
    Mutation(
        "protocol/inbound.py",
        "        if sum(sizes) != total or 0 in sizes:\n",
        "        if 0 in sizes:\n",
        "sizes that do not add up are taken",
        ("protocol/test_legs.py",),
    ),
    Mutation(
        "protocol/inbound.py",
        "        if size > limits.object:\n",
        "        if False:\n",
        "an object of any size is let in",
        _CORE,
    ),
    Mutation(
        "protocol/inbound.py",
        "if self._ahead + size > self.aside:",
        "if False:",
        "data comes ahead of its grant where there is no room",
        (*_CORE, *_HOSTILE),
    ),
    Mutation(
        "protocol/inbound.py",
        "            if size > limits.envelope:\n",
        "            if False:\n",
        "an envelope of any size is decoded",
        (*_CORE, *_HOSTILE),
    ),
    Mutation(
        "protocol/budget.py",
        "        if holder.held == 0:\n            return True\n",
        "",
        "an object larger than its share never comes in",
        ("protocol/test_budget.py", "protocol/test_core.py"),
    ),
    Mutation(
        "protocol/budget.py",
        "        if holder.held:\n            self._give_back(holder, holder.held)\n",
        "",
        "a stream that has ended keeps its share",
        ("protocol/test_budget.py",),
    ),
    Mutation(
        "protocol/budget.py",
        "            if id(holder) in blocked or not self._fits(holder, size):\n",
        "            if not self._fits(holder, size):\n",
        "a small object overtakes a large one of its stream",
        ("protocol/test_budget.py",),
    ),
    Mutation(
        "protocol/budget.py",
        "        if size < least or self._waiting:\n",
        "        if size < least:\n",
        "room is set aside that others wait for",
        ("protocol/test_budget.py",),
    ),
    # --- how a stream ends ---
    Mutation(
        "protocol/legs.py",
        '        if seq > self.sent:\n            raise RemoteProtocolError(f"ENDED after',
        '        if False:\n            raise RemoteProtocolError(f"ENDED after',
        "a site ends after replies to objects that were never sent",
        (*_CORE, "threats/test_t04_unasked_reply.py"),
    ),
    Mutation(
        "protocol/legs.py",
        "        if self.final is not None and seq >= self.final:\n",
        "        if False:\n",
        "objects come after the end",
        ("protocol/test_legs.py",),
    ),
    Mutation(
        "protocol/legs.py",
        "        if withdraw:\n            self.outbound.clear()\n",
        "",
        "objects that were taken back are sent",
        ("protocol/test_legs.py",),
    ),
    Mutation(
        "protocol/legs.py",
        "        if flags & _FINAL:\n            self.final = seq + 1\n",
        "",
        "the last object does not end the stream",
        ("protocol/test_legs.py",),
    ),
    # --- through a hub ---
    Mutation(
        "protocol/relay.py",
        "                other._drop()\n                other._aborted = True\n",
        "                other._aborted = True\n",
        "a hub sends data on that was aborted",
        ("protocol/test_relay.py",),
    ),
    Mutation(
        "protocol/relay.py",
        "        if self._owed > self._window:  # one frame may overdraw it, a second may not\n",
        "        if False:\n",
        "a sender fills a hub without limit",
        (*_CORE, "threats/test_t18_memory.py"),
    ),
    Mutation(
        "protocol/relay.py",
        "            piece = min(size - start, other._core.scheduler.frame)\n",
        "            piece = size - start\n",
        "a hub sends larger chunks on than the next link takes",
        ("protocol/test_relay.py",),
    ),
    Mutation(
        "protocol/relay.py",
        "        self._pool.give(self._window - FIRST_WINDOW)\n",
        "",
        "a hub's room is used up by routes that are gone",
        (*_CORE, "test_links.py", "test_abort.py"),
    ),
    Mutation(
        "protocol/relay.py",
        "        taken = max(0, min(most, self._limit - self.used))\n",
        "        taken = most\n",
        "a hub grants more than it has",
        ("protocol/test_relay.py",),
    ),
    # --- the account of a stream ---
    Mutation(
        "protocol/gather.py",
        "        if name not in waiting:\n            site.late += 1\n",
        "        if False:\n            site.late += 1\n",
        "a late reply is taken for one in time",
        ("protocol/test_gather.py", "test_contract_sender.py"),
    ),
    Mutation(
        "protocol/gather.py",
        "        site.misses = 0\n        site.count(Outcome.REPLIED)\n",
        "        site.count(Outcome.REPLIED)\n",
        "a site is dropped for deadlines that it missed long ago",
        ("protocol/test_gather.py", "test_contract_sender.py"),
    ),
    Mutation(
        "protocol/gather.py",
        "            if site.sent - site.answered >= self._backlog:\n",
        "            if site.sent - site.answered > self._backlog:\n",
        "a site gets one more object than its backlog allows",
        ("protocol/test_gather.py", "test_contract_sender.py"),
    ),
    Mutation(
        "protocol/gather.py",
        "            if flight.replied >= flight.needed or not waiting:\n",
        "            if not waiting:\n",
        "a quorum waits for every site",
        ("protocol/test_gather.py",),
    ),
    Mutation(
        "protocol/gather.py",
        "            if ended != self.objects:\n",
        "            if False:\n",
        "an account that does not balance is not noticed",
        ("protocol/test_gather.py",),
    ),
    Mutation(
        "protocol/gather.py",
        "        elif self._needed is None:\n            flight.needed -= 1\n",
        "",
        "a site that wants no more keeps a gather from being met",
        ("protocol/test_gather.py", "test_contract_sender.py"),
    ),
    # --- the opener's shell ---
    Mutation(
        "outgoing.py",
        "            if flight.waiting and flight.due <= now:\n",
        "            if flight.waiting:\n",
        "one object's deadline ends all of them",
        ("test_outgoing.py",),
    ),
    Mutation(
        "outgoing.py",
        "            if look < self._due:\n",
        "            if True:\n",
        "a later deadline pushes an earlier one away",
        ("test_outgoing.py",),
    ),
    Mutation(
        "outgoing.py",
        '            reply = make_reply(ReturnCode.EXECUTION_RESULT_ERROR, {"reason": str(reply)})\n',
        "            reply = make_reply(ReturnCode.OK)\n",
        "a reply that cannot be decoded is OK",
        ("test_outgoing.py",),
    ),
    Mutation(
        "outgoing.py",
        "        brought = headers.pop(_PEER_PROPS, None) if _PEER_PROPS in headers else None\n",
        "        brought = None\n",
        "one site's props are sent to the others",
        ("test_outgoing.py",),
    ),
    Mutation(
        "outgoing.py",
        "        with anyio.move_on_after(self._options.end_timeout):\n",
        "        if True:\n",
        "the end of a stream waits for ever",
        _SENDER,
    ),
    Mutation(
        "outgoing.py",
        "site.misses >= policy.n and",
        "site.misses > policy.n and",
        "a straggler may miss one deadline more",
        _SENDER,
    ),
    Mutation(
        "engine.py",
        "                    await stream.end(withdraw=work.value is not None)\n",
        "                    await stream.end(withdraw=False)\n",
        "a value from the producer takes nothing back",
        _SENDER,
    ),
    # --- the receiver's shell ---
    Mutation(
        "incoming.py",
        "            self._leg.release(arrived.size)\n",
        "",
        "an object that was consumed keeps its room",
        ("test_contract_receiver.py", "test_links.py", "test_contract_sender.py"),
    ),
    Mutation(
        "incoming.py",
        "            if self._queue or self._in_hand:\n",
        "            if self._queue:\n",
        "a consumer at work counts as idle",
        ("test_incoming.py",),
    ),
    Mutation(
        "deadlines.py",
        "            if callback is not None:  # an earlier one of this batch may have cancelled it\n",
        "            if True:\n",
        "a deadline that was cancelled in its own batch is called",
        ("test_deadlines.py",),
    ),
    Mutation(
        "deadlines.py",
        "        if heap[0][2] is deadline:\n            self._on_earlier()\n",
        "",
        "an earlier deadline is missed",
        ("test_deadlines.py",),
    ),
    # --- the codec ---
    Mutation(
        "codec/decode.py",
        "        if depth >= self._depth_limit:\n",
        "        if False:\n",
        "containers nest without limit",
        ("threats/test_t14_bombs.py", "codec/test_codec.py"),
    ),
    Mutation(
        "codec/decode.py",
        "        if len(value) != len(keys):\n",
        "        if False:\n",
        "a dict has equal keys",
        ("codec/test_decode.py",),
    ),
    Mutation(
        "codec/decode.py",
        "        if size is not None and announced != size:\n",
        "        if False:\n",
        "an array is received into a buffer of another size",
        ("codec/test_decode.py", "codec/test_arrays.py", "codec/test_codec.py"),
    ),
    Mutation(
        "codec/decode.py",
        "        if not isinstance(value, entry.cls):\n",
        "        if False:\n",
        "a registered type's decoder returns anything",
        ("codec/test_types.py",),
    ),
    Mutation(
        "codec/codec.py",
        "                if _encode(parts) != raw:\n",
        "                if False:\n",
        "a flat envelope need not be in its shortest form",
        ("codec/test_decode.py", "codec/test_codec.py"),
    ),
    Mutation(
        "codec/scan.py",
        "                    if nodes > limit:\n",
        "                    if False:\n",
        "an envelope holds any number of values",
        ("codec/test_scan.py", "threats/test_t14_bombs.py"),
    ),
    Mutation(
        "codec/tables.py",
        "        table.validate(full=True)\n",
        "",
        "an Arrow table's offsets lead outside its memory",
        ("codec/test_tables.py",),
    ),
    Mutation(
        "codec/tables.py",
        "        if _field(metadata, batch, _COMPRESSION):\n",
        "        if False:\n",
        "compressed batches are unpacked to any size",
        ("threats/test_t13_decompression.py",),
    ),
    Mutation(
        "codec/memory.py",
        "        lease = block[:]\n",
        "        lease = block\n",
        "memory is never used again",
        ("codec/test_memory.py",),
    ),
    # --- files ---
    Mutation(
        "streamers/file.py",
        '        if not self._size == self._announced == part.get("size"):\n',
        "        if False:\n",
        "a file that is too short is kept",
        _FILE,
    ),
    Mutation(
        "streamers/file.py",
        "not secrets.compare_digest(digest, self._hash.digest()):",
        "not digest:",
        "a file with another digest is kept",
        _FILE,
    ),
    Mutation(
        "streamers/file.py",
        "        if self._size > self._announced:\n",
        "        if False:\n",
        "more is written than was announced",
        _FILE,
    ),
    Mutation(
        "streamers/file.py",
        "os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr",
        "os.O_WRONLY | os.O_CREAT | getattr",
        "a file that is there is written over",
        ("threats/test_t19_received_paths.py",),
    ),
    Mutation(
        "streamers/file.py",
        "        if not 0 <= size <= self._max_size:\n",
        "        if size < 0:\n",
        "a file of any size is taken",
        _FILE,
    ),
    Mutation(
        "streamers/file.py",
        "                if self._name and not self._kept:\n",
        "                if False:\n",
        "a file that failed is left behind",
        _FILE,
    ),
    Mutation(
        "streamers/file.py",
        "        os.fsync(self._file)\n",
        "",
        "a file is acknowledged before it is on the disk",
        ("threats/test_t19_received_paths.py",),
    ),
    # --- transports ---
    Mutation(
        "transports/sockets.py",
        "chmod(stat.S_IRUSR | stat.S_IWUSR)",
        "chmod(0o666)",
        "any user of the machine connects to a Unix socket",
        ("threats/test_t01_unauthenticated_peer.py",),
    ),
    Mutation(
        "transports/sockets.py",
        "    if not allow_plain and not is_loopback(host):\n",
        "    if False:\n",
        "plain TCP leaves the machine without being asked for",
        ("test_links.py", "transports"),
    ),
    Mutation(
        "transports/sockets.py",
        "        if not stat.S_ISSOCK(Path(path).stat().st_mode):\n",
        "        if not Path(path).stat():\n",
        "a file at a socket's path is removed",
        ("test_links.py",),
    ),
    # --- the threats ---
    Mutation(
        "protocol/session.py",
        "        if (self.state, kind) not in self.TRANSITIONS:\n",
        "        if False:\n",
        "before the greeting any frame is read",
        ("threats/test_t01_unauthenticated_peer.py",),
    ),
    Mutation(
        "protocol/session.py",
        'room = min(room, _AMPLIFICATION * self.received - len(_goaway(code, "")) - 2)',
        "room = min(room, 5000)",
        "a stranger hears more than it has paid for",
        ("threats/test_t26_amplification.py",),
    ),
    Mutation(
        "protocol/session.py",
        "{hello.site[:_SHOWN]!r}",
        "{hello.site!r}",
        "what a stranger says is logged at any length",
        ("threats/test_t26_amplification.py",),
    ),
    Mutation(
        "protocol/resets.py",
        "len(times) > self._most and times[0]",
        "False and times[0]",
        "streams are reset without end",
        ("threats/test_t17_open_and_reset_flood.py",),
    ),
    Mutation(
        "protocol/resets.py",
        "times[0] > now - self._window",
        "times[0] > -self._window",
        "resets of long ago count for ever",
        ("threats/test_t17_open_and_reset_flood.py",),
    ),
    Mutation(
        "protocol/legs.py",
        "if not self.answered and self.state is LegState.OPEN:",
        "if self.state is LegState.OPEN:",
        "streams that were consumed count as reset",
        ("threats/test_t17_open_and_reset_flood.py",),
    ),
    Mutation(
        "protocol/relay.py",
        "if not (other._replies or other._aborted):",
        "if False:",
        "a hub forwards a flood of resets",
        ("threats/test_t17_open_and_reset_flood.py",),
    ),
    Mutation(
        "protocol/budget.py",
        "if taken > self._unasked_limit or",
        "if",
        "one site's small objects fill the memory",
        ("threats/test_t18_memory.py",),
    ),
    Mutation(
        "protocol/inbound.py",
        "        if lacking > 0 and not self._budget",
        "        if False and not self._budget",
        "small objects are not counted",
        ("threats/test_t18_memory.py",),
    ),
    Mutation(
        "protocol/legs.py",
        "            self.inbound.unasked -= size + UNASKED_COST\n        if size <= UNCHARGED",
        "            pass\n        if size <= UNCHARGED",
        "small objects that were consumed still count",
        ("threats/test_t18_memory.py",),
    ),
    Mutation(
        "streamers/beneath.py",
        'or ".." in named.parts',
        "",
        "a path leads out of its root",
        ("threats/test_t20_sent_paths.py",),
    ),
    Mutation(
        "streamers/beneath.py",
        "inside = os.O_RDONLY | os.O_NOFOLLOW |",
        "inside = os.O_RDONLY |",
        "a link leads out of a root",
        ("threats/test_t20_sent_paths.py",),
    ),
    Mutation(
        "streamers/file.py",
        "        os.link(old, new, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)\n",
        "        os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)\n        return\n",
        "a received file replaces another",
        ("threats/test_t19_received_paths.py",),
    ),
    Mutation(
        "streamers/file.py",
        "        except OSError as exc:  # a full disk",
        "        except ZeroDivisionError as exc:  # a full disk",
        "a full disk is told without a reason",
        ("threats/test_t21_full_disk.py",),
    ),
    Mutation(
        "transports/sockets.py",
        "_ACCEPT_PAUSE: Final = 0.5",
        "_ACCEPT_PAUSE: Final = 0.0",
        "a listener without descriptors spins",
        ("threats/test_t22_out_of_descriptors.py",),
    ),
    Mutation(
        "transports/sockets.py",
        "        if not self._told:\n",
        "        if True:\n",
        "a listener without descriptors floods the log",
        ("threats/test_t22_out_of_descriptors.py",),
    ),
    Mutation(
        "transports/sockets.py",
        "    except OSError as exc:  # threat T22: out of file descriptors\n",
        "    except ZeroDivisionError as exc:\n",
        "dialling without descriptors ends for good",
        ("threats/test_t22_out_of_descriptors.py",),
    ),
    Mutation(
        "codec/decode.py",
        'in a value with tag {node[0]}") from None',
        'in a value with tag {node[0]}") from exc',
        "an error shows what cannot be decoded",
        ("threats/test_t24_logs.py",),
    ),
    Mutation(
        "protocol/events.py",
        'f"{name}=<{len(value)} bytes>" if isinstance(value, bytes) else',
        "",
        "an event's repr shows its content",
        ("threats/test_t24_logs.py",),
    ),
)
