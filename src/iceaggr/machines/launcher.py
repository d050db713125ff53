"""The step that launched training processes, and how these notice that it is gone.

A step that is killed takes nothing with it: its training processes would train on, and write
checkpoints beside those of the step's retry.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

from iceaggr.errors import TrainingError

LAUNCHER_VARIABLE = "ICEAGGR_LAUNCHER"
"""Names the file that the launcher holds locked; unset where another machine launches."""
EXIT_CODE_WITHOUT_LAUNCHER = 70


@contextmanager
def held_by_launcher() -> Iterator[dict[str, str]]:
    """Hold a lock while the block runs; give the environment variables that tell of it.

    The operating system releases a record lock with the process, however that ends, and no child
    inherits it.
    """
    with TemporaryDirectory(prefix="iceaggr-launcher-") as folder:
        path = Path(folder) / "running"
        with path.open("w", encoding="utf-8") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield {LAUNCHER_VARIABLE: str(path)}


def end_with_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """End this process as soon as its launcher is gone; does nothing if none is named.

    Raises: TrainingError if the launcher left before this call.
    """
    path = environment.get(LAUNCHER_VARIABLE)
    if not path:
        return
    try:
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - the thread holds it until the process ends
    except FileNotFoundError:
        raise TrainingError(
            "a training process without the step that launched it",
            where=f"environment variable {LAUNCHER_VARIABLE}",
            found=f"no file {path}",
            expected="the step that launched it to be running",
            remedy="Start the step again: it launches its processes",
        ) from None
    threading.Thread(target=_wait_and_end, args=(file,), daemon=True).start()


def _wait_and_end(file: TextIO) -> None:
    fcntl.lockf(file, fcntl.LOCK_EX)  # waits in the operating system: it costs nothing
    os._exit(EXIT_CODE_WITHOUT_LAUNCHER)
