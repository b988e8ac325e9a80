"""Impossible settings are refused where they are made."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from pydantic import ValidationError

from fanstream import EngineSettings, Limits, StreamOptions
from fanstream.options import KIB, MIB

NOT_SECONDS = [(0, "0"), (-1.5, "-1.5"), (math.nan, "finite"), (math.inf, "finite"), ("soon", "soon")]
NOT_SECONDS_OR_0 = [(-0.5, "-0.5"), (math.nan, "finite"), (math.inf, "finite"), ("soon", "soon")]

STREAM_OPTIONS: dict[str, list[tuple[Any, str]]] = {
    "window": [(0, "1 .*=0"), (-1, "1 .*=-1"), (4097, "4096 .*=4097"), (1.5, "1.5"), ("many", "many"), (None, "None")],
    "gather": [("most", "most"), (2, "2"), (None, "None")],
    "straggler": [("drop", "drop"), (3, "3"), (None, "None")],
    "max_lag": [(-1, "0 .*=-1"), (4097, "4096 .*=4097"), (0.5, "0.5")],
    "stall_timeout": NOT_SECONDS,
    "progress_timeout": NOT_SECONDS,
    "end_timeout": NOT_SECONDS,
    "connect_grace": NOT_SECONDS_OR_0,
    "resume_window": [(-1, "0 .*=-1"), (math.nan, "nan"), (4_294_967, "4294966 .*=4294967")],
    "copy_objects": [("perhaps", "perhaps"), (2, "=2")],
    "durable": [("perhaps", "perhaps"), (2, "=2")],
    "timeout": [*NOT_SECONDS[:2], (math.nan, "=nan"), (4_294_967, "4294966 .*=4294967"), (math.inf, "4294966 .*=inf")],
}

LIMITS: dict[str, list[tuple[Any, str]]] = {
    "frame": [(4 * KIB - 1, "4096 .*=4095"), (64 * MIB + 1, "67108864 .*=67108865")],
    "control": [(KIB - 1, "1024 .*=1023")],
    "envelope": [(KIB - 1, "1024 .*=1023")],
    "routing": [(KIB - 1, "1024 .*=1023")],
    "opening": [(KIB - 1, "1024 .*=1023")],
    "object": [(64 * KIB - 1, "65536 .*=65535")],
    "buffers": [(0, "1 .*=0"), (1_000_001, "1000000 .*=1000001")],
    "depth": [(0, "1 .*=0"), (101, "100 .*=101")],
    "nodes": [(0, "1 .*=0")],
    "inline": [(-1, "0 .*=-1"), (64 * KIB + 1, "65536 .*=65537")],
    "streams": [(0, "1 .*=0")],
    "resets": [(0, "1 .*=0"), (1_000_001, "1000000 .*=1000001")],
    "reset_window": NOT_SECONDS,
    "backlog": [(1, "2 .*=1"), (2**63, f"{2**63 - 1} .*={2**63}")],
    "origin_bytes": [(64 * KIB - 1, "65536 .*=65535")],
    "engine_bytes": [(64 * KIB - 1, "65536 .*=65535"), (MIB, "1048576, less than origin_bytes of 268435456")],
    "unasked_bytes": [(MIB - 1, "1048576 .*=1048575")],
    "idle_memory": [(-1, "0 .*=-1")],
    "window": [
        (64 * KIB - 1, "65536 .*=65535"),
        (MIB - 1, "1048575, less than one frame of 1048576"),
        (2**63, f"{2**63 - 1} .*={2**63}"),
    ],
    "relay_window": [(64 * KIB - 1, "65536 .*=65535"), (2**63, f"{2**63 - 1} .*={2**63}")],
    "relay_bytes": [(MIB - 1, "1048576 .*=1048575")],
    "hello": [(KIB - 1, "1024 .*=1023")],
    "hello_timeout": NOT_SECONDS,
    "frame_timeout": NOT_SECONDS,
    "resume_window": NOT_SECONDS_OR_0,
    "half_open": [(0, "1 .*=0")],
}

ENGINE_SETTINGS: dict[str, list[tuple[Any, str]]] = {
    "limits": [("none", "none"), ({"window": 0}, "65536 .*=0"), (None, "None")],
    "heartbeat": [*NOT_SECONDS, (20, "15.0 s, not longer than heartbeat of 20.0 s")],
    "silence": [*NOT_SECONDS, (1, r"silence is 1.0 s, not longer than heartbeat of \d.0 s")],
    "probe_timeout": NOT_SECONDS,
    "registration_grace": NOT_SECONDS_OR_0,
    "idle_timeout": NOT_SECONDS,
    "finalize_timeout": NOT_SECONDS,
    "abort_timeout": NOT_SECONDS,
    "shutdown_timeout": NOT_SECONDS,
    "retry_first": [*NOT_SECONDS, (16, "retry_max is 15.0 s, less than retry_first of 16.0 s")],
    "retry_max": [*NOT_SECONDS, (0.01, "retry_max is 0.01 s, less than retry_first of 0.05 s")],
    "allow_plain_tcp": [("perhaps", "perhaps"), (None, "None")],
    "public_props": [({"n": 1}, "1"), (["a"], "a"), ({"a": "x" * 300_000}, "300001 bytes, .* of 262144")],
    "suite": [("aes", "'pq', 'pq-sha256' or 'fips'")],
    "sealed_only": [("perhaps", "perhaps"), (None, "None")],
    "policy": [(5, "5"), ({}, "Judge")],
    "workers": [(0, "1 .*=0")],
    "journal": [(1, "path.*1")],
}

REFUSED = [
    pytest.param(model, field, value, message, id=f"{model.__name__}-{field}-{str(value)[:12]}")
    for model, fields in ((StreamOptions, STREAM_OPTIONS), (Limits, LIMITS), (EngineSettings, ENGINE_SETTINGS))
    for field, cases in fields.items()
    for value, message in cases
]


@pytest.mark.parametrize(("model", "field", "value", "message"), REFUSED)
def test_an_impossible_value_is_refused_with_the_field_the_value_and_the_limit(
    model: type[Any], field: str, value: Any, message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        model(**{field: value})
    text = str(caught.value)
    assert re.search(rf"\b{field}\b", text)
    assert re.search(message, text, re.DOTALL), text


@pytest.mark.parametrize(
    ("model", "cases"), [(StreamOptions, STREAM_OPTIONS), (Limits, LIMITS), (EngineSettings, ENGINE_SETTINGS)]
)
def test_no_field_goes_without_a_value_that_it_refuses(model: type[Any], cases: dict[str, Any]) -> None:
    assert set(cases) == set(model.model_fields)


@pytest.mark.parametrize("model", [StreamOptions, Limits, EngineSettings])
def test_a_misspelt_option_is_refused_by_its_name(model: type[Any]) -> None:
    with pytest.raises(ValidationError, match="windoww"):
        model(windoww=1)


@pytest.mark.parametrize("made", [StreamOptions(), Limits(), EngineSettings()])
def test_options_do_not_change(made: Any) -> None:
    field = next(iter(type(made).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(made, field, getattr(made, field))
