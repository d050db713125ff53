"""The stage of our own code: what it installs is what lies in the checkout, whatever its age."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.docker.test_dockerfile import ROOT, TEXT, instructions

OLD_S = 1577836800  # 2020: older than any build
PARTS = ["components", "configs", "launch", "pipeline.py"]

# the dependencies are not needed to install our code: only what installs us is done
PIP = """#!/bin/sh
case " $* " in
*" . "*) exec {pip} "$@" --no-deps ;;
*" uninstall "*) exec {pip} "$@" ;;
esac
"""


def build_context(folder):
    """Copy what .dockerignore lets through, all of it from 2020."""
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    ignored = [Path(rule).name for rule in rules if rule.startswith("**/")]
    for name in [rule[1:] for rule in rules if rule.startswith("!")]:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns(*ignored))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (OLD_S, OLD_S))
    return folder


def application_steps():
    """Give the instructions of the stages that the application is made in, first to last."""
    stages = {}
    for name, rest in instructions(TEXT):
        if name == "FROM":
            base, _, stage = rest.partition(" AS ")
            stages[stage] = [*stages.get(base, [])]
        elif stages:
            stages[stage].append((name, rest))
    return stages["application"]


class Replay:
    """Carries out the application's stages below a folder, without an image engine."""

    def __init__(self, context, root, python):
        self.context, self.root = context, root
        self.folder = root
        self.programs = root / "programs"
        self.programs.mkdir(parents=True)
        (self.programs / "pip").write_text(PIP.format(pip=f"{python} -m pip"))
        (self.programs / "pip").chmod(0o755)
        self.environment = os.environ | {"PATH": f"{self.programs}:{os.environ['PATH']}"}

    def inside(self, text):
        """Put the paths of an instruction below our folder."""
        return re.sub(r"(?<![\w.])/(opt|source|build)\b", rf"{self.root}/\1", text)

    def run(self, before_install=lambda folder: None):
        """Carry out all instructions; gives the first command that fails, or the last."""
        for name, rest in application_steps():
            if name == "WORKDIR":
                self.folder = Path(self.inside(rest))
                self.folder.mkdir(parents=True, exist_ok=True)
            elif name == "ENV" and not rest.startswith("PATH="):
                variable, _, value = self.inside(rest).partition("=")
                self.environment[variable] = value
            elif name == "COPY":
                self.copy(*self.inside(rest).split())
            elif name == "RUN" and "apt-get" not in rest and "site-packages" not in rest:
                if "--target" in rest:
                    before_install(self.folder)
                done = self.command(self.inside(rest))
                if done.returncode:
                    return done
        return done

    def copy(self, *paths):
        *sources, target = paths
        for source in sources:
            path = self.folder / target
            if (self.context / source).is_dir():
                shutil.copytree(self.context / source, path, dirs_exist_ok=True)
            else:
                shutil.copy2(self.context / source, path)

    def command(self, line):
        return subprocess.run(
            ["sh", "-c", line],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )


def leave_an_empty_build(folder):
    """Leave what an earlier build of an empty package leaves, newer than all sources."""
    path = folder / "build" / "lib" / "iceaggr" / "__init__.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def files_of(folder):
    """Read every file below a folder, but for bytecode."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Make an environment with pip and nothing else, as the image has before the stage."""
    folder = tmp_path_factory.mktemp("python")
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def replayed(tmp_path_factory, python):
    folder = tmp_path_factory.mktemp("replay")
    replay = Replay(build_context(folder / "context"), folder / "root", python)
    done = replay.run(before_install=leave_an_empty_build)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return replay


def test_stage_installs_every_file_of_a_checkout_that_is_older_than_the_build(replayed):
    installed = replayed.root / "opt" / "application"
    assert (installed / "iceaggr" / "__init__.py").stat().st_size > 0
    assert files_of(installed / "iceaggr") == files_of(replayed.context / "src" / "iceaggr")
    for part in PARTS[:-1]:
        assert files_of(installed / part) == files_of(ROOT / part), part
    assert (installed / PARTS[-1]).read_bytes() == (ROOT / PARTS[-1]).read_bytes()


def test_stage_knows_the_version_and_its_command(replayed):
    # what every run died of, without the dependencies
    code = "import iceaggr; from iceaggr import __version__; print(iceaggr.__file__, __version__)"
    application = replayed.root / "opt" / "application"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(application)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split()[:1] == [str(application / "iceaggr" / "__init__.py")], done.stderr
    assert (application / "bin" / "iceaggr").exists()


def test_bytecode_of_the_stage_holds_whatever_becomes_of_time_stamps(replayed):
    application = replayed.root / "opt" / "application"
    compiled = list(application.rglob("*.pyc"))
    sources = [path for path in application.rglob("*.py") if path.stat().st_size]
    assert len(compiled) >= len(sources) > 100
    # the second word of the header: 3 = by content, checked
    assert {int.from_bytes(path.read_bytes()[4:8], "little") for path in compiled} == {3}


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        # a rule that leaves files of ours out, as one for build output may
        ("icecube86.csv", r"Only in src/iceaggr/resources: icecube86\.csv"),
        ("__init__.py", r"Only in src/iceaggr: __init__\.py"),
    ],
)
def test_stage_fails_when_what_it_installed_differs_from_the_sources(tmp_path, python, rule, told):
    def leave_out(folder):
        (folder / ".gitignore").write_text(rule)

    replay = Replay(build_context(tmp_path / "context"), tmp_path / "root", python)
    done = replay.run(before_install=leave_out)
    assert done.returncode != 0
    assert re.search(told, done.stdout), done.stdout + done.stderr


def stated_commit(checkout, programs):
    """Run docker/build.sh with an engine that only prints what it is asked."""
    done = subprocess.run(
        [checkout / "docker" / "build.sh"],
        env={"PATH": f"{programs}:{os.environ['PATH']}", "IMAGE": "example.org/iceaggr:1.0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return re.search(r"COMMIT=(\S+)", done.stdout)[1]


def test_image_of_a_checkout_with_files_that_git_does_not_know_says_so(tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "docker").write_text('#!/bin/sh\necho "$@"\n')
    (programs / "docker").chmod(0o755)
    checkout = build_context(tmp_path / "checkout")
    shutil.copytree(ROOT / "docker", checkout / "docker")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init"], ["add", "."], [*identity, "commit", "-m", "all"]):
        subprocess.run(["git", *command], cwd=checkout, check=True, capture_output=True)
    commit = stated_commit(checkout, programs)
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    # outside of what the image holds
    (checkout / "notes.txt").touch()
    assert stated_commit(checkout, programs) == commit
    # a leftover among the sources is installed like all of them
    (checkout / "src" / "iceaggr" / "leftover.py").touch()
    assert stated_commit(checkout, programs) == f"{commit}-dirty"


@pytest.mark.slow
@pytest.mark.integration
def test_engine_builds_the_stage_from_an_old_checkout(engine, build_image, tmp_path):
    context = build_context(tmp_path / "context")
    for name in (".dockerignore", "docker"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, context / name)
    name = "localhost/iceaggr-test-application:1"
    # the stage of our code alone: neither torch nor any other dependency
    # a layer that is kept from an earlier build would hide what this one does
    built = build_image(name, context, "--target=application", "--no-cache")
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-3000:]
    script = (
        "find /opt/application -type f ! -name '*.pyc' | sort | xargs sha256sum > /tmp/installed;"
        "cd /opt/application && python3 -c 'from iceaggr import __version__; print(__version__)'"
    )
    with engine.image(name) as run:
        done = run(["sh", "-c", script], tmp_path, {})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    lines = (tmp_path / "installed").read_text().splitlines()
    installed = {line[66:].removeprefix("/opt/application/"): line[:64] for line in lines}
    assert {path: installed.get(path) for path in expected(context)} == expected(context)
    others = {path.split("/")[0] for path in set(installed) - set(expected(context))}
    assert {name for name in others if not name.endswith(".dist-info")} == {"bin"}


def expected(context):
    """Name each file of ours in the image with the hash of its content."""
    sources = {f"iceaggr/{path}": data for path, data in files_of(context / "src/iceaggr").items()}
    for part in PARTS[:-1]:
        sources |= {f"{part}/{path}": data for path, data in files_of(context / part).items()}
    sources[PARTS[-1]] = (context / PARTS[-1]).read_bytes()
    return {path: hashlib.sha256(data).hexdigest() for path, data in sources.items()}
