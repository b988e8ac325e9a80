"""The commands that make and keep a federation: what they say, and how they fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fanstream.cli import main
from fanstream.security import Kit

TOML = """
federation = "hospitals"
[[hubs]]
name = "server"
host = "127.0.0.1"
port = 8102
[[sites]]
name = "site-1"
[[sites]]
name = "site-2"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a plan, which is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "federation.toml").write_text(TOML)
    return tmp_path


def test_a_federation_is_made_and_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        assert main(arguments) == 0
        return " ".join(capsys.readouterr().out.split())

    said = run("provision", "federation.toml", "--out", "out")
    assert "hospitals" in said
    assert all(name in said for name in ("server", "site-1", "site-2"))
    assert f"Copy each folder of {folder}/out/kits to its site, and delete it here." in said
    first = Kit.load("out/kits/site-1").identity

    assert run("renew", "out", "site-1") == "site-1: copy certificate.pem and key.pem of its kit"
    assert Kit.load("out/kits/site-1").identity.serial != first.serial
    assert run("revoke", "out", "site-2") == "list 2: copy revoked.pem to every hub and site"
    assert "copy roots.pem and revoked.pem to every hub and site, and then renew them all" in run("add-root", "out")
    assert run("renew", "out").count(": copy certificate.pem and key.pem") == 3
    assert "copy roots.pem to every hub and site" in run("retire-roots", "out")
    said = run("check", "out/kits/site-1")
    assert said.startswith("site-1, a site of hospitals, until 20")
    assert said.endswith("revocation lists: 1")


def test_what_fails_says_so_on_one_line_and_has_a_status(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["provision", "nowhere.toml", "--out", "out"]) == 1
    assert capsys.readouterr().err == (
        "fanstream: nowhere.toml: cannot be read: No such file or directory. Name the federation's TOML file\n"
    )
    assert not (folder / "out").exists()
    assert main(["provision", "federation.toml", "--out", "no/such/out"]) == 1
    assert "No such file or directory" in capsys.readouterr().err
    assert main(["check", "federation.toml"]) == 1
    assert "is no folder" in capsys.readouterr().err


def test_check_reads_the_policy_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["provision", "federation.toml", "--out", "out"]) == 0
    kit = folder / "out" / "kits" / "site-1"
    settings = kit / "kit.toml"
    settings.write_text(settings.read_text() + '\n[engine]\npolicy = "policy.toml"\n')
    policy = kit / "policy.toml"
    rule = '[[streams]]\nname = "all"\neffect = "allow"\nfrom = "*"\nto = "*"\nchannel = "*"\ntopic = "*"\n'
    policy.write_text(rule)
    assert main(["check", str(kit)]) == 0
    assert "policy.toml: 1 about streams, 0 about registrations" in capsys.readouterr().out
    policy.write_text(rule.replace("allow", "Allow"))
    assert main(["check", str(kit)]) == 1
    assert "policy.toml: is refused: streams[0].effect: " in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["chek"], ["provision", "federation.toml"], ["revoke", "out"]])
def test_a_misspelt_command_has_a_status_of_its_own(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "Error" in captured.out + captured.err


def test_the_module_runs_too(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fanstream", "check", "nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("fanstream: ")
    assert "Traceback" not in done.stderr


def test_without_its_extra_it_says_which(folder: Path) -> None:
    script = (
        "import sys; sys.modules['cyclopts'] = None; from fanstream.cli import main; sys.exit(main(['check', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "fanstream: the command line needs an extra: pip install 'fanstream[cli]'\n"
    script = "import sys; sys.modules['cryptography'] = None; import fanstream.security"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "ImportError: fanstream.security needs cryptography: pip install 'fanstream[security]'" in done.stderr
