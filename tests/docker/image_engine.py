"""Run a command in the image the way a strict cluster does, with whatever engine is there."""

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

UID = 12345
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


class ImageEngine:
    """Docker, podman, or buildah with util-linux.

    Each command runs as user 12345 of group 0, with a read-only root, a writable /tmp, no
    capabilities and the network of this machine.
    """

    def __init__(self, program: str) -> None:
        self.program = program

    def can_have(self, name: str) -> bool:
        """Tell whether an image is here or can be pulled."""
        look = ["image", "inspect"] if self.program != "buildah" else ["inspect", "--type=image"]
        return _answers(self.program, *look, name) or _answers(self.program, "pull", name)

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


def _run_in_root(root: str, command, scratch: Path, environment):
    scratch.chmod(0o1777)
    variables = [f"{key}={value}" for key, value in environment.items()]
    enter = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", _ENTER_ROOT, "enter"]
    settings = {"ROOT": root, "SCRATCH": str(scratch), "USER_ID": str(UID)}
    return _finished([*enter, *variables, *command], os.environ | settings)


def _finished(command, environment=None):
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
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
