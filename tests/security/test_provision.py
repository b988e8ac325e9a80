"""A federation is made in one step, grows with its plan, and is kept: renewal, revocation, a new root."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from fanstream.errors import IdentityError, KitError
from fanstream.security import Kit, Role
from fanstream.security.provision import Federation, Plan

from .conftest import Clock, plan

TOML = """
federation = "hospitals"
[[hubs]]
name = "server"
host = "hub.hospitals.example"
port = 8102
[[hubs]]
name = "spare"
host = "2001:db8::1"
port = 443
bind = "::"
[[sites]]
name = "site-1"
[[sites]]
name = "site-2"
hubs = ["spare"]
[certificates]
key = "ed25519"
days = 30
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "federation.toml"
    path.write_text(text)
    return path


def test_a_plan_becomes_kits_that_know_where_to_listen_and_whom_to_dial(tmp_path: Path) -> None:
    federation = Federation.make(Plan.read(write(tmp_path, TOML)), tmp_path / "out")
    kits = {path.name: Kit.load(path) for path in federation.kits.iterdir()}
    spare = "tls://[2001:db8::1]:443?name=spare"
    assert {name: (kit.settings.listen, kit.settings.connect) for name, kit in kits.items()} == {
        "server": (["tls://0.0.0.0:8102"], []),
        "spare": (["tls://[::]:443"], []),
        "site-1": ([], ["tls://hub.hospitals.example:8102?name=server", spare]),
        "site-2": ([], [spare]),
    }
    assert {name: kit.identity.role for name, kit in kits.items()} == federation.plan.roles()
    for kit in kits.values():
        assert kit.identity.federation == "hospitals"
        assert kit.identity.not_after == pytest.approx(time.time() + 30 * 86_400, abs=60)
        assert type(kit.key).__name__ == "Ed25519PrivateKey"


def test_keys_are_their_users_alone_and_the_roots_key_is_in_no_kit(federation: Federation) -> None:
    keys = sorted(federation.folder.rglob("*key.pem"))
    assert len(keys) == 4
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in keys)
    (root,) = (federation.folder / "authority").glob("root-*.key.pem")
    secret = root.read_bytes()
    assert all(secret not in path.read_bytes() for path in federation.kits.rglob("*") if path.is_file())
    for folder in (federation.folder, federation.folder / "authority", *federation.kits.iterdir()):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not [path.name for path in federation.folder.iterdir() if path.name.startswith(".")], "nothing is left over"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"hospitals"', '"hos pitals"', "federation: Value error, a name is 'hos pitals', expected a site's name"),
        ('"site-1"', '"Site-2"', "the name Site-2 is there twice, if only in another case"),
        ('"site-1"', '"server"', "the name server is there twice"),
        ('["spare"]', '["nowhere"]', "site-2 dials nowhere, which is none of the hubs server, spare"),
        ("port = 443", "port = 65536", "hubs.1.port: Input should be less than or equal to 65535"),
        ('"ed25519"', '"rsa-1024"', "certificates.key: Input should be 'ecdsa-p256', 'ed25519' or 'rsa-pss-3072'"),
        ('"2001:db8::1"', '"a/../b"', "hubs.1.host: String should match pattern"),
        ('"2001:db8::1"', '"a?name=b"', "hubs.1.host: String should match pattern"),
        ("days = 30", "days = 0", "certificates.days: Input should be greater than or equal to 1"),
        ("days = 30", "dais = 30", "certificates.dais: Extra inputs are not permitted"),
        ("[[hubs]]", "[[hugs]]", "hugs: Extra inputs|hubs: Field required"),
        ("federation =", "federation", "is no TOML"),
    ],
)
def test_a_plan_with_a_fault_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, TOML.replace(old, new))
    with pytest.raises(KitError, match=message) as caught:
        Plan.read(path)
    assert caught.value.path == str(path)


def test_a_plan_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="cannot be read: No such file"):
        Plan.read(tmp_path / "nothing.toml")


def contents(federation: Federation, name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (federation.kits / name).iterdir()}


def test_who_is_new_gets_a_kit_and_the_others_keep_theirs(federation: Federation) -> None:
    before = {name: contents(federation, name) for name in ("server", "site-1", "site-2")}
    grown = Federation.make(plan(sites=3), federation.folder)
    assert {name: contents(grown, name) for name in before} == before
    assert Kit.load(grown.kits / "site-3").trust.roots.keys() == Kit.load(grown.kits / "server").trust.roots.keys()


def test_a_kit_that_was_copied_and_deleted_is_not_made_again_unless_it_is_renewed(federation: Federation) -> None:
    old = Kit.load(federation.kits / "site-1").identity
    for path in (federation.kits / "site-1").iterdir():
        path.unlink()
    (federation.kits / "site-1").rmdir()
    again = Federation.make(plan(), federation.folder)
    assert not (again.kits / "site-1").exists()
    again.add_root()
    again.revoke(["site-1"])
    assert not (again.kits / "site-1").exists()
    again.renew(["site-1"])
    kit = Kit.load(again.kits / "site-1")
    with pytest.raises(IdentityError, match="is revoked"):
        kit.check(old)


def test_a_folder_of_something_else_is_left_alone(federation: Federation, tmp_path: Path) -> None:
    with pytest.raises(KitError, match="is that of the federation hospitals, and the plan that of banks"):
        Federation.make(plan("banks"), federation.folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(KitError, match="is not empty, and holds no federation"):
        Federation.make(plan(), tmp_path / "full")
    with pytest.raises(KitError, match=r"plan.json: is not there"):
        Federation.open(tmp_path)
    swapped = plan().model_copy(update={"hubs": [plan().hubs[0].model_copy(update={"name": "site-1"})], "sites": []})
    with pytest.raises(KitError, match="has site-1 as a site, and the plan as a hub"):
        Federation.make(swapped, federation.folder)
    assert Kit.load(federation.kits / "site-1").identity.role is Role.SITE


def test_a_failure_half_way_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    class BrokenError(Exception):
        pass

    calls = 0

    def clock() -> float:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise BrokenError
        return time.time()

    # The clock is read for the root, its list, and each certificate: a crash at each of these places.
    for stop in range(1, 6):
        calls, folder = 0, tmp_path / str(stop)
        with pytest.raises(BrokenError):
            Federation.make(plan(), folder, clock=clock)
        made = Federation.make(plan(), folder)  # the same command again
        assert {Kit.load(path).identity.name for path in made.kits.iterdir()} == {"server", "site-1", "site-2"}


def test_revoking_names_all_that_was_ever_issued_and_numbers_go_up(federation: Federation) -> None:
    identities = [Kit.load(federation.kits / "site-1").identity]
    for number in (2, 3):
        federation.renew(["site-1"])
        identities.append(Kit.load(federation.kits / "site-1").identity)
        assert federation.revoke(["site-1"]) == number
        server = Kit.load(federation.kits / "server")
        assert set(server.trust.numbers.values()) == {number}
        for identity in identities:
            with pytest.raises(IdentityError, match="is revoked"):
                server.check(identity)
    Kit.load(federation.kits / "server").check(Kit.load(federation.kits / "site-2").identity)
    shared = {path.read_bytes() for path in federation.folder.rglob("revoked.pem")}
    assert len(shared) == 1, "the list is the same everywhere"


@pytest.mark.parametrize("names", [["site-9"], ["site-1", "site-9"], ["../authority"]])
def test_a_name_that_there_is_not_changes_nothing(names: list[str], federation: Federation) -> None:
    before = {path: path.read_bytes() for path in federation.folder.rglob("*") if path.is_file()}
    with pytest.raises(KitError, match=r"has no .*There are server, site-1, site-2"):
        federation.renew(names)
    with pytest.raises(KitError, match="has no "):
        federation.revoke(names)
    assert {path: path.read_bytes() for path in federation.folder.rglob("*") if path.is_file()} == before


def test_who_left_the_plan_can_still_be_revoked(federation: Federation) -> None:
    identity = Kit.load(federation.kits / "site-2").identity
    shrunk = Federation.make(plan(sites=1), federation.folder)
    shrunk.revoke(["site-2"])
    with pytest.raises(IdentityError, match="is revoked"):
        Kit.load(shrunk.kits / "server").check(identity)


def test_a_root_is_replaced_in_three_steps_and_everybody_trusts_everybody_throughout(federation: Federation) -> None:
    kits = {path.name: Kit.load(path) for path in federation.kits.iterdir()}

    def all_trust_all() -> None:
        for kit in kits.values():
            kit.reload()
        for kit in kits.values():
            for other in kits.values():
                kit.trust.identify(other.certificate, now=time.time())

    first = kits["server"].identity
    federation.add_root()
    all_trust_all()
    with pytest.raises(KitError, match=r"has no certificate of server from the newest root\. Renew it first"):
        federation.retire_roots()
    federation.renew(["server"])
    all_trust_all()
    with pytest.raises(KitError, match="has no certificate of site-1 from the newest"):
        federation.retire_roots()
    federation.renew()
    all_trust_all()
    assert len(federation.retire_roots()) == 1
    all_trust_all()
    assert len(kits["server"].trust.roots) == 1
    with pytest.raises(IdentityError, match="root of server's certificate is no longer trusted"):
        kits["site-1"].check(first)
    assert len(list((federation.folder / "authority").glob("*.key.pem"))) == 1
    assert federation.retire_roots() == []


def test_a_certificate_does_not_outlive_its_root(tmp_path: Path) -> None:
    clock = Clock()
    federation = Federation.make(plan(root_days=10, days=365), tmp_path / "short", clock=clock)
    kit = Kit.load(federation.kits / "site-1")
    assert kit.identity.not_after <= next(iter(kit.trust.roots.values())).not_valid_after_utc.timestamp()


def test_a_root_whose_key_is_not_there_or_another_issues_nothing(federation: Federation) -> None:
    (key,) = (federation.folder / "authority").glob("root-*.key.pem")
    secret = key.read_bytes()
    for data, message in (
        (b"x", "is no private key"),
        ((federation.kits / "site-1" / "key.pem").read_bytes(), "does not belong to its root"),
    ):
        key.write_bytes(data)
        with pytest.raises(KitError, match=message):
            federation.renew()
    key.write_bytes(secret)
    key.chmod(0o644)
    with pytest.raises(KitError, match="other users may use it"):
        federation.revoke(["site-1"])
    key.unlink()
    with pytest.raises(KitError, match="is not there"):
        federation.renew()
