"""Whether something grows: pure arithmetic on samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import linear_regression
from typing import Any, Final

MIB: Final = 1024 * 1024
STEEPEST: Final = 1.0  # MiB per hour that the memory of one process may grow
SHORTEST: Final = 30.0  # minutes; over a shorter run the allocator's noise looks like growth
WARM_UP: Final = 0.2  # of a run: until caches are full and every path was taken once


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process held at a quiet moment.

    Attributes:
        at: seconds since the run began.
        resident: bytes.
        descriptors: open ones.
        tasks: of its event loop.
    """

    at: float
    resident: int
    descriptors: int
    tasks: int


def warm(samples: Sequence[Sample], seconds: float) -> list[Sample]:
    """Return the samples of a run of *seconds* after its warm-up."""
    return [sample for sample in samples if sample.at >= seconds * WARM_UP]


def slope(samples: Sequence[Sample]) -> float:
    """Return how memory grows, in MiB per hour: the line that fits the samples best; 0 with fewer than two."""
    if len({sample.at for sample in samples}) < 2:
        return 0.0
    hours = [sample.at / 3600 for sample in samples]
    return linear_regression(hours, [sample.resident / MIB for sample in samples]).slope


def tenths(samples: Sequence[Sample], seconds: float) -> list[int]:
    """Return the least bytes resident in each tenth of a run, to see how what grows does: in steps, or all the time."""
    parts: list[list[int]] = [[] for _ in range(10)]
    for sample in samples:
        parts[min(9, int(10 * sample.at / seconds))].append(sample.resident)
    return [min(part) for part in parts if part]


def growth(values: Sequence[int]) -> int:
    """Return by how much the least of the last third exceeds the least of the first; a leak raises the least."""
    third = len(values) // 3
    return min(values[-third:]) - min(values[:third]) if third else 0


def verdict(processes: Mapping[str, Sequence[Sample]], seconds: float) -> tuple[dict[str, Any], list[str]]:
    """Judge a run.

    Args:
        processes: the samples of each process, in order.
        seconds: how long the run took.

    Returns:
        Each process's figures, and what is not as promised.
    """
    figures: dict[str, Any] = {}
    objections: list[str] = []
    for name, samples in processes.items():
        kept = warm(samples, seconds)
        steep = slope(kept)
        descriptors = growth([sample.descriptors for sample in kept])
        tasks = growth([sample.tasks for sample in kept])
        figures[name] = {
            "samples": len(kept),
            "resident_mib": [round(least / MIB, 1) for least in tenths(samples, seconds)],
            "slope_mib_per_h": round(steep, 2),
            "descriptors": descriptors,
            "tasks": tasks,
        }
        if seconds >= SHORTEST * 60 and steep >= STEEPEST:
            objections.append(f"{name}: memory grows by {steep:.2f} MiB/h, limit {STEEPEST}")
        if descriptors > 0:
            objections.append(f"{name}: {descriptors} descriptors more")
        if tasks > 0:
            objections.append(f"{name}: {tasks} tasks more")
        if not kept:
            objections.append(f"{name}: no samples")
    return figures, objections
