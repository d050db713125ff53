"""The lock of a run's folder, between real processes."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from iceaggr.errors import ConfigError
from iceaggr.steps.step_lock import LOCK_FILE, alone_in

HOLDER = """
import os, sys, time
from pathlib import Path
from iceaggr.steps.step_lock import alone_in
with alone_in(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    sys.stdin.readline()
os.kill(child, 9)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path until it gets a line, and a child of its own."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.child = int(process.stdout.readline())
    yield process
    process.kill()
    with suppress(ProcessLookupError):
        os.kill(process.child, signal.SIGKILL)
    process.communicate()


def test_folder_is_refused_while_another_process_works_in_it(holder, tmp_path):
    taken = r"another step works in this folder \[.*one step at a"
    with pytest.raises(ConfigError, match=taken), alone_in(tmp_path):
        pass
    holder.stdin.write("\n")
    holder.stdin.flush()
    holder.wait()
    with alone_in(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()


def test_folder_is_free_after_a_kill_though_a_child_lives_on(holder, tmp_path):
    holder.kill()
    holder.wait()
    os.kill(holder.child, 0)  # it lives
    with alone_in(tmp_path):
        pass


def test_folder_is_free_after_a_step_that_failed(tmp_path):
    with pytest.raises(RuntimeError, match="broken"), alone_in(tmp_path):
        raise RuntimeError("broken")
    with alone_in(tmp_path):
        pass


@pytest.mark.parametrize(
    ("make", "found"),
    [(os.mkdir, "Is a directory"), (os.mkfifo, "a device, pipe or socket")],
)
def test_lock_that_is_no_file_is_named_and_not_waited_for(make, found, tmp_path):
    make(tmp_path / LOCK_FILE)
    told = rf"cannot be locked .* \[.*/step\.lock\]: found {found}, expected a regular file"
    with pytest.raises(ConfigError, match=told), alone_in(tmp_path):
        pass


UNPRIVILEGED = """
import os
from pathlib import Path
from iceaggr.steps.step_lock import alone_in
if os.geteuid() == 0:
    os.seteuid(65534)
with alone_in(Path(".")):
    pass
"""


def test_folder_that_this_user_may_not_write_to_is_told_in_one_error(tmp_path):
    tmp_path.chmod(0o555)
    command = [sys.executable, "-c", UNPRIVILEGED]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "MachineError: no permission for the local file [step.lock]" in done.stderr


def test_steps_of_a_run_are_refused_while_another_works_in_its_folder(holder, tmp_path):
    from iceaggr.cli import app

    (tmp_path / "run.json").write_text("{}")
    for command in ("stats", "check", "train", "evaluate", "promote"):
        with pytest.raises(ConfigError, match="another step works in this folder"):
            app([command, "--folder", str(tmp_path)], standalone_mode=False)
