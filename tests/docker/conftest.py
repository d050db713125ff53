"""The image under test: named by the environment, or built now."""

import os
import subprocess

import pytest

from tests.docker.image_engine import EngineError, find_engine, pip_flags, usable_base
from tests.docker.test_dockerfile import ROOT

BUILT_IMAGE = "localhost/iceaggr:test"


@pytest.fixture(scope="session")
def engine():
    """Find docker, podman or buildah."""
    found = find_engine()
    if found is None:
        pytest.skip("no image engine: neither docker, podman nor, as root, buildah with setpriv")
    return found


@pytest.fixture(scope="session")
def build_image(engine, tmp_path_factory):
    """Build an image from a folder: `build_image(name, context, *flags) -> CompletedProcess`.

    docker/build.sh says what BASE_IMAGE, TORCH and IMAGE_FLAGS change in the build. Without
    BASE_IMAGE a base is made of Debian's packages where debootstrap is at hand; without IMAGE_FLAGS
    the pip of the build knows what the pip of this machine knows.
    """
    try:
        base = os.environ.get("BASE_IMAGE") or usable_base(engine, tmp_path_factory.mktemp("base"))
    except EngineError as error:
        pytest.skip(f"no base image can be made here: {error}")
    if not engine.can_have(base):
        pytest.skip(f"the base image {base} cannot be had: name another in BASE_IMAGE")
    flags = os.environ.get("IMAGE_FLAGS") or pip_flags(engine, tmp_path_factory.mktemp("pip"))

    def build(name, context, *more):
        settings = {"IMAGE": name, "BASE_IMAGE": base, "IMAGE_FLAGS": " ".join([flags, *more])}
        return subprocess.run(
            [context / "docker" / "build.sh"],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=False,
        )

    return build


@pytest.fixture(scope="session")
def run_in_image(engine, request):
    """Run commands in the image named by ICEAGGR_TEST_IMAGE, or in one that is built now."""
    name = os.environ.get("ICEAGGR_TEST_IMAGE", "")
    if not name:
        name = BUILT_IMAGE
        built = request.getfixturevalue("build_image")(name, ROOT)
        assert built.returncode == 0, built.stderr[-3000:]
    with engine.image(name) as run:
        yield run
