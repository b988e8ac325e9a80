"""The checks of this project; `nox` runs those that a change has to pass, `nox --list` tells of all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["tests", "lint", "types", "docs"]

ROOT: Final = Path(__file__).parent
SUPPORTED: Final = ("3.11", "3.12", "3.13")
PROJECT: Final = nox.project.load_toml(ROOT / "pyproject.toml")

# What a build that compiles is told; see compiling.py.
COMPILE: Final = {"HATCH_BUILD_HOOKS_ENABLE": "1"}

# torch's default wheel weighs gigabytes, so only the session `torch` installs it.
TESTED_EXTRAS: Final = ".[arrow,blake3,cli,demo,fasttls,trio,uvloop]"


def candidates() -> list[Path]:
    """Where a supported Python may be: this one, on PATH, and among pyenv's versions, those switched off included."""
    executable = "python{}.exe" if os.name == "nt" else "python{}"
    found = [Path(sys.executable)]
    for folder in os.get_exec_path():
        found += [Path(folder) / executable.format(version) for version in SUPPORTED]
    pyenv_root = os.environ.get("PYENV_ROOT")
    if not pyenv_root and (pyenv := shutil.which("pyenv")):
        pyenv_root = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=False).stdout.strip()
    versions = Path(pyenv_root or Path.home() / ".pyenv") / "versions"
    for version in SUPPORTED:
        # Plain releases only, the newest first: "3.13.10" before "3.13.9", and no environments made by hand.
        releases = [path for path in versions.glob(f"{version}.*") if path.name.removeprefix(f"{version}.").isdigit()]
        releases.sort(key=lambda path: int(path.name.rpartition(".")[2]), reverse=True)
        found += [path / "bin" / executable.format(version) for path in releases]
    return [path for path in found if path.is_file()]


def version_of(interpreter: Path) -> str | None:
    """The minor version of *interpreter*; None where it does not run, as a shim of a version that is switched off."""
    script = "import sys, ctypes, ssl; print(sys.implementation.name, '.'.join(map(str, sys.version_info[:2])))"
    try:
        done = subprocess.run(
            [interpreter, "-c", script], capture_output=True, text=True, check=False, timeout=20, cwd=Path.home()
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    name, _, version = done.stdout.strip().partition(" ")
    return version if done.returncode == 0 and name == "cpython" else None


def interpreters() -> dict[str, Path]:
    """Find one interpreter for each supported version that this machine has; the one that runs nox comes first."""
    found: dict[str, Path] = {}
    for path in candidates():
        version = version_of(path) if len(found) < len(SUPPORTED) else None
        if version in SUPPORTED:
            found.setdefault(version, path)
    own = "{}.{}".format(*sys.version_info)
    return dict(sorted(found.items(), key=lambda item: (item[0] != own, item[0])))


FOUND: Final = interpreters()
# A Python newer than those supported must do where no other is found.
PYTHONS: Final = list(FOUND) or ["{}.{}".format(*sys.version_info)]
# numpy's stubs follow the oldest Python that numpy supports, so mypy runs on the oldest that we do.
OLDEST: Final = min(PYTHONS, key=lambda version: int(version.partition(".")[2]))

# nox looks up "3.12" on PATH, where a shim of a version that is switched off may stand in front.
os.environ["PATH"] = os.pathsep.join([*(str(path.parent) for path in FOUND.values()), os.environ.get("PATH", "")])


# Two processes, whatever the machine: many tests run on real time, and more at once would be each other's noise. One
# that has done its half takes of the other's.
PYTEST: Final = ("python", "-m", "pytest", "-n", "2", "--dist", "worksteal")

# What says the same on every Python: the pure machines, whole scripts and pages, what is counted rather than run, and
# the threats. The first Python runs them.
ONCE: Final = (
    "cli",
    "codec/test_hashes.py",
    "codec/test_scan.py",
    "docs",
    "fuzz",
    "mutants",
    "outgoing/test_durable.py",
    "outgoing/test_durable_ends.py",
    "processes",
    "protocol/test_machines.py",
    "protocol/test_receiving.py",
    "protocol/test_resume_machine.py",
    "security/test_members.py",
    "soak",
    "test_benchmarks.py",
    "test_breaks_while_decoding.py",
    "test_counted_work.py",
    "test_layers.py",
    "test_network.py",
    "test_restarts.py",
    "test_slow_sites.py",
    "testing/test_proxy.py",
    "threats",
)


def group(name: str) -> tuple[str, ...]:
    """The requirements of one of pyproject.toml's dependency groups."""
    return nox.project.dependency_groups(PROJECT, name)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the whole suite; posargs go to pytest.

    The first Python tells every failure, and runs what the others would tell nothing more of. Of those, a process stops
    at its first failure. Each simulates scenarios of its own.
    """
    first = session.python == PYTHONS[0]
    # The others do without aiofastnet, so that TLS by asyncio is tested as well.
    session.install(TESTED_EXTRAS if first else TESTED_EXTRAS.replace("fasttls,", ""), *group("test"))
    fewer = [] if first else ["-x", *(f"--ignore=tests/{path}" for path in ONCE)]
    session.run(*PYTEST, *fewer, *session.posargs)


@nox.session(python=PYTHONS[0])
def compiled(session: nox.Session) -> None:
    """Compile the package, which takes a C compiler and minutes, and run the tests on that; posargs go to pytest."""
    session.install(TESTED_EXTRAS, *group("test"), env=COMPILE)
    # What says nothing of a build, and the logs, whose tests make events of nothing: a compiled one takes none.
    left_out = ("docs", "fuzz", "mutants", "test_benchmarks.py", "threats/test_t24_logs.py")
    fewer = [f"--ignore=tests/{path}" for path in left_out]
    session.run(*PYTEST, *fewer, *session.posargs)


@nox.session(python=PYTHONS[0])
def torch(session: nox.Session) -> None:
    """Run the tests that need torch, which is large; posargs go to pytest."""
    session.install(".[cli,trio]", "torch==2.13.0", *group("test"))
    session.run("python", "-m", "pytest", "-m", "torch", *session.posargs)


@nox.session(python=PYTHONS[0])
def simulate(session: nox.Session) -> None:
    """Simulate thousands of scenarios on virtual time; `-- --seeds 20000`, `-- --seed 17 --backend trio` for one."""
    session.install(".[trio]", *group("test"))
    # Sets of names are walked in the same order each time, so that a seed is the same run each time.
    session.run("python", "-m", "tests.simulation", *session.posargs, env={"PYTHONHASHSEED": "0"})


@nox.session(python="3.11")
def fuzz(session: nox.Session) -> None:
    """Fuzz the decoders; `-- --runs 1000000 --target envelope` for one of them."""
    session.install(TESTED_EXTRAS, *group("fuzz"))
    session.run("python", "-m", "tests.fuzz", *session.posargs)


@nox.session(python=PYTHONS[0])
def processes(session: nox.Session) -> None:
    """Kill and freeze processes, then one stream's link; `-- --kills 20` and `-- links --gib 1` do less of either."""
    session.install(".", *group("test"))
    which, *options = session.posargs or [""]
    if which != "links":
        session.run("python", "-m", "tests.processes", *session.posargs)
    if which in ("", "links"):
        session.run("python", "-m", "tests.processes.link_kills", *options)


@nox.session(python=PYTHONS[0])
def soak(session: nox.Session) -> None:
    """Stream for an hour between real processes that are disturbed, and see what grows; `-- --minutes 5` for less."""
    session.install(".", *group("test"))
    session.run("python", "-m", "tests.soak", *session.posargs)


@nox.session(python=PYTHONS[0])
def mutants(session: nox.Session) -> None:
    """Break copies of the package in two hundred ways, each of which a test has to notice; `-- --match budget`."""
    session.install(TESTED_EXTRAS, *group("test"))  # each copy stands before it on the path
    session.run("python", "-m", "tests.mutants", *session.posargs)


@nox.session(python=PYTHONS[0])
def lint(session: nox.Session) -> None:
    """Check style, format and the direction of imports; `nox -s lint -- --fix` mends what can be mended."""
    session.install(*group("lint"))
    if "--fix" in session.posargs:
        session.run("ruff", "check", "--fix", ".")
        session.run("ruff", "format", ".")
    else:
        session.run("ruff", "check", ".")
        session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-cache", "--no-logo", env={"PYTHONPATH": "src"})


@nox.session(python=OLDEST)
def types(session: nox.Session) -> None:
    """Check the types, strictly; posargs go to mypy."""
    session.install(TESTED_EXTRAS, *group("types"))
    session.run("mypy", *session.posargs)


@nox.session(python=PYTHONS[0])
def docs(session: nox.Session) -> None:
    """Build the documentation into docs/_build/html; a warning is an error."""
    session.install(".[security]", *group("docs"))
    output = ROOT / "docs" / "_build"
    shutil.rmtree(output, ignore_errors=True)
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", str(output / "html"))


@nox.session(python=PYTHONS[0])
def demo(session: nox.Session) -> None:
    """Train a federated model on digits, over TCP between processes; posargs go to the script."""
    session.install(".[demo,uvloop]")
    session.run("python", "examples/federated_digits.py", *session.posargs)


@nox.session(python=PYTHONS[0])
def bench(session: nox.Session) -> None:
    """Measure the compiled build, write benchmarks/results; `-- --quick` takes seconds, `-- fan_out` runs one script.

    `-- --interpreted small_objects` measures what is installed where nothing is compiled.
    """
    build = {} if "--interpreted" in session.posargs else COMPILE
    given = [option for option in session.posargs if option != "--interpreted"]
    scripts = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))
    script, *options = given or ["report"]
    if script.startswith("-"):
        script, options = "report", given
    if script not in scripts:
        session.error(f"no benchmark is named {script!r}; there are: {', '.join(scripts)}")
    session.install(".[security]", *group("bench"), *group("peers"), env=build)
    session.run("python", "-m", f"benchmarks.{script}", *options)
