"""Every exception this package raises on purpose.

::

    EngineError
    ├── TransportError        the bytes could not be carried
    │   ├── ConnectError      no link could be made
    │   ├── ClosedError       we closed it ourselves
    │   └── BrokenError       something outside did
    ├── ProtocolError         the rules of the wire
    │   ├── LocalProtocolError   we asked for what is not allowed
    │   └── RemoteProtocolError  the peer did what is not allowed
    ├── CodecError            a value that cannot be encoded, or bytes that cannot be decoded
    │   └── UnknownTypeError  a type that is not in the registry; ``.path`` says where it is
    ├── SecurityError         security was asked for and cannot be given
    │   ├── SealError         sealed bytes are not what their sender sealed
    │   ├── KitError          a file of a site's kit is refused; ``.path``, ``.reason`` and ``.fix``
    │   └── IdentityError     a peer is not who it has to be; ``.code`` says in which way
    ├── JournalError          a journal cannot be used or written; ``.path``, ``.reason`` and ``.fix``
    ├── UnknownStreamError    no stream of that id can be resumed; ``.stream_id``
    ├── NameInUseError        another living engine has this site's name
    └── SiteError             ``.site`` says which; ``__cause__`` says why

Plain ``TypeError`` and ``ValueError`` are raised for wrong arguments, before anything is sent.
"""

from __future__ import annotations

from typing import TypeVar

E = TypeVar("E", bound=BaseException)


class EngineError(Exception):
    """The root of this package's exceptions."""


class TransportError(EngineError):
    """The bytes could not be carried."""


class ConnectError(TransportError):
    """No link could be made to an address."""


class ClosedError(TransportError):
    """This side closed the link, stream or engine before the call."""


class BrokenError(TransportError):
    """Something outside ended the link: the peer died, the network failed, or it fell silent."""


class ProtocolError(EngineError):
    """A rule of the wire was broken."""


class LocalProtocolError(ProtocolError):
    """This side asked for something that the protocol's state does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow.

    Directly from its sender it ends the link; through a hub it ends that stream only, since the hub between is not to
    blame.
    """


class CodecError(EngineError):
    """A value cannot be encoded, or bytes cannot be decoded."""


class UnknownTypeError(CodecError):
    """A value of a type that is not in the closed registry.

    Attributes:
        path: where it stands in the Shareable, such as ``weights['layer1'][0]``.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class SecurityError(EngineError):
    """Security was asked for and cannot be given; nothing was sent."""


class SealError(SecurityError):
    """Sealed bytes are not what their sender sealed: forged, changed, replayed, or past their time."""


class KitError(SecurityError):
    """A file of a kit or of a federation's folder, or a policy, is missing, broken, out of date or open to others.

    Attributes:
        path: the file.
        reason: what is wrong with it.
        fix: what to do about it.
    """

    def __init__(self, path: object, reason: str, fix: str) -> None:
        super().__init__(f"{path}: {reason}. {fix}")
        self.path = str(path)
        self.reason = reason
        self.fix = fix


class IdentityError(SecurityError):
    """A certificate is not accepted, or is not that of whoever had to show one.

    Attributes:
        code: ``untrusted``, ``revoked``, ``expired``, ``not-yet-valid``, ``malformed``, ``wrong-federation``,
            ``wrong-name``, ``wrong-role``; or ``refused``, where the peer is who refused, and does not say why.
    """

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class JournalError(EngineError):
    """The file of a journal cannot be used, or not be written any more.

    Attributes:
        path: the file.
        reason: what is wrong with it.
        fix: what to do about it.
    """

    def __init__(self, path: object, reason: str, fix: str) -> None:
        super().__init__(f"journal {path}: {reason}. {fix}")
        self.path = str(path)
        self.reason = reason
        self.fix = fix


class UnknownStreamError(EngineError):
    """The journal has no unfinished stream of this id: it has ended, has been resumed before, or never was.

    Attributes:
        stream_id: what was asked for.
    """

    def __init__(self, stream_id: str, site: str) -> None:
        super().__init__(
            f"stream {stream_id} cannot be resumed: the journal of {site} has no such unfinished stream. It has ended, "
            "has been resumed before, or was never durable"
        )
        self.stream_id = stream_id


class NameInUseError(EngineError):
    """Another living engine already answers to this site's name."""


class SiteError(EngineError):
    """Something failed at, or on the way to, one site.

    Attributes:
        site: the site's name.
        rc: the return code that says what kind of failure it was.
    """

    def __init__(self, message: str, *, site: str, rc: str) -> None:
        super().__init__(message)
        self.site = site
        self.rc = rc


def chained(error: E, cause: BaseException | None) -> E:
    """Say what has caused *error*; None says that nobody need know.

    ``raise error from cause`` does the same, but not in modules that are compiled: mypyc leaves the cause out.
    """
    error.__cause__ = cause
    return error
