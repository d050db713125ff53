"""`make setup`: an environment is kept exactly while it is what would be made now."""

import os
import shutil
import subprocess

import pytest

from tests.dependencies.closure import ROOT

PROJECT = """
[build-system]
requires = ["hatchling==1.33.0"]
build-backend = "hatchling.build"
[project]
name = "iceaggr"
version = "0.1.0"
[project.optional-dependencies]
local = []
dev = []
[tool.hatch.build.targets.wheel]
packages = ["src/iceaggr"]
"""
# a Python that makes environments at once: their pip notes each call, and fails when told to
STAND_IN = """#!/bin/sh
case "$1" in
-VV) cat "{folder}/version" ;;
-m) for made in "$@"; do :; done
  mkdir -p "$made/bin" && cp "$0" "$made/bin/python" && cp "{folder}/pip" "$made/bin/pip" ;;
esac
"""
PIP = """#!/bin/sh
echo "$@" >> "{folder}/calls"
[ ! -e "{folder}/broken" ]
"""
OLD_S = 1577836800


class Checkout:
    """A folder with our Makefile, and a Python that only says that it installs."""

    def __init__(self, folder):
        self.folder = folder / "checkout"
        self.programs = folder / "programs"
        self.programs.mkdir()
        self.folder.mkdir()
        shutil.copy(ROOT / "Makefile", self.folder)
        for name in ("pyproject.toml", "constraints.txt", "audit-tools.txt"):
            (self.folder / name).write_text("old\n")
        for name, text in (("python3", STAND_IN), ("pip", PIP)):
            (self.programs / name).write_text(text.format(folder=self.programs))
            (self.programs / name).chmod(0o755)
        (self.programs / "version").write_text("Python 3.11.2\n")
        (self.programs / "calls").touch()

    def make(self, *arguments):
        """Run make; tells whether it installed anything."""
        before = (self.programs / "calls").read_text()
        done = make(self.folder, *arguments, path=self.programs)
        assert done.returncode == 0 or (self.programs / "broken").exists(), done.stderr
        return (self.programs / "calls").read_text() != before


def make(folder, *arguments, path=None):
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "PYTHON")}
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    return subprocess.run(
        ["make", *(arguments or ["setup"])],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path):
    checkout = Checkout(tmp_path)
    assert checkout.make()
    assert not checkout.make()
    return checkout


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml"])
def test_changed_file_counts_however_old_it_is(checkout, name):
    path = checkout.folder / name
    path.write_text("new\n")
    os.utime(path, (OLD_S, OLD_S))
    assert checkout.make()
    assert not checkout.make()


def test_new_time_stamp_alone_installs_nothing(checkout):
    for name in ("constraints.txt", "pyproject.toml"):
        (checkout.folder / name).touch()
    assert not checkout.make()


def test_copied_or_moved_folder_gets_an_environment_of_its_own(checkout):
    # programs and the editable installation of an environment name the folder that it was made in
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))
    assert checkout.make()
    assert not checkout.make()


def test_environment_of_another_python_is_made_again(checkout):
    (checkout.programs / "version").write_text("Python 3.12.1\n")
    assert checkout.make()


def test_python_of_the_command_line_is_asked_for_once(checkout):
    other = checkout.programs / "other"
    other.write_text((checkout.programs / "python3").read_text().replace("/version", "/version2"))
    other.chmod(0o755)
    (checkout.programs / "version2").write_text("Python 3.13.0\n")
    assert checkout.make("setup", f"PYTHON={other}")
    # later commands need not name it again
    assert not checkout.make()
    assert checkout.make("setup", "PYTHON=python3")


def test_interrupted_installation_is_done_again(checkout):
    (checkout.folder / "constraints.txt").write_text("new\n")
    (checkout.programs / "broken").touch()
    assert checkout.make()
    (checkout.folder / "constraints.txt").write_text("old\n")
    (checkout.programs / "broken").unlink()
    assert checkout.make()
    assert not checkout.make()


def test_tools_of_the_audit_follow_their_file(checkout):
    assert checkout.make("tools")
    assert not checkout.make("tools")
    (checkout.folder / "audit-tools.txt").write_text("new\n")
    os.utime(checkout.folder / "audit-tools.txt", (OLD_S, OLD_S))
    assert checkout.make("tools")


def test_copy_of_a_checkout_runs_its_own_code(tmp_path):
    first, copy = tmp_path / "first", tmp_path / "copy"
    (first / "src" / "iceaggr").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", first)
    (first / "pyproject.toml").write_text(PROJECT)
    (first / "constraints.txt").write_text("")
    (first / "src" / "iceaggr" / "__init__.py").write_text("")
    assert make(first).returncode == 0
    shutil.copytree(first, copy, symlinks=True)
    assert make(copy).returncode == 0
    command = [copy / ".venv" / "bin" / "python", "-c", "import iceaggr; print(iceaggr.__file__)"]
    told = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False).stdout
    assert told.strip() == str(copy / "src" / "iceaggr" / "__init__.py")
