"""Overlays as kubectl renders them."""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

MANIFESTS = Path(__file__).parents[2] / "manifests"
OVERLAYS = ("existing", "standalone")


@functools.cache
def _rendered(overlay: str, trainer: bool) -> str:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    with tempfile.TemporaryDirectory() as name:
        manifests = Path(shutil.copytree(MANIFESTS, Path(name) / "manifests"))
        if trainer:
            add_trainer(manifests / "overlays" / overlay / "kustomization.yaml")
        command = ["kubectl", "kustomize", str(manifests / "overlays" / overlay)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def add_trainer(overlay: Path) -> None:
    """Take the mark of comment from the one line that adds Kubeflow Trainer's part."""
    lines = overlay.read_text(encoding="utf-8").splitlines(keepends=True)
    (line,) = [i for i, text in enumerate(lines) if text.strip() == "# - ../../trainer"]
    lines[line] = lines[line].replace("# ", "")
    overlay.write_text("".join(lines), encoding="utf-8")


def render(overlay: str, trainer: bool = False) -> list[dict]:
    """Render an overlay, anew for each caller, who may change it.

    trainer: with what several machines need
    """
    return list(yaml.safe_load_all(_rendered(overlay, trainer)))


def find(documents: list[dict], kind: str, name: str) -> dict:
    """Find the one object of a kind and name."""
    (found,) = [d for d in documents if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return found
