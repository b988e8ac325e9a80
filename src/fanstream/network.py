"""Which windows keep a network full, and what rate given ones reach."""

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from .arguments import check_count
from .options import GIB, KIB, MIB, WIDEST, Limits, StreamOptions
from .protocol.budget import ASIDE, LEAST_ASIDE
from .protocol.frames import SMALL_OBJECT


@dataclass(frozen=True, slots=True)
class Estimate:
    """What settings reach on a network.

    Attributes:
        options: for ``stream_objects``.
        limits: for the ``EngineSettings`` of each site.
        rate: objects per second, to each site.
        throughput: bytes per second, to all sites together.
        bound: what to raise for more: ``"bandwidth"`` of the network, or the setting's name.
        utilisation: the part of the bandwidth that is used, from 0 to 1.
        opener_memory: bytes of the objects in flight; the same for any number of sites.
        site_memory: bytes of the objects that one site holds.
    """

    options: StreamOptions
    limits: Limits
    rate: float
    throughput: float
    bound: str
    utilisation: float
    opener_memory: int
    site_memory: int

    def __str__(self) -> str:
        return (
            f"a window of {self.options.window} and {_readable(self.limits.window)} on the wire: "
            f"{self.rate:,.4g} objects/s to each site, {self.throughput / 1e6:,.4g} MB/s in all, "
            f"{self.utilisation:.0%} of the bandwidth, bound by {self.bound}; "
            f"{_readable(self.opener_memory)} at the opener, {_readable(self.site_memory)} at each site"
        )


class Network(BaseModel):
    """The line between an opener and its sites: says which windows keep it full, and what rate given ones reach.

    It reckons with the line alone: what a producer, a consumer or a processor takes comes on top.

    Attributes:
        bandwidth: what leaves the opener, in bytes per second; the sites of a stream share it. Where each site's own
            line carries less than its share, give that, and one site.
        round_trip: there and back, in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bandwidth: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    round_trip: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    def advise(self, *, object_size: int, sites: int = 1, memory: int | None = None) -> Estimate:
        """Say which settings keep the line full, or as full as *memory* lets them.

        Args:
            object_size: of one object, envelope and buffers together, in bytes.
            sites: how many sites the stream goes to.
            memory: bytes that its objects may take, at the opener and at each site.

        Returns:
            The smallest window that does it, and limits no smaller than the defaults.

        Raises:
            TypeError, ValueError: an argument is nonsense, or *memory* does not hold one object.
        """
        check_count(object_size, "object_size", least=1)
        check_count(sites, "sites", least=1)
        share = self.bandwidth / sites
        window = math.ceil(1 + share * self.round_trip / object_size)
        if memory is not None:
            check_count(memory, "memory", least=1)
            if memory < object_size:
                raise ValueError(f"memory is {memory} bytes, less than one object of {object_size}")
            window = min(window, memory // object_size)
        options = StreamOptions(window=min(window, WIDEST))
        # Credit comes back by halves: while one half is acknowledged, the other has to last.
        wire = _round_up(2 * share * self.round_trip)
        # One more: a size given without its envelope still fits.
        held = _round_up(max(options.window + 1, LEAST_ASIDE) * object_size)
        least = Limits()
        limits = Limits(
            window=max(least.window, wire),
            origin_bytes=max(least.origin_bytes, ASIDE * held),  # so that none of them waits for a grant
            engine_bytes=max(least.engine_bytes, ASIDE * held),
        )
        return self.estimate(object_size=object_size, sites=sites, options=options, limits=limits)

    def estimate(
        self,
        *,
        object_size: int,
        sites: int = 1,
        options: StreamOptions | None = None,
        limits: Limits | None = None,
    ) -> Estimate:
        """Say what given settings reach.

        Args:
            object_size: of one object, envelope and buffers together, in bytes.
            sites: how many sites the stream goes to.
            options: the stream's; None means the defaults.
            limits: those of the sites' engines; None means the defaults.

        Raises:
            TypeError, ValueError: an argument is nonsense, or the limits do not take such a stream.
        """
        options = options or StreamOptions()
        limits = limits or Limits()
        check_count(object_size, "object_size", least=1)
        check_count(sites, "sites", least=1)
        if object_size > limits.object:
            raise ValueError(f"object_size is {object_size} bytes, more than limits.object of {limits.object}")
        if options.backlog > limits.backlog:
            raise ValueError(
                f"options let {options.backlog} objects go unanswered, more than limits.backlog of {limits.backlog}"
            )
        share = self.bandwidth / sites
        flow = min(share, limits.window / (self.round_trip + limits.window / 2 / share))
        ahead = min(object_size, limits.window)
        transfer = ahead / share + (object_size - ahead) / flow
        bounds = {
            "bandwidth": share / object_size,
            "Limits.window": flow / object_size,
            "StreamOptions.window": options.window
            / (self.round_trip * _round_trips(object_size, options.window, limits) + transfer),
        }
        held = options.window
        if object_size > SMALL_OBJECT:
            room = max(1, limits.origin_bytes // object_size)
            held = min(held, room)
            bounds["Limits.origin_bytes"] = room / (self.round_trip + transfer)
        rate = min(bounds.values())
        bound = next(name for name, value in bounds.items() if math.isclose(value, rate))
        return Estimate(
            options=options,
            limits=limits,
            rate=rate,
            throughput=rate * object_size * sites,
            bound=bound,
            utilisation=rate / bounds["bandwidth"],
            opener_memory=options.window * object_size,
            site_memory=held * object_size,
        )


def _round_trips(object_size: int, window: int, limits: Limits) -> float:
    """Return how many round trips an object takes: one for its reply, and one more if it waits for a GRANT."""
    if object_size <= SMALL_OBJECT or window == 1:
        return 1
    ahead = limits.origin_bytes // ASIDE // object_size  # of a window; the others ask
    return 2 - min(1, ahead / window) if ahead >= LEAST_ASIDE else 2


def _round_up(size: float) -> int:
    return math.ceil(size / MIB) * MIB


def _readable(size: float) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size:.4g} bytes"
