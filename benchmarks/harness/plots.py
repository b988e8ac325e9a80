"""Plots of results, as SVG whose bytes depend on nothing but the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .figures import KIB, MIB
from .tables import number

Line = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]

OURS, RAW, OTHERS, PALE = "#2a6f97", "#8d99ae", "#e07a5f", 0.45


def middle(row: Mapping[str, Any], figure: str) -> float:
    """The median of a figure."""
    return float(row[figure]["median"])


def colour(peer: str) -> str:
    """The colour of a peer."""
    return {"fanstream": OURS, "raw": RAW}.get(peer, OTHERS)


def bars(axes: Any, rows: Rows, figure: str, title: str) -> None:
    """One bar for each peer, the longest at the top; a thinner, paler one for each where memory settings are raised."""
    plain = [row for row in rows if row.get("malloc", "as installed") == "as installed"]
    ranked = sorted(plain, key=lambda row: middle(row, figure))
    raised = {row["peer"]: row for row in rows if row.get("malloc") == "raised"}
    for place, row in enumerate(ranked):
        peer, value = row["peer"], middle(row, figure)
        ends = [[value - row[figure]["min"]], [row[figure]["max"] - value]]
        axes.barh(place, value, 0.55, color=colour(peer), xerr=ends, error_kw={"elinewidth": 0.8, "ecolor": "#444444"})
        if peer in raised:
            axes.barh(place - 0.38, middle(raised[peer], figure), 0.2, color=colour(peer), alpha=PALE)
        axes.annotate(
            number(value), (row[figure]["max"], place), (3, 0), textcoords="offset points", va="center", fontsize=7
        )
    axes.set_yticks(range(len(ranked)), [row["peer"].replace("_", " ") for row in ranked], fontsize=8)
    axes.set_title(title, fontsize=9, loc="left")
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.margins(x=0.2)


def panels(count: int, columns: int, height: float) -> tuple[Any, list[Any]]:
    """A figure and its axes, without a frame at the top and right."""
    from matplotlib.figure import Figure

    lines = -(-count // columns)
    figure = Figure(figsize=(4.6 * columns, height * lines), layout="constrained")
    axes = [figure.add_subplot(lines, columns, index + 1) for index in range(count)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=8)
    return figure, axes


def bulk_by_peer(line: Line) -> Any:
    rows = [row for row in line["rows"] if "gb_per_s" in row]
    cells = sorted({(row["object"], row["sites"]) for row in rows})
    figure, axes = panels(len(cells), 2, 3.2)
    for each, (name, sites) in zip(axes, cells, strict=True):
        chosen = [row for row in rows if row["object"] == name and row["sites"] == sites]
        bars(each, chosen, "gb_per_s", f"{name}, sites: {sites}")
        each.set_xlabel("GB/s in all; thin: malloc's thresholds raised", fontsize=8)
    return figure


def small_by_peer(line: Line) -> Any:
    rows = [row for row in line["rows"] if "replies_per_s" in row]
    cells = sorted({(row["window"], row["sites"]) for row in rows})
    figure, axes = panels(len(cells), 2, 3.2)
    for each, (window, sites) in zip(axes, cells, strict=True):
        chosen = [row for row in rows if (row["window"], row["sites"]) == (window, sites)]
        bars(each, chosen, "replies_per_s", f"100-byte objects, window {window}, sites: {sites}")
        each.set_xlabel("object-replies per second", fontsize=8)
    return figure


def curve(axes: Any, rows: Rows, x: str, y: str, label: str, shade: str, style: str = "-") -> None:
    """One line through medians, with a band from the least to the greatest."""
    points = sorted(rows, key=lambda row: row[x])
    places = [row[x] for row in points]
    axes.plot(places, [middle(row, y) for row in points], style, color=shade, marker="o", markersize=3, label=label)
    axes.fill_between(
        places, [row[y]["min"] for row in points], [row[y]["max"] for row in points], color=shade, alpha=0.15, lw=0
    )


def cost_by_sites(line: Line) -> Any:
    figure, (axes,) = panels(1, 1, 3.2)
    for place, window in enumerate(sorted({row["window"] for row in line["rows"]})):
        shade = (OTHERS, OURS)[place % 2]
        for collector, style in (("as it is", "-"), ("frozen", "--")):
            rows = [row for row in line["rows"] if row["window"] == window and row["collector"] == collector]
            label = f"window {window}" + (", collector frozen" if collector == "frozen" else "")
            curve(axes, rows, "sites", "us_per_object_and_site", label, shade, style)
    axes.set_xscale("log")
    axes.minorticks_off()
    numbers = sorted({row["sites"] for row in line["rows"]})
    axes.set_xticks(numbers, [f"{sites:,}" for sites in numbers])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("sites, in one process", fontsize=8)
    axes.set_ylabel("us per object and site", fontsize=8)
    axes.legend(fontsize=8, frameon=False)
    return figure


def cost_by_size(line: Line) -> Any:
    figure, axes = panels(2, 2, 3.2)
    for each, measure, label in zip(
        axes, ("us_per_object", "gb_per_s"), ("us per object, window 16", "GB/s"), strict=True
    ):
        for peer in ("raw", "fanstream"):
            rows = [row for row in line["rows"] if row["peer"] == peer]
            for loop in sorted({row["loop"] or "" for row in rows}):
                chosen = [row for row in rows if (row["loop"] or "") == loop]
                style = "--" if loop == "asyncio" else "-"
                curve(each, chosen, "size", measure, f"{peer} {loop}".strip(), colour(peer), style)
        each.set_xscale("log", base=2)
        each.set_xticks([100, KIB, 32 * KIB, MIB, 64 * MIB], ["100 B", "1 KiB", "32 KiB", "1 MiB", "64 MiB"])
        each.set_yscale("log")
        each.yaxis.set_major_formatter("{x:,g}")
        each.set_xlabel("size of one object", fontsize=8)
        each.set_ylabel(label, fontsize=8)
    axes[0].legend(fontsize=8, frameon=False)
    return figure


# The name of each plot, the question whose results it shows, and what draws it.
PLOTS: Final[dict[str, tuple[str, Callable[[Line], Any]]]] = {
    "peers-bulk": ("peers_bulk", bulk_by_peer),
    "peers-small": ("peers_small", small_by_peer),
    "sites": ("fan_out", cost_by_sites),
    "sizes": ("object_size", cost_by_size),
}


def plot(name: str, line: Line, path: Path) -> None:
    """Draw one of the PLOTS.

    Args:
        name: which.
        line: what its script said.
        path: the SVG to write.
    """
    import matplotlib as mpl

    # Text stays text, which is small; ids are made of the salt, and no date is written.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        PLOTS[name][1](line).savefig(path, format="svg", metadata={"Date": None})
