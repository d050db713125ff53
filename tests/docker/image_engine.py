"""Build the image, and run commands in it as a strict cluster does, with the engine at hand."""

import os
import shutil
import subprocess
import sys
from configparser import RawConfigParser
from contextlib import contextmanager
from pathlib import Path

UID = 12345
DEFAULT_BASE = "docker.io/library/debian:12-slim"
_MADE_BASE = "localhost/iceaggr-test-base:12"
_MIRROR = "http://deb.debian.org/debian"
_LEFT_OUT = ("proc", "sys", "dev", "var/cache/apt", "var/lib/apt/lists")
_PIP_SETTINGS = ("cert", "find-links", "index-url", "extra-index-url", "trusted-host", "proxy")
_ENVIRONMENT_FORMAT = "{{range .OCIv1.Config.Env}}{{println .}}{{end}}"

# Without a daemon there is buildah; its `run` knows no read-only root, so the root is mounted here:
# own mount and process namespaces, any user id, no capability, no way to gain one.
_ENTER_ROOT = """
set -e
mount --bind "$ROOT" "$ROOT"
mount -o remount,bind,ro "$ROOT"
mount --bind "$SCRATCH" "$ROOT/tmp"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
exec chroot "$ROOT" setpriv --reuid "$USER_ID" --regid 0 --clear-groups --no-new-privs \
  --inh-caps=-all --bounding-set=-all env --ignore-environment --chdir=/tmp "$@"
"""


class EngineError(Exception):
    """The engine cannot do here what an image needs: no rights, no base, no network."""


class ImageEngine:
    """Docker, podman, or buildah with util-linux.

    Each command runs as user 12345 of group 0, with a read-only root, a writable /tmp, no
    capabilities and the network of this machine.
    """

    def __init__(self, program: str) -> None:
        self.program = program

    def has(self, name: str) -> bool:
        """Tell whether an image is here."""
        look = ["image", "inspect"] if self.program != "buildah" else ["inspect", "--type=image"]
        return _answers(self.program, *look, name)

    def can_have(self, name: str) -> bool:
        """Tell whether an image is here or can be pulled."""
        return self.has(name) or _answers(self.program, "pull", name)

    @contextmanager
    def image(self, name: str):
        """Give a callable `run(command, scratch, environment) -> CompletedProcess`."""
        if self.program != "buildah":
            yield lambda *args: self._run_container(name, *args)
            return
        container = _output("buildah", "from", name)
        try:
            root = _output("buildah", "mount", container)
            inspect = ["buildah", "inspect", "--type=image", "--format", _ENVIRONMENT_FORMAT, name]
            defaults = dict(line.split("=", 1) for line in _output(*inspect).splitlines() if line)
            yield lambda command, scratch, environment: _run_in_root(
                root, command, scratch, defaults | environment
            )
        finally:
            subprocess.run(["buildah", "rm", container], check=False, capture_output=True)

    def _run_container(self, name, command, scratch: Path, environment):
        scratch.chmod(0o1777)
        flags = ["--rm", "--read-only", "--network=host", f"--user={UID}:0", "--cap-drop=ALL"]
        flags += ["--security-opt=no-new-privileges", f"--volume={scratch}:/tmp"]
        flags += [f"--env={key}={value}" for key, value in environment.items()]
        return _finished([self.program, "run", *flags, name, *command])


def find_engine() -> ImageEngine | None:
    """Find an engine that answers."""
    for program in ("docker", "podman"):
        if shutil.which(program) and _answers(program, "info"):
            return ImageEngine(program)
    if os.geteuid() == 0 and shutil.which("setpriv") and _answers("buildah", "--version"):
        return ImageEngine("buildah")
    return None


def usable_base(engine: ImageEngine, folder: Path) -> str:
    """Name a base image: one made of Debian's packages, where buildah and debootstrap are here.

    Raises: EngineError where it cannot be made, or no program can be run in it.
    """
    if engine.program != "buildah" or not shutil.which("debootstrap"):
        return DEFAULT_BASE
    try:
        if not engine.has(_MADE_BASE):
            _make_base(folder / "debian")
        container = _output("buildah", "from", _MADE_BASE)
        try:
            _output("buildah", "run", "--isolation=chroot", container, "--", "true")
        finally:
            _output("buildah", "rm", container)
    except AssertionError as error:
        raise EngineError(str(error)[-500:]) from None
    return _MADE_BASE


def _make_base(root: Path) -> None:
    """Do what docs/runbook.md does by hand."""
    _output("debootstrap", "--variant=minbase", "bookworm", str(root), _MIRROR)
    container = _output("buildah", "from", "scratch")
    try:
        for name in _LEFT_OUT:
            shutil.rmtree(root / name)
            (root / name).mkdir()
        _output("buildah", "copy", container, f"{root}/", "/")
        path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
        _output("buildah", "config", "--env", path, "--cmd", "bash", container)
        _output("buildah", "commit", container, _MADE_BASE)
    finally:
        _output("buildah", "rm", container)


def pip_flags(engine: ImageEngine, folder: Path) -> str:
    """Give the flags that bring this machine's pip settings, and what they name, into a build."""
    if engine.program == "docker":
        return ""
    told = _output(sys.executable, "-m", "pip", "config", "list").splitlines()
    # what is told first wins: the environment stands before the files
    pairs = [line.partition("=") for line in reversed(told)]
    settings = {key.rpartition(".")[2]: value.strip("'\"") for key, _, value in pairs}
    settings = {key: value for key, value in settings.items() if key in _PIP_SETTINGS}
    mounts = {"/etc/pip.conf": folder / "pip.conf"}
    if "cert" in settings:
        # not over the image's own certificates, which a package installs
        certificates = Path(settings["cert"])
        settings["cert"] = f"/opt/certificates/{certificates.name}"
        mounts["/opt/certificates"] = certificates.parent
    for name in ("find-links", "index-url", "extra-index-url"):
        for word in settings.get(name, "").split():
            place = Path(word.removeprefix("file://"))
            # an index names files beside it
            place = place.parent if word.startswith("file://") else place
            if place.is_absolute() and place.exists():
                mounts[str(place)] = place
    config = RawConfigParser()
    config["global"] = settings
    with (folder / "pip.conf").open("w") as file:
        config.write(file)
    flags = ["--isolation=chroot"] if engine.program == "buildah" else []
    return " ".join([*flags, *(f"-v {path}:{inside}:ro" for inside, path in mounts.items())])


def _run_in_root(root: str, command, scratch: Path, environment):
    scratch.chmod(0o1777)
    variables = [f"{key}={value}" for key, value in environment.items()]
    enter = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", _ENTER_ROOT, "enter"]
    settings = {"ROOT": root, "SCRATCH": str(scratch), "USER_ID": str(UID)}
    return _finished([*enter, *variables, *command], os.environ | settings)


def _finished(command, environment=None):
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def _answers(*command: str) -> bool:
    try:
        return (
            subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


def _output(*command: str) -> str:
    done = _finished(command)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
