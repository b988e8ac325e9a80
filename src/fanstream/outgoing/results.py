"""How an outgoing stream ended: its return code, and each site's share of the account."""

from __future__ import annotations

from typing import Any

from ..protocol.gather import Gathering, Outcome, SiteLedger
from ..shareable import ReturnCode
from ..streaming import SiteResult, StreamResult


def conclude(
    gathering: Gathering, value: Any, *, aborted: bool, rc_of_abort: str | None, seconds: float, stream_id: str
) -> StreamResult:
    """Close a stream's account, and say how it ended.

    Args:
        gathering: the account.
        value: what ``process_replies`` returned, or None.
        aborted: whether the stream was aborted.
        rc_of_abort: with which code it was.
        seconds: how long it took.
        stream_id: its id.

    Raises:
        AssertionError: the account does not balance: a defect of this package.
    """
    gathering.close()
    sites = gathering.sites
    complete = not aborted and all(
        site.ended and site.rc == ReturnCode.OK and set(site.counts) <= {Outcome.REPLIED} for site in sites.values()
    )
    if rc_of_abort is not None:
        rc: str = rc_of_abort
    elif value is not None:
        rc = ReturnCode.OK if _truthy(value) else ReturnCode.ERROR
    elif gathering.first_failure is not None:
        rc = gathering.first_failure
    else:
        rc = next((site.rc for site in sites.values() if site.rc != ReturnCode.OK), ReturnCode.OK)
    return StreamResult(
        rc=rc,
        value=value,
        complete=complete,
        sites={name: _site_result(site) for name, site in sites.items()},
        objects=gathering.objects - gathering.first,
        first=gathering.first,
        bytes=gathering.bytes,
        seconds=seconds,
        stream_id=stream_id,
    )


def _truthy(value: Any) -> bool:
    try:
        return bool(value)
    except Exception:  # noqa: BLE001 - an array of several numbers has no truth of its own; it is something, so it is true
        return True


def _site_result(site: SiteLedger) -> SiteResult:
    counts = {str(outcome): number for outcome, number in site.counts.items()}
    return SiteResult(site.rc, site.end_result, counts, site.late, site.reason, site.resumed)
