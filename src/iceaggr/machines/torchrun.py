"""The one command line of training in several processes, and training on this machine.

On several machines Kubeflow Trainer runs the same command; how many machines and processes there
are, and where they meet, it says in PET_* variables, which torchrun reads as its options.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from iceaggr.machines.supervision import LIMITS, Limits, supervise
from iceaggr.signals import without_launchers

WORKER_MODULE = "iceaggr.steps.train_worker"
TOGETHER = "--together"
"""Tells a worker that torchrun started it for us, so that RANK and its kin are meant for it."""


def torchrun_command(python: str, request_uri: str, n_processes: int | None) -> list[str]:
    """Write the command line.

    request_uri: what to train, see `iceaggr.steps.train_request`
    n_processes: on this machine, which is then the only one; None = PET_* variables tell
    """
    here = ["--standalone", f"--nproc-per-node={n_processes}"] if n_processes else []
    launcher = [python, "-m", "torch.distributed.run", *here]
    return [*launcher, "-m", WORKER_MODULE, TOGETHER, request_uri]


def run_here(
    request_uri: str,
    n_processes: int,
    n_steps_saved: Callable[[], int] = lambda: 0,
    limits: Limits = LIMITS,
) -> None:
    """Train in processes of this machine and wait for their end; restart them if need be.

    n_steps_saved: reads the step of the newest checkpoint
    Raises: what `supervise` raises.
    """
    if n_processes == 1:
        # torchrun itself takes seconds and has nothing to bring together
        command = [sys.executable, "-m", WORKER_MODULE, request_uri]
    else:
        command = torchrun_command(sys.executable, request_uri, n_processes)
    supervise(command, without_launchers(os.environ), n_steps_saved, _say, limits)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
