"""The one command line of training in several processes, and running it on this machine.

On several machines Kubeflow Trainer runs the same command; how many machines and processes there
are, and where they meet, it says in PET_* variables, which torchrun reads as its options.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import FrameType

from iceaggr.errors import TrainingError
from iceaggr.machines.launcher import held_by_launcher
from iceaggr.training.interruption import TrainingInterruptedError

WORKER_MODULE = "iceaggr.steps.train_worker"
_GRACE_S = 90


def torchrun_command(python: str, request_uri: str, n_processes: int | None) -> list[str]:
    """Write the command line.

    request_uri: what to train, see `iceaggr.steps.train_request`
    n_processes: on this machine, which is then the only one; None = PET_* variables tell
    """
    here = ["--standalone", f"--nproc-per-node={n_processes}"] if n_processes else []
    return [python, "-m", "torch.distributed.run", *here, "-m", WORKER_MODULE, request_uri]


def run_here(request_uri: str, n_processes: int) -> None:
    """Train in several processes of this machine and wait for their end.

    SIGTERM is passed on: every process then saves a checkpoint and leaves. If this process is
    killed, they end at once.
    Raises: TrainingInterruptedError after SIGTERM, TrainingError if a process fails.
    """
    with held_by_launcher() as variables:
        code, was_stopped = _run(
            torchrun_command(sys.executable, request_uri, n_processes), variables
        )
    if was_stopped and code:
        raise TrainingInterruptedError(
            "training was asked to stop", remedy="The same call goes on from its last checkpoint"
        )
    if code:
        raise TrainingError(
            "a training process failed",
            where=f"torchrun, {n_processes} processes",
            found=f"exit code {code}",
            expected="exit code 0",
            remedy="The lines above tell which process, and why",
        )


def _run(command: list[str], variables: dict[str, str]) -> tuple[int, bool]:
    """Run to the end; give the exit code and whether SIGTERM came meanwhile."""
    process = subprocess.Popen(command, env=os.environ | variables)
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        process.send_signal(number)

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGTERM, previous)
        _end(process)
    return code, bool(received)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
