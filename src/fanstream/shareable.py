"""What travels: the Shareable, its return codes, and the replies made of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final


class ReturnCode(StrEnum):
    """How an object, or a whole stream, ended at a site; the codes of NVIDIA FLARE (``apis/fl_constant.py``).

    Members are strings equal to their names: ``ReturnCode.OK == "OK"``.
    """

    OK = "OK"
    BAD_PEER_CONTEXT = "BAD_PEER_CONTEXT"
    BAD_REQUEST_DATA = "BAD_REQUEST_DATA"
    BAD_TASK_DATA = "BAD_TASK_DATA"
    COMMUNICATION_ERROR = "COMMUNICATION_ERROR"
    ERROR = "ERROR"
    EXECUTION_EXCEPTION = "EXECUTION_EXCEPTION"
    EXECUTION_RESULT_ERROR = "EXECUTION_RESULT_ERROR"
    HANDLER_EXCEPTION = "HANDLER_EXCEPTION"
    MISSING_PEER_CONTEXT = "MISSING_PEER_CONTEXT"
    RUN_MISMATCH = "RUN_MISMATCH"
    TASK_ABORTED = "TASK_ABORTED"
    TASK_DATA_FILTER_ERROR = "TASK_DATA_FILTER_ERROR"
    TASK_RESULT_FILTER_ERROR = "TASK_RESULT_FILTER_ERROR"
    TASK_UNKNOWN = "TASK_UNKNOWN"
    TASK_UNSUPPORTED = "TASK_UNSUPPORTED"
    TIMEOUT = "TIMEOUT"
    TOPIC_UNKNOWN = "TOPIC_UNKNOWN"
    MODEL_UNRECOGNIZED = "MODEL_UNRECOGNIZED"
    VALIDATE_TYPE_UNKNOWN = "VALIDATE_TYPE_UNKNOWN"
    EMPTY_RESULT = "EMPTY_RESULT"
    UNSAFE_JOB = "UNSAFE_JOB"
    EARLY_TERMINATION = "EARLY_TERMINATION"
    SERVER_NOT_READY = "SERVER_NOT_READY"
    SERVICE_UNAVAILABLE = "SERVICE_UNAVAILABLE"


class ReservedHeaderKey:
    """Header names that the engine itself reads and writes."""

    HEADERS: Final = "__headers__"
    RC: Final = "__rc__"
    COOKIE_JAR: Final = "__cookie_jar__"
    PEER_PROPS: Final = "__peer_props__"


_RC = ReservedHeaderKey.RC
_HEADERS = ReservedHeaderKey.HEADERS


class Shareable(dict[str, Any]):
    """A dict with headers: what a producer sends, and what a site replies.

    Headers live under the key ``"__headers__"``, as in NVIDIA FLARE, and travel with the data. Return code, cookies and
    the peer's props are headers with accessors of their own.

    Args:
        data: the first entries; a shallow copy is taken.
    """

    __slots__ = ()

    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(data or ())
        if _HEADERS not in self:
            self[_HEADERS] = {}

    @property
    def headers(self) -> dict[str, Any]:
        """The headers themselves, not a copy."""
        found = self.get(_HEADERS)
        if found is None:
            found = self[_HEADERS] = {}
        return found

    def set_header(self, key: str, value: Any) -> None:
        """Set one header."""
        self.headers[key] = value

    def get_header(self, key: str, default: Any = None) -> Any:
        """Return one header, or *default*."""
        return self.headers.get(key, default)

    def get_return_code(self) -> str:
        """Return the return code; ``"OK"`` where none was set."""
        return self.headers.get(_RC, ReturnCode.OK)  # type: ignore[no-any-return]

    def set_return_code(self, rc: str) -> None:
        """Set the return code."""
        self.headers[_RC] = rc

    def add_cookie(self, name: str, value: Any) -> None:
        """Put a cookie into the jar; a site's engine echoes the jar of an object in its reply."""
        self.headers.setdefault(ReservedHeaderKey.COOKIE_JAR, {})[name] = value

    def get_cookie_jar(self) -> dict[str, Any] | None:
        """Return the cookie jar, or None where there is none."""
        return self.headers.get(ReservedHeaderKey.COOKIE_JAR)

    def set_cookie_jar(self, jar: dict[str, Any]) -> None:
        """Replace the cookie jar."""
        self.headers[ReservedHeaderKey.COOKIE_JAR] = jar

    def get_cookie(self, name: str, default: Any = None) -> Any:
        """Return one cookie, or *default*."""
        jar = self.get_cookie_jar()
        return default if jar is None else jar.get(name, default)

    def set_peer_props(self, props: dict[str, Any]) -> None:
        """Set the public props of the site this came from; the receiving engine does so."""
        self.headers[ReservedHeaderKey.PEER_PROPS] = props

    def get_peer_props(self) -> dict[str, Any] | None:
        """Return the public props of the site this came from, or None."""
        return self.headers.get(ReservedHeaderKey.PEER_PROPS)

    def get_peer_prop(self, key: str, default: Any = None) -> Any:
        """Return one of the peer's public props, or *default*."""
        props = self.get_peer_props()
        return default if props is None else props.get(key, default)

    def __repr__(self) -> str:
        # T24 of the threat list: no content in reprs, for reprs end up in logs.
        names = [key for key in self if key != _HEADERS]
        return f"<{type(self).__name__} rc={self.get_return_code()} keys={names!r}>"


def make_reply(rc: str, headers: Mapping[str, Any] | None = None) -> Shareable:
    """Make a reply that carries a return code.

    Args:
        rc: one of :class:`ReturnCode`.
        headers: further headers.
    """
    reply = Shareable.__new__(Shareable)
    reply[_HEADERS] = {**headers, _RC: rc} if headers else {_RC: rc}
    return reply


def make_copy(source: Shareable) -> Shareable:
    """Copy a Shareable: its data shallowly, its headers deeply."""
    twin = Shareable(source)
    twin[_HEADERS] = copy.deepcopy(source.headers)
    return twin
