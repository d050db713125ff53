"""The version is said once, in src/iceaggr/__init__.py; what cannot read it there agrees."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

import iceaggr
from components.form import EXAMPLE_IMAGE
from manifests.objects import image_of_the_overlays

ROOT = Path(__file__).parent.parent
VERSION = iceaggr.__version__


def test_the_package_takes_its_version_from_the_module():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "src/iceaggr/__init__.py"


def test_a_tree_that_is_not_installed_knows_its_version(tmp_path):
    package = tmp_path / "iceaggr"
    package.mkdir()
    shutil.copy(iceaggr.__file__, package)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import iceaggr as tree"
    code += "; print(tree.__version__)"
    # without site-packages no metadata can be found
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == VERSION


def test_every_default_image_is_of_this_version():
    assert f"registry.example.org/iceaggr:{VERSION}" == EXAMPLE_IMAGE
    assert image_of_the_overlays() == EXAMPLE_IMAGE
    shown = subprocess.run(
        ["make", "--dry-run", "image"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert f'IMAGE="{EXAMPLE_IMAGE}" docker/build.sh' in shown.stdout
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    assert set(re.findall(r"registry\.example\.org/[^\s`]+", runbook)) == {EXAMPLE_IMAGE}


def test_the_label_of_the_image_is_this_version(tmp_path):
    """Run docker/build.sh with an engine that only writes down what it is told."""
    engine = tmp_path / "docker"
    engine.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/told\n', encoding="utf-8")
    engine.chmod(0o755)
    subprocess.run(
        [ROOT / "docker" / "build.sh"],
        check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "IMAGE": EXAMPLE_IMAGE},
    )
    told = (tmp_path / "told").read_text(encoding="utf-8").splitlines()
    assert f"VERSION={VERSION}" in told


def test_citation_and_changelog_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    released = re.findall(
        r"^## \[(\d\S*)\] - (\S+)$",
        (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert citation["version"] == VERSION
    assert released[0] == (VERSION, str(citation["date-released"]))
