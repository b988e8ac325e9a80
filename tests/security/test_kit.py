"""A kit is taken whole or refused: with the file, what is wrong with it, and what to do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from fanstream import StreamEngine
from fanstream.errors import IdentityError, KitError, SecurityError
from fanstream.security import Kit, Role
from fanstream.security.provision import Federation

from .conftest import Clock, plan
from .forging import authority, forge, install

Spoil = Callable[[Federation, Path], object]


def edit(name: str, old: str, new: str) -> Spoil:
    def spoil(federation: Federation, kit: Path) -> None:
        text = (kit / name).read_text()
        assert old in text
        (kit / name).write_text(text.replace(old, new))

    return spoil


def replace(name: str, data: bytes) -> Spoil:
    return lambda federation, kit: (kit / name).write_bytes(data)


def take(name: str, whose: str = "site-2") -> Spoil:
    return lambda federation, kit: (kit / name).write_bytes((federation.kits / whose / name).read_bytes())


def another(name: str) -> Spoil:
    def spoil(federation: Federation, kit: Path) -> None:
        other = Federation.make(plan("hospitals"), federation.folder.parent / "another")
        (kit / name).write_bytes((other.kits / "site-1" / name).read_bytes())

    return spoil


def show(**changes: object) -> Spoil:
    return lambda federation, kit: install(kit, forge(authority(federation), **changes))  # type: ignore[arg-type]


def encrypt(federation: Federation, kit: Path) -> None:
    key = Kit.load(kit).key
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (kit / "key.pem").write_bytes(pem)


def twice(name: str) -> Spoil:
    return lambda federation, kit: (kit / name).write_bytes((kit / name).read_bytes() * 2)


def mode(name: str, bits: int) -> Spoil:
    return lambda federation, kit: (kit / name).chmod(bits)


def remove(name: str) -> Spoil:
    return lambda federation, kit: (kit / name).unlink()


def make_folder(name: str) -> Spoil:
    def spoil(federation: Federation, kit: Path) -> None:
        (kit / name).unlink()
        (kit / name).mkdir()

    return spoil


@pytest.mark.parametrize(
    ("spoil", "file", "reason", "fix"),
    [
        pytest.param(remove("kit.toml"), "kit.toml", "is not there", "Copy the whole kit", id="no settings"),
        pytest.param(remove("key.pem"), "key.pem", "is not there", "Copy the whole kit", id="no key"),
        pytest.param(remove("certificate.pem"), "certificate.pem", "is not there", "Copy", id="no certificate"),
        pytest.param(remove("roots.pem"), "roots.pem", "is not there", "Copy", id="no roots"),
        pytest.param(remove("revoked.pem"), "revoked.pem", "is not there", "Copy", id="no lists"),
        pytest.param(make_folder("key.pem"), "key.pem", "is no regular file", "", id="a folder for a key"),
        pytest.param(mode("key.pem", 0o640), "key.pem", "has mode 0640, and other", "Run: chmod 600 ", id="group key"),
        pytest.param(mode("key.pem", 0o604), "key.pem", "has mode 0604, and other", "Run: chmod 600 ", id="world key"),
        pytest.param(
            mode("certificate.pem", 0o666),
            "certificate.pem",
            "may change it",
            "Run: chmod go-w ",
            id="open certificate",
        ),
        pytest.param(mode("roots.pem", 0o664), "roots.pem", "may change it", "Run: chmod go-w ", id="open roots"),
        pytest.param(mode("revoked.pem", 0o662), "revoked.pem", "may change it", "Run: chmod go-w ", id="open lists"),
        pytest.param(mode("kit.toml", 0o622), "kit.toml", "may change it", "Run: chmod go-w ", id="open settings"),
        pytest.param(replace("key.pem", b"nonsense"), "key.pem", "is no private key in PEM", "Copy", id="broken key"),
        pytest.param(replace("key.pem", b""), "key.pem", "is no private key in PEM", "Copy", id="empty key"),
        pytest.param(encrypt, "key.pem", "is encrypted", "Store it unencrypted", id="encrypted key"),
        pytest.param(take("key.pem"), "key.pem", "does not belong to certificate.pem", "Copy both", id="swapped key"),
        pytest.param(
            replace("certificate.pem", b"\xff\x00"), "certificate.pem", "is no certificate in PEM", "Copy", id="broken"
        ),
        pytest.param(twice("certificate.pem"), "certificate.pem", "holds 2 certificates", "Copy", id="two of them"),
        pytest.param(replace("roots.pem", b"\x00" * 2**21), "roots.pem", "more than 1048576 bytes", "", id="huge"),
        pytest.param(replace("roots.pem", b"x"), "roots.pem", "is not usable", "Copy the whole kit", id="broken roots"),
        pytest.param(another("roots.pem"), "roots.pem", "no revocation list signed by", "Copy", id="strange roots"),
        pytest.param(another("revoked.pem"), "roots.pem", "no revocation list signed by", "Copy", id="strange lists"),
        pytest.param(
            show(ends=timedelta(seconds=-1)), "certificate.pem", "certificate expired at", "renewed", id="expired"
        ),
        pytest.param(
            show(begins=timedelta(hours=1)),
            "certificate.pem",
            "this clock says",
            "Set this machine's clock",
            id="early",
        ),
        pytest.param(show(name="site-2"), "certificate.pem", "is that of the site site-2, and kit.toml", "", id="name"),
        pytest.param(show(role=Role.HUB), "certificate.pem", "is that of the hub site-1", "", id="role"),
        pytest.param(show(federation="banks"), "certificate.pem", "is of banks, expected hospitals", "", id="banks"),
        pytest.param(show(ca=True), "certificate.pem", "it is an authority's", "", id="an authority's"),
        pytest.param(
            lambda federation, kit: federation.revoke(["site-1"]),
            "certificate.pem",
            "is revoked",
            "renew",
            id="revoked",
        ),
        pytest.param(edit("kit.toml", "= ", "= ="), "kit.toml", "is no TOML", "Mend it", id="no TOML"),
        pytest.param(replace("kit.toml", b"\xff"), "kit.toml", "is no text in UTF-8", "", id="no text"),
        pytest.param(edit("kit.toml", "name", "nome"), "kit.toml", "name: Field required", "", id="misspelt"),
        pytest.param(edit("kit.toml", "site-1", "-"), "kit.toml", "a name is '-', expected a site", "", id="no name"),
        pytest.param(
            edit("kit.toml", '"site"', '"hub"'), "kit.toml", "connect is set, but a hub's", "", id="a hub that dials"
        ),
        pytest.param(
            edit("kit.toml", "connect", "listen"),
            "kit.toml",
            "listen is set, but a site's",
            "",
            id="a site that listens",
        ),
        pytest.param(
            edit("kit.toml", "# [engine]", "[engine]\nhartbeat = 1 #"),
            "kit.toml",
            "is refused: engine.hartbeat: Extra inputs",
            "",
            id="a misspelt setting",
        ),
    ],
)
def test_a_kit_with_a_fault_is_refused(spoil: Spoil, file: str, reason: str, fix: str, federation: Federation) -> None:
    kit = federation.kits / "site-1"
    Kit.load(kit)
    spoil(federation, kit)
    with pytest.raises(KitError, match=reason) as caught:
        StreamEngine.from_kit(kit)
    assert Path(caught.value.path) == kit / file
    assert caught.value.fix
    assert fix in caught.value.fix
    assert str(caught.value) == f"{caught.value.path}: {caught.value.reason}. {caught.value.fix}"


def test_a_message_never_quotes_a_key(federation: Federation) -> None:
    kit = federation.kits / "site-1"
    secret = "c2VjcmV0IG9mIHRoZSBrZXk"
    (kit / "key.pem").write_text(f"-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----\n")
    with pytest.raises(KitError) as caught:
        Kit.load(kit)
    assert secret not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(federation: Federation) -> None:
    kit = federation.kits / "site-1"
    os.chown(kit / "roots.pem", 65534, 65534)
    with pytest.raises(KitError, match="belongs to user 65534, and the engine runs as 0") as caught:
        Kit.load(kit)
    assert caught.value.fix.startswith("Run: chown 0 ")


def test_what_is_no_folder_of_a_kit(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(KitError, match="is no folder"):
            Kit.load(folder)
    with pytest.raises(KitError, match=r"kit.toml: is not there"):
        Kit.load(tmp_path)


def test_a_kit_may_be_behind_a_link_as_secrets_are_mounted(federation: Federation, tmp_path: Path) -> None:
    kit = federation.kits / "site-1"
    (kit / "key.pem").rename(tmp_path / "secret")
    (kit / "key.pem").symlink_to(tmp_path / "secret")
    (tmp_path / "mounted").symlink_to(kit)
    assert Kit.load(tmp_path / "mounted").identity.name == "site-1"
    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(KitError, match="other users may use it"):
        Kit.load(kit)


def test_settings_of_the_engine_come_from_the_kit(federation: Federation) -> None:
    kit = federation.kits / "site-1"
    with (kit / "kit.toml").open("a") as file:
        file.write("[engine]\nheartbeat = 3\nlimits = {streams = 7}\n")
    engine = StreamEngine.from_kit(kit)
    assert (engine.name, engine.settings.heartbeat, engine.settings.limits.streams) == ("site-1", 3.0, 7)
    assert repr(engine.identity) == "<Kit of site-1, a site of hospitals>"


@pytest.mark.parametrize(
    ("name", "whose", "where", "message"),
    [
        ("site-1", None, {"connect": "tls://h:1"}, "connect has tls://h:1, which needs identity: the kit of site-1"),
        ("server", None, {"listen": "tls://h:1"}, "listen has tls://h:1, which needs identity: the kit of server"),
        ("site-1", "site-2", {"connect": "tls://h:1"}, "site_name is site-1, and identity is the kit of site-2"),
        ("site-1", "site-2", {"connect": "unix:///s"}, "site_name is site-1, and identity is the kit of site-2"),
        ("site-1", "site-1", {"listen": "tls://h:1"}, "which needs a hub's kit, and site-1 has a site's"),
        ("server", "server", {"connect": "tls://h:1"}, "which needs a site's kit, and server has a hub's"),
    ],
)
def test_an_engine_needs_the_kit_of_its_name_and_role(
    name: str, whose: str | None, where: dict[str, str], message: str, federation: Federation
) -> None:
    kit = None if whose is None else Kit.load(federation.kits / whose)
    with pytest.raises(SecurityError, match=message):
        StreamEngine(name, identity=kit, **where)  # type: ignore[arg-type]


def test_an_identity_is_a_kit(federation: Federation) -> None:
    folder = str(federation.kits / "site-1")
    with pytest.raises(TypeError, match=r"identity is '.*site-1' of type str, expected a Kit: Kit.load\(folder\)"):
        StreamEngine("site-1", connect="tls://h:1", identity=folder)  # type: ignore[arg-type]


def test_words_around_the_certificates_do_no_harm(federation: Federation) -> None:
    roots = federation.kits / "site-1" / "roots.pem"
    roots.write_text("Die Wurzel der Universit\u00e4tskliniken\n" + roots.read_text(), encoding="utf-8")
    assert Kit.load(roots.parent).identity.name == "site-1"


def test_the_hub_that_has_to_answer_is_said_by_the_address_or_known_to_the_kit(federation: Federation) -> None:
    kit = Kit.load(federation.kits / "site-1")
    said = StreamEngine("site-1", connect=["tls://h:1?name=hub-9", "tls://h:2", "unix:///s"], identity=kit)
    assert [str(address) for address in said._connect] == ["tls://h:1?name=hub-9", "tls://h:2?name=server", "unix:///s"]


def test_among_several_hubs_the_address_tells_which(federation: Federation) -> None:
    folder = federation.kits / "site-1"
    edit("kit.toml", "connect = [", 'connect = ["tls://h:1?name=hub-9", ')(federation, folder)
    kit = Kit.load(folder)
    known = StreamEngine("site-1", connect=["tls://h:1", "tls://127.0.0.1:8102"], identity=kit)
    assert [address.peer for address in known._connect] == ["hub-9", "server"]
    with pytest.raises(ValueError, match=r"connect has tls://h:2, which does not say which hub has to answer"):
        StreamEngine("site-1", connect="tls://h:2", identity=kit)


# --- while an engine runs ---


def test_a_change_is_seen_and_loaded(federation: Federation) -> None:
    kit = Kit.load(federation.kits / "site-1")
    assert not kit.changed()
    before, context = kit.identity, kit.context
    federation.renew(["site-1"])
    assert kit.changed()
    kit.reload()
    assert not kit.changed()
    assert kit.identity.serial != before.serial
    assert kit.context is not context
    kit.check(before)  # what was issued before stays valid


def test_what_cannot_be_loaded_changes_nothing(federation: Federation) -> None:
    folder = federation.kits / "site-1"
    kit = Kit.load(folder)
    before = (kit.identity, kit.context)
    take("certificate.pem")(federation, folder)  # and the key comes later
    with pytest.raises(KitError, match="does not belong to"):
        kit.reload()
    assert (kit.identity, kit.context) == before
    assert kit.changed(), "it is tried again"
    for name in ("certificate.pem", "key.pem", "roots.pem", "revoked.pem"):
        (folder / name).rename(folder / "aside")
        with pytest.raises(KitError):
            kit.reload()
        (folder / "aside").rename(folder / name)
    assert (kit.identity, kit.context) == before


def test_a_list_counts_even_where_the_certificate_is_broken(federation: Federation) -> None:
    folder = federation.kits / "server"
    kit = Kit.load(folder)
    peer = Kit.load(federation.kits / "site-1").identity
    federation.revoke(["site-1"])
    (folder / "certificate.pem").write_bytes(b"half a certi")
    with pytest.raises(KitError):
        kit.reload()
    with pytest.raises(IdentityError, match="is revoked"):
        kit.check(peer)
    assert kit.context.trust is kit.trust, "new links are judged by it too"


def test_an_older_list_is_not_taken_up(federation: Federation) -> None:
    folder = federation.kits / "server"
    old = (folder / "revoked.pem").read_bytes()
    kit = Kit.load(folder)
    peer = Kit.load(federation.kits / "site-1").identity
    federation.revoke(["site-1"])
    kit.reload()
    (folder / "revoked.pem").write_bytes(old)
    with pytest.raises(KitError, match="holds list number 1, and number 2 is known"):
        kit.reload()
    with pytest.raises(IdentityError, match="is revoked"):
        kit.check(peer)


def test_a_kit_does_not_become_that_of_another(federation: Federation) -> None:
    folder = federation.kits / "site-1"
    kit = Kit.load(folder)
    for name in ("certificate.pem", "key.pem"):
        take(name)(federation, folder)
    with pytest.raises(KitError, match="is that of the site site-2"):
        kit.reload()
    assert kit.identity.name == "site-1"


def test_the_end_is_told_in_time(federation: Federation, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    kit = Kit.load(federation.kits / "site-1", clock=clock)
    assert not caplog.records
    clock.ahead = kit.identity.not_after - time.time() - 13 * 86_400
    kit.reload()
    assert "the certificate expires in 13.0 days. Have the kit renewed" in caplog.text


def test_a_policy_in_the_settings_is_looked_for_in_the_kit(federation: Federation) -> None:
    folder = federation.kits / "site-1"
    settings = folder / "kit.toml"
    settings.write_text(settings.read_text() + '\n[engine]\npolicy = "policy.toml"\n')
    assert Kit.load(folder).settings.engine.policy == folder / "policy.toml"
    with pytest.raises(KitError, match=r"policy\.toml: is not there. Copy the policy again"):
        StreamEngine.from_kit(folder)
    settings.write_text(settings.read_text().replace("policy.toml", "/elsewhere/policy.toml"))
    assert Kit.load(folder).settings.engine.policy == Path("/elsewhere/policy.toml")
