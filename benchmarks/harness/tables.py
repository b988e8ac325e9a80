"""Results as Markdown: a table for each question."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

HEADINGS: Final = {
    "bulk_gb_per_s": "bulk, GB/s",
    "blocks_per_object": "blocks kept per object",
    "check_ms": "pre-keys of all sites checked, ms",
    "cpu_s_per_1000_replies": "CPU s per 1,000 replies: opener / site",
    "cpu_s_per_gib": "CPU s per GiB: opener / site",
    "decode_growth_mib": "decode, MiB more",
    "decode_ms": "decode, ms",
    "encode_growth_mib": "encode, MiB more",
    "encode_ms": "encode, ms",
    "fanstream_times": "fanstream by this, same rounds",
    "first_gb_per_s": "cold: first window, GB/s",
    "gb_per_s": "GB/s",
    "growth_mib": "from there to the end, MiB",
    "heavy": "heavy modules",
    "jain": "Jain's index",
    "kib_per_link": "KiB per link",
    "linked_s": "started and linked, s",
    "max_ms": "most, ms",
    "mib": "MiB",
    "mib_at_a_tenth": "after a tenth, MiB",
    "mib_at_the_end": "at the end, MiB",
    "ms": "ms",
    "ms_beyond_base": "beyond asyncio and pydantic, ms",
    "object_mib": "object, MiB",
    "objects_per_stream": "objects of one stream",
    "of_fewest_sites": "of the fewest sites'",
    "of_plain": "by the same, not sealed, same rounds",
    "of_primitives": "sealing by the primitives, same rounds",
    "of_raw": "by the raw socket, same rounds",
    "open_gb_per_s": "open, GB/s",
    "open_ms": "stream opened to all sites, ms",
    "opener_again_growth_mib": "again: opener, MiB",
    "opener_growth_mib": "opener, MiB more",
    "p50_ms": "p50, ms",
    "p50_cpu_ms": "p50, CPU ms",
    "p50_cpu_of_none": "p50, CPU, of that with none stalled",
    "p50_of_none": "p50, of that with none stalled",
    "p99_ms": "p99, ms",
    "p99_cpu_ms": "p99, CPU ms",
    "p99_cpu_of_none": "p99, CPU, of that with none stalled",
    "p99_of_none": "p99, of that with none stalled",
    "peak_mib": "peak MiB: opener / site",
    "process_mib": "peak of the process, MiB",
    "replies_per_s": "replies/s",
    "seal_gb_per_s": "seal, GB/s",
    "share_of_core": "hub, share of a core",
    "share_of_core_sites": "sites, share of a core",
    "site_mib": "a site, linked, MiB",
    "site_again_growth_mib": "again: site, MiB",
    "site_growth_mib": "site, MiB beyond the object",
    "sites_mib": "peak of all sites' process, MiB",
    "size": "bytes",
    "stall_cpu_ms": "longest turn, CPU ms of the loop's thread",
    "stall_ms": "longest turn, ms",
    "us_per_object": "us per object",
    "us_per_object_and_site": "us per object and site",
    "us_per_stream_and_site": "us per stream and site",
}

# The keys whose values each have a table of their own.
SPLIT: Final[dict[str, tuple[str, ...]]] = {
    "fairness": ("part",),
    "large_objects": ("object",),
    "peers_bulk": ("object", "malloc", "sites"),
    "peers_small": ("object", "window", "sites"),
    "tls": ("object",),
}


def number(value: float) -> str:
    """A number to three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cell(value: Any) -> str:
    """What stands in one cell.

    A spread is its median and, in parentheses, its ends; what processes cost is the opener's, that of a server beside
    it, and that of the most costly site.
    """
    match value:
        case None:
            return ""
        case {"median": median, "min": least, "max": most}:
            return f"{number(median)} ({number(least)} to {number(most)})" if least != most else number(median)
        case dict():
            sites = [each for name, each in value.items() if name.startswith("site")]
            others = [number(each) for name, each in value.items() if not name.startswith("site")]
            return " / ".join([" + ".join(others), *([number(max(sites))] if sites else [])])
        case list():
            return ", ".join(map(str, value)) or "none"
        case bool() | str():
            return str(value)
        case int():
            return f"{value:,}"
        case float():
            return number(value)
    return str(value)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table; its columns are the keys that any row has, each behind the one it follows there."""
    columns: list[str] = []
    for row in rows:
        place = 0
        for key in row:
            if key not in columns:
                columns.insert(place, key)
            place = columns.index(key) + 1
    lines = [
        [HEADINGS.get(column, column) for column in columns],
        ["---"] * len(columns),
        *([cell(row.get(column)) for column in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(question: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tables of one question, those that are one of several with a title."""
    keys = SPLIT.get(question, ())
    parts: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        rest = {key: value for key, value in row.items() if key not in keys}
        parts.setdefault(tuple(row.get(key) for key in keys), []).append(rest)
    titles = (", ".join(f"{key}: {value}" for key, value in zip(keys, values, strict=True)) for values in parts)
    return [
        text
        for title, part in zip(titles, parts.values(), strict=True)
        for text in (f"### {title}" * bool(keys), table(part))
        if text
    ]


def page(report: Mapping[str, Any], plots: Sequence[str]) -> str:
    """All of it as one page.

    Args:
        report: the commit that was measured, and what the scripts said.
        plots: names of the plots that lie beside the page.
    """
    results = report["results"]
    parts = ["# Measured"]
    if results:
        where = results[0]["environment"]
        versions: dict[str, str] = {}
        for line in results:
            versions |= line["environment"]["versions"]
        parts.append(
            f"{where['date']}, {where['cores']} cores of {where['processor']} ({where['machine']}), "
            f"{where['memory_gib']} GiB, {where['system']}, CPython {where['python']}; "
            f"commit {report['commit'] or 'unknown'}. "
            f"Versions: {', '.join(f'{name} {version}' for name, version in sorted(versions.items()))}. "
            "Medians, with the least and the greatest in parentheses; 1 GB is 1e9 bytes, 1 MiB is 2^20. "
            "CPU and memory are those of the opener (+ a server, where the peer needs one) / the site that took most."
        )
    parts += [f"![{name.removesuffix('.svg')}]({name})" for name in plots]
    for line in results:
        options = line["options"]
        title = line["question"].replace("_", " ") + (" (Unix sockets)" if options.get("transport") == "unix" else "")
        doc = importlib.import_module(f"benchmarks.{line['question']}").__doc__ or ""
        marks = ["quick: these figures say nothing"] if options["quick"] else []
        parts += [f"## {title}", doc.strip(), *marks, *tables(line["question"], line["rows"])]
        parts.append(f"Load when it ended: {line['environment']['load']}; it took {line.get('took_s', '?')} s.")
    return "\n\n".join(parts) + "\n"
