"""Starting one process per GPU on one machine, with the environment that torchrun would give."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from types import FrameType

from iceaggr.training.interruption import EXIT_CODE_INTERRUPTED

_POLL_S = 0.2
_GRACE_S = 60.0


def environment_rank() -> int:
    """Tell which process of the run this one is: 0 alone, and for the one that tracks."""
    return int(os.environ.get("RANK", "0"))


def run_processes(command: Sequence[str], n_processes: int) -> int:
    """Run a command n_processes times as the processes of one run, and wait for all of them.

    SIGTERM is passed on, so that every process saves and leaves. When one fails, the others wait
    for it in vain and are killed.
    Returns 0 if all ended well, 75 if one was interrupted, else the exit code of the first failure.
    Raises: ValueError if n_processes is not positive.
    """
    if n_processes < 1:
        raise ValueError(f"n_processes is {n_processes}, expected at least 1")
    # the port is free now; should another program take it meanwhile, the run fails and says so
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    shared["WORLD_SIZE"] = shared["LOCAL_WORLD_SIZE"] = str(n_processes)
    processes = [
        subprocess.Popen(
            list(command), env={**os.environ, **shared, "RANK": str(i), "LOCAL_RANK": str(i)}
        )
        for i in range(n_processes)
    ]

    def pass_on(signal_number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal_number)

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        return _wait(processes)
    finally:
        signal.signal(signal.SIGTERM, previous)
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def _wait(processes: list[subprocess.Popen[bytes]]) -> int:
    interrupted_at: float | None = None
    while True:
        codes = [process.poll() for process in processes]
        failed = [code for code in codes if code not in (None, 0, EXIT_CODE_INTERRUPTED)]
        if failed:
            # a negative code is the signal that ended the process, in the shell's terms 128 + it
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if all(code is not None for code in codes):
            return EXIT_CODE_INTERRUPTED if EXIT_CODE_INTERRUPTED in codes else 0
        if EXIT_CODE_INTERRUPTED in codes:
            interrupted_at = interrupted_at or time.monotonic()
            if time.monotonic() - interrupted_at > _GRACE_S:
                return EXIT_CODE_INTERRUPTED
        time.sleep(_POLL_S)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
