"""The image under test: named by the environment, or built now."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.docker.image_engine import find_engine

ROOT = Path(__file__).parents[2]
BUILT_IMAGE = "localhost/iceaggr:test"
DEFAULT_BASE = "docker.io/library/debian:12-slim"


@pytest.fixture(scope="session")
def run_in_image():
    """Run commands in the image named by ICEAGGR_TEST_IMAGE, or in one that is built now.

    docker/build.sh says what BASE_IMAGE, TORCH and IMAGE_FLAGS change in the build.
    """
    engine = find_engine()
    if engine is None:
        pytest.skip("no image engine: neither docker, podman nor, as root, buildah with setpriv")
    name = os.environ.get("ICEAGGR_TEST_IMAGE", "")
    if not name:
        name = BUILT_IMAGE
        base = os.environ.get("BASE_IMAGE", DEFAULT_BASE)
        if not engine.can_have(base):
            pytest.skip(f"the base image {base} cannot be had: name another in BASE_IMAGE")
        built = subprocess.run(
            [ROOT / "docker" / "build.sh"],
            env=os.environ | {"IMAGE": name},
            capture_output=True,
            text=True,
            check=False,
        )
        assert built.returncode == 0, built.stderr[-3000:]
    with engine.image(name) as run:
        yield run
