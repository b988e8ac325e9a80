"""What TLS is told, and what is checked of a peer beside it, should TLS not have done so."""

from __future__ import annotations

import contextlib
import ssl
from datetime import timedelta

import pytest

from fanstream.errors import IdentityError
from fanstream.security import Kit, Role
from fanstream.security.provision import Federation

from .conftest import Clock
from .forging import authority, forge


@pytest.mark.parametrize("name", ["server", "site-1"])
def test_contexts_take_tls_1_3_of_verified_peers_and_nothing_is_taken_up_again(
    name: str, federation: Federation
) -> None:
    context = Kit.load(federation.kits / name).context
    assert context.minimum_version == context.maximum_version == ssl.TLSVersion.TLSv1_3
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.verify_flags & ssl.VERIFY_X509_STRICT
    assert name != "server" or context.num_tickets == 0
    assert len(context.get_ca_certs()) == 1, "and none of the system's authorities"


@pytest.mark.parametrize(
    ("whose", "name", "role", "expected", "code"),
    [
        ("server", "site-1", Role.SITE, None, None),
        ("server", "site-1", Role.HUB, None, "wrong-role"),
        ("site-1", "server", Role.HUB, "server", None),
        ("site-1", "server", Role.SITE, "server", "wrong-role"),
        ("site-1", "spare", Role.HUB, "server", "wrong-name"),
        ("site-1", "server", Role.HUB, "Server", "wrong-name"),
        ("site-1", "server", Role.HUB, "", "wrong-name"),
    ],
)
def test_a_peer_is_judged_by_role_and_name(
    whose: str, name: str, role: Role, expected: str | None, code: str | None, federation: Federation
) -> None:
    context = Kit.load(federation.kits / whose).context
    shown = forge(authority(federation), name, role=role).certificate
    if code is None:
        assert context.judge(shown, expected).name == name
        return
    with pytest.raises(IdentityError) as caught:
        context.judge(shown, expected)
    assert caught.value.code == code


def shake(client: ssl.SSLObject, server: ssl.SSLObject, pipes: list[tuple[ssl.MemoryBIO, ssl.MemoryBIO]]) -> None:
    """Shake hands in memory; bytes are carried one by one."""
    for _ in range(10):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            for source, sink in pipes:
                for byte in source.read():
                    sink.write(bytes([byte]))


def test_a_handshake_gives_the_identity_of_the_other_side(federation: Federation) -> None:
    hub, site = Kit.load(federation.kits / "server"), Kit.load(federation.kits / "site-1")
    ends = [(ssl.MemoryBIO(), ssl.MemoryBIO()) for _ in range(2)]
    (client_in, client_out), (server_in, server_out) = ends
    client = site.context.wrap_bio(client_in, client_out, server_hostname="server")
    server = hub.context.wrap_bio(server_in, server_out, server_side=True)
    shake(client, server, [(client_out, server_in), (server_out, client_in)])
    assert vars(client)["identity"] == hub.identity
    assert vars(server)["identity"] == site.identity
    assert client.version() == "TLSv1.3"


def test_the_clock_of_the_kit_judges_too(federation: Federation) -> None:
    clock = Clock()
    context = Kit.load(federation.kits / "server", clock=clock).context
    shown = forge(authority(federation), ends=timedelta(days=1)).certificate
    context.judge(shown, None)
    clock.ahead = timedelta(days=1).total_seconds()
    with pytest.raises(IdentityError) as caught:
        context.judge(shown, None)
    assert caught.value.code == "expired"
