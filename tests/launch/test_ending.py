"""What is left of a local run that is told to end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

PROGRAM = """
import signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from launch.local_run import Ending

# tests that run under nohup hand their deafness down
signal.signal(signal.SIGHUP, signal.SIG_DFL)
folder, sleep = sys.argv[1], [sys.executable, "-c", sys.argv[2]]
service = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"],
    start_new_session=True)
try:
    with Ending() as ending, ending.taking_along(), ThreadPoolExecutor(1) as pool:
        # the second one is queued, and begins when the first has ended
        for name in ("first", "second"):
            pool.submit(subprocess.run, [*sleep, f"{folder}/{name}"])
finally:
    print("service", "runs" if service.poll() is None else "ended", flush=True)
    service.kill()
"""
STEP = """
import pathlib, signal, sys, time
def end(number, frame):
    time.sleep(0.5)
    pathlib.Path(sys.argv[1] + ".saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_ending_takes_the_steps_along_and_leaves_the_services_to_their_block(tmp_path, name):
    number = getattr(signal, name)
    run = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path), STEP],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path / "first")
    steps = [p for p in psutil.Process(run.pid).children() if str(tmp_path) in p.cmdline()[-1]]
    run.send_signal(number)
    output, errors = run.communicate(timeout=120)
    assert run.returncode == 128 + number
    assert output == "service runs\n"
    assert errors == f"ended by {name}: stopping the steps\n"
    assert steps
    assert not any(step.is_running() for step in steps)
    assert (tmp_path / "first.saved").exists(), "a step is given time to save its work"
    assert not (tmp_path / "second").exists() or (tmp_path / "second.saved").exists()


LATE_STEP = """
import os, signal, subprocess, sys
from launch.local_run import Ending
hears = "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
with Ending():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        subprocess.run([sys.executable, "-c", hears])
"""


def test_step_that_is_started_after_the_signal_can_be_told_to_end():
    command = [sys.executable, "-c", LATE_STEP]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "True\n")


def wait_for(path):
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} was not made")
