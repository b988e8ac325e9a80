"""Results as Markdown: a table for each question."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

HEADINGS: Final = {
    "bulk_gb_per_s": "bulk, GB/s",
    "cpu_s_per_1000_replies": "CPU s per 1,000 replies: opener / site",
    "cpu_s_per_gib": "CPU s per GiB: opener / site",
    "decode_growth_mib": "decode, MiB more",
    "decode_ms": "decode, ms",
    "encode_growth_mib": "encode, MiB more",
    "encode_ms": "encode, ms",
    "fanstream_times": "fanstream is x times this",
    "gb_per_s": "GB/s",
    "heavy": "heavy modules",
    "jain": "Jain's index",
    "kib_per_link": "KiB per link",
    "max_ms": "most, ms",
    "mib": "MiB",
    "ms": "ms",
    "object_mib": "object, MiB",
    "objects_per_stream": "objects of one stream",
    "of_fewest_sites": "of the fewest sites'",
    "of_raw": "of the raw socket",
    "opener_again_growth_mib": "again: opener, MiB",
    "opener_growth_mib": "opener, MiB more",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "peak_mib": "peak MiB: opener / site",
    "replies_per_s": "replies/s",
    "share_of_core": "hub, share of a core",
    "share_of_core_sites": "sites, share of a core",
    "site_again_growth_mib": "again: site, MiB",
    "site_growth_mib": "site, MiB beyond the object",
    "size": "bytes",
    "us_per_object": "us per object",
    "us_per_object_and_site": "us per object and site",
    "us_per_stream_and_site": "us per stream and site",
}


def number(value: float) -> str:
    """A number to three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cell(value: Any) -> str:
    """What stands in one cell: a spread as its median and, in parentheses, its ends; the most costly site for all."""
    match value:
        case None:
            return ""
        case {"median": median, "min": least, "max": most}:
            return f"{number(median)} ({number(least)} to {number(most)})"
        case dict():
            sites = [each for name, each in value.items() if name.startswith("site")]
            others = [number(each) for name, each in value.items() if not name.startswith("site")]
            return " / ".join([*others, *([number(max(sites))] if sites else [])])
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
    """Rows as a Markdown table; its columns are the keys that any row has, in the order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [
        [HEADINGS.get(column, column) for column in columns],
        ["---"] * len(columns),
        *([cell(row.get(column)) for column in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
            "Medians, with the least and the greatest in parentheses."
        )
    parts += [f"![{name.removesuffix('.svg')}]({name})" for name in plots]
    for line in results:
        options = line["options"]
        title = line["question"].replace("_", " ") + (" (Unix sockets)" if options.get("transport") == "unix" else "")
        doc = importlib.import_module(f"benchmarks.{line['question']}").__doc__ or ""
        marks = ["quick: these figures say nothing"] if options["quick"] else []
        parts += [f"## {title}", doc.strip(), *marks, table(line["rows"])]
        parts.append(f"Load when it ended: {line['environment']['load']}; it took {line.get('took_s', '?')} s.")
    return "\n\n".join(parts) + "\n"
