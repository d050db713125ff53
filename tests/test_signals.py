"""What is left of a process whose parent is killed, behind shells and without them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from iceaggr.signals import LAUNCHER_VARIABLE, end_with_launcher

WORKER = """
import os, signal, sys, time
from pathlib import Path
from iceaggr.signals import Termination, end_with_launcher, end_with_parent
end_with_parent()
end_with_launcher()
termination = Termination()
termination.begin()
Path(sys.argv[1], "pid").write_text(str(os.getpid()))
try:
    time.sleep(120)
finally:
    Path(sys.argv[1], "saved").touch()
"""
LAUNCHER = """
import os, subprocess, sys
from iceaggr.signals import held_by_launcher
with held_by_launcher() as told:
    subprocess.run(sys.argv[1], shell=True, env={**os.environ, **told})
"""


@pytest.fixture
def worker(tmp_path):
    """Gives the shell command of a worker, and ends what is left of it."""
    yield f"{sys.executable} -c '{WORKER}' {tmp_path}"
    with_pid = tmp_path / "pid"
    if with_pid.exists() and psutil.pid_exists(int(with_pid.read_text())):
        os.kill(int(with_pid.read_text()), signal.SIGKILL)


def start(command):
    # a session of its own, so that nothing of the terminal of these tests plays a part
    return subprocess.Popen(command, start_new_session=True, preexec_fn=hear_everything)


def hear_everything():
    # tests that run under nohup hand their deafness down
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def wait_for(path: Path, within_s: float = 60.0) -> bool:
    until = time.monotonic() + within_s
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.05)
    return path.exists()


@pytest.mark.parametrize("how", ["{}; true", "timeout 600 {}; true", "{} | cat"])
def test_process_ends_and_cleans_up_when_the_shell_that_runs_it_is_killed(worker, tmp_path, how):
    shell = start(["sh", "-c", how.format(worker)])
    assert wait_for(tmp_path / "pid")
    parent = psutil.Process(int((tmp_path / "pid").read_text())).parent()
    parent.kill()
    assert wait_for(tmp_path / "saved")
    shell.kill()
    shell.wait()


@pytest.mark.parametrize("how", ["nohup {}; true", "{} & wait", "setsid {}; true"])
def test_process_that_was_put_aside_outlives_its_shell(worker, tmp_path, how):
    shell = start(["sh", "-c", how.format(worker)])
    assert wait_for(tmp_path / "pid")
    shell.kill()
    shell.wait()
    assert not wait_for(tmp_path / "saved", within_s=3.0)


def test_step_behind_a_shell_ends_with_the_launcher_of_the_run(worker, tmp_path):
    launcher = start([sys.executable, "-c", LAUNCHER, f"{worker}; true"])
    assert wait_for(tmp_path / "pid")
    launcher.kill()
    assert wait_for(tmp_path / "saved")
    launcher.wait()


def test_process_without_a_launcher_runs_on(tmp_path):
    end_with_launcher({})
    assert LAUNCHER_VARIABLE not in os.environ


def test_step_in_the_launchers_own_process_goes_on():
    code = """
import os, time
from iceaggr.progress import StepProgress
from iceaggr.signals import held_by_launcher
with held_by_launcher() as variables:
    os.environ.update(variables)
    with StepProgress("simulate"):
        time.sleep(2)
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["went on"]), done.stderr
