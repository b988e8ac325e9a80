"""What can be set: per stream (StreamOptions), per engine (EngineSettings), and the limits that protect it (Limits).

All are frozen, refuse unknown keys, and are read once at the edge. Sizes are in bytes, times in seconds.

What runs on these models gets them handed in, and imports this module no sooner than it makes or checks one: pydantic
takes longer to load than all the rest of ``import fanstream``.
"""

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .arguments import LONGEST_TIMEOUT
from .policies import Gather, Straggler

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

WIDEST: Final = 4096  # objects: the largest window

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_LARGEST: Final = 2**63 - 1  # what HELLO can say of a window


@runtime_checkable
class Judge(Protocol):
    """A policy that was made in code: ``fanstream.security.Policy``, which needs ``fanstream[security]``."""

    def judge_stream(self, opener: Any, target: Any, channel: str, topic: str) -> Any:
        """Say whether a stream may be opened."""


PolicySource = Path | Judge


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, defer_build=True)


class StreamOptions(_Frozen):
    """How one outgoing stream runs, beyond the arguments of ``stream_objects``.

    Attributes:
        window: how many objects may be in flight: produced and not yet through ``process_replies``.
        gather: when an object's gather is complete: ``"all"`` sites, the ``"first"``, or ``Quorum(k)``; or at its
            deadline.
        straggler: what happens to a site that stays behind: ``"wait"`` for it (up to *stall_timeout*), or ``Drop(n)``.
        max_lag: how far beyond the window a site's unanswered objects may pile up before it holds the stream; None
            means the window again.
        stall_timeout: how long a site at that limit may hold the stream before it is dropped.
        progress_timeout: how long a site may take for an object beyond what its pace so far makes of the object's size,
            and without a byte of the stream moving; then it has timed out before the object's own timeout, which stays
            the longest it may take. None: the object's timeout alone counts.
        end_timeout: how long the sites' acknowledgements of the end are waited for.
        connect_grace: how long a site that is not reachable yet is waited for at the start; 0 does not wait.
        resume_window: how long the way to a site may stay broken before the stream is lost there; 0 loses it at once.
        copy_objects: take a private copy of an object's buffers when it is encoded, so that they may be changed at
            once. Its alias, and its name in the constructor, is ``copy``.
        timeout: an object's timeout where the producer names none (the plain shapes).
        durable: keep how far the stream is in ``EngineSettings.journal``, so that the next life of this engine can
            resume it; needs a producer with ``seek``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, populate_by_name=True)

    window: Annotated[int, Field(ge=1, le=WIDEST)] = 1
    gather: Gather = "all"
    straggler: Straggler = "wait"
    max_lag: Annotated[int, Field(ge=0, le=WIDEST)] | None = None
    stall_timeout: Seconds = 60.0
    progress_timeout: Seconds | None = None
    end_timeout: Seconds = 10.0
    connect_grace: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    resume_window: Annotated[float, Field(ge=0, le=LONGEST_TIMEOUT)] = 60.0
    copy_objects: Annotated[bool, Field(alias="copy")] = False
    timeout: Annotated[float, Field(gt=0, le=LONGEST_TIMEOUT)] = 60.0
    durable: bool = False

    @model_validator(mode="after")
    def _resumable(self) -> Self:
        if self.durable and not self.resume_window:
            raise ValueError(
                "durable is True and resume_window 0: the sites would not wait for this engine's next life"
            )
        return self

    @property
    def backlog(self) -> int:
        """The most objects that one site may leave unanswered."""
        return self.window + (self.window if self.max_lag is None else self.max_lag)


class Limits(_Frozen):
    """What a peer may make this engine hold, parse or wait for.

    Attributes:
        frame: payload bytes of one CHUNK.
        control: bytes of a control frame's body.
        envelope: bytes of an object's msgpack envelope, without its out-of-band buffers.
        routing: bytes of an OPEN's routing part.
        opening: bytes of an OPEN's body (``stream_ctx`` and the opener's public props).
        object: bytes of one object, envelope and buffers together.
        buffers: out-of-band buffers of one object.
        depth: nesting of containers in one object.
        nodes: values in one object's envelope, as msgpack counts them: keys and descriptors too.
        inline: bytes up to which a buffer travels inside the envelope.
        streams: open streams of one origin site.
        resets: streams that one origin site may abort within *reset_window* before their first object was consumed.
        reset_window: the time within which they count.
        backlog: unanswered objects of one incoming stream.
        origin_bytes: bytes reserved for one origin site's objects.
        engine_bytes: bytes reserved for all objects of this engine.
        unasked_bytes: bytes of one origin site's objects of up to 64 KiB, which come unasked and are not consumed yet;
            of all sites, *engine_bytes*, or as much if that is more. A stream that goes beyond is refused.
        idle_memory: bytes of received arrays that nobody holds any more, kept for the next ones.
        window: bytes in flight of one stream between two engines (the wire window).
        relay_window: bytes in flight of one stream that a hub only forwards.
        relay_bytes: bytes that a hub holds for all the streams it forwards.
        hello: bytes of a peer's first frame.
        hello_timeout: how long the handshake may take.
        frame_timeout: how long a frame that has begun may take, besides 1 s for each 16 KiB of data in it.
        resume_window: how long an incoming stream may wait for a broken way to come back, whatever its opener asks for.
        half_open: links of a listener whose handshake has not ended.
    """

    frame: Annotated[int, Field(ge=4 * KIB, le=64 * MIB)] = MIB
    control: Annotated[int, Field(ge=KIB)] = 16 * KIB
    envelope: Annotated[int, Field(ge=KIB)] = 256 * KIB
    routing: Annotated[int, Field(ge=KIB)] = 64 * KIB
    opening: Annotated[int, Field(ge=KIB)] = 256 * KIB
    object: Annotated[int, Field(ge=64 * KIB)] = 64 * GIB
    buffers: Annotated[int, Field(ge=1, le=1_000_000)] = 20_000
    depth: Annotated[int, Field(ge=1, le=100)] = 32
    nodes: Annotated[int, Field(ge=1)] = 20_000
    inline: Annotated[int, Field(ge=0, le=64 * KIB)] = 4 * KIB
    streams: Annotated[int, Field(ge=1)] = 4096
    resets: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    reset_window: Seconds = 30.0
    backlog: Annotated[int, Field(ge=2, le=_LARGEST)] = 8192
    origin_bytes: Annotated[int, Field(ge=64 * KIB)] = 256 * MIB
    engine_bytes: Annotated[int, Field(ge=64 * KIB)] = GIB
    unasked_bytes: Annotated[int, Field(ge=MIB)] = 256 * MIB
    idle_memory: Annotated[int, Field(ge=0)] = GIB
    window: Annotated[int, Field(ge=64 * KIB, le=_LARGEST)] = 32 * MIB
    relay_window: Annotated[int, Field(ge=64 * KIB, le=_LARGEST)] = 2 * MIB
    relay_bytes: Annotated[int, Field(ge=MIB)] = 256 * MIB
    hello: Annotated[int, Field(ge=KIB)] = 64 * KIB
    hello_timeout: Seconds = 10.0
    frame_timeout: Seconds = 30.0
    resume_window: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 300.0
    half_open: Annotated[int, Field(ge=1)] = 128

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.engine_bytes < self.origin_bytes:
            raise ValueError(f"engine_bytes is {self.engine_bytes}, less than origin_bytes of {self.origin_bytes}")
        if self.window < self.frame:
            raise ValueError(f"window is {self.window}, less than one frame of {self.frame}")
        return self


class EngineSettings(_Frozen):
    """How one engine runs.

    Attributes:
        limits: what peers may make it hold, parse or wait for.
        heartbeat: a link that has sent nothing for so long sends a PING; the side that accepted leaves it to the other.
        silence: a link that has received nothing for so long is closed; any byte is life.
        probe_timeout: how long an old link may take to answer when another incarnation claims its name.
        registration_grace: how long an incoming stream waits for its channel and topic to be registered.
        idle_timeout: an incoming stream that receives nothing for so long ends with TIMEOUT; None means never.
        finalize_timeout: how long ``finalize``, ``stream_done_cb`` and ``return_consumer`` may take together.
        abort_timeout: how long the sites' acknowledgements of an ABORT are waited for.
        shutdown_timeout: how long leaving the engine may take.
        retry_first: the first pause between two attempts to dial.
        retry_max: the longest such pause.
        allow_plain_tcp: permit ``tcp://`` on an address that is not loopback: no privacy, no identity.
        public_props: props that every context of this engine shows to its peers.
        suite: how this engine seals: ``pq``, ``pq-sha256`` or ``fips``, the same at all sites of a federation. None is
            ``pq`` where BLAKE3 is installed, and ``pq-sha256`` elsewhere.
        sealed_only: streams that are not sealed are refused.
        policy: who may open streams to whom, and register what: a file, watched while the engine runs, or a
            ``fanstream.security.Policy``. What it does not allow is denied; without one, all is allowed.
        workers: threads for synchronous producers and consumers.
        journal: a file in which this engine keeps its incoming streams, and the durable ones that it opens, so that
            they outlive it. It is made if it is not there, and belongs to one site, and one engine at a time. None
            keeps nothing.
    """

    limits: Limits = Field(default_factory=Limits)
    heartbeat: Seconds = 7.0
    silence: Seconds = 15.0
    probe_timeout: Seconds = 2.0
    registration_grace: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    idle_timeout: Seconds | None = None
    finalize_timeout: Seconds = 30.0
    abort_timeout: Seconds = 2.0
    shutdown_timeout: Seconds = 30.0
    retry_first: Seconds = 0.05
    retry_max: Seconds = 15.0
    allow_plain_tcp: bool = False
    public_props: dict[str, str] = {}
    suite: Literal["pq", "pq-sha256", "fips"] | None = None
    sealed_only: bool = False
    policy: PolicySource | None = None
    workers: Annotated[int, Field(ge=1)] = 40
    journal: Path | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.silence <= self.heartbeat:
            raise ValueError(f"silence is {self.silence} s, not longer than heartbeat of {self.heartbeat} s")
        if self.retry_max < self.retry_first:
            raise ValueError(f"retry_max is {self.retry_max} s, less than retry_first of {self.retry_first} s")
        props = sum(len(key.encode()) + len(value.encode()) for key, value in self.public_props.items())
        if props > self.limits.opening:
            raise ValueError(f"public_props have {props} bytes, more than limits.opening of {self.limits.opening}")
        return self
