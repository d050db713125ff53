"""How a process is asked to end, and how it notices that whoever started it is gone.

SIGTERM is the platform's polite request: a step cleans up, a training saves a checkpoint. SIGKILL
and the out-of-memory killer leave no time for anything, and take nothing with them: what the killed
process had started would work on, and write beside its successor. So a launcher holds a lock that
the operating system releases when it ends, and its processes wait for that.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Self, TextIO

from iceaggr.errors import IceaggrError, TrainingError

EXIT_CODE_INTERRUPTED = getattr(os, "EX_TEMPFAIL", 75)
"""Exit code of an interrupted run: temporary failure, the same command resumes it (75)."""
LAUNCHER_VARIABLE = "ICEAGGR_LAUNCHER"
"""Names the file that the launcher holds locked; unset where another machine launches."""
EXIT_CODE_WITHOUT_LAUNCHER = 70
_OF_LAUNCHERS = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)"
    r"|(PET|TORCHELASTIC|TORCH_ELASTIC)_\w+"
)
_GRACE_S = 60.0
_LOOK_EVERY_S = 0.5
_watched: set[str] = set()

log = logging.getLogger(__name__)


class TerminatedError(SystemExit):
    """SIGTERM arrived: the step cleans up and ends with the exit code of that signal (143)."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)

    def __str__(self) -> str:
        """Say what happened instead of a number."""
        return "terminated by SIGTERM; run the step again"


class TrainingInterruptedError(TrainingError):
    """The run was asked to stop and has saved a checkpoint; call it again to go on."""

    exit_code = EXIT_CODE_INTERRUPTED


class SignalHandler:
    """Handles signals while it is entered; then the handlers of before are back.

    Outside the main thread Python delivers no signals, and nothing is installed.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, *error: object) -> None:
        self.finish()

    def begin(self) -> None:
        """Install the handler."""
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                self._previous[number] = signal.signal(number, self._arrive)

    def finish(self) -> None:
        """Bring the handlers of before back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._previous.clear()

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError


class Termination(SignalHandler):
    """Turns the first SIGTERM into TerminatedError, so that steps clean up."""

    def __init__(self) -> None:
        super().__init__(signal.SIGTERM)
        self.arrived = False

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the rest is cleaning up
        self.arrived = True
        raise TerminatedError


class Interruption(SignalHandler):
    """Remembers SIGTERM; a loop asks between two steps, or waits for it.

    then: is called when it comes, None = nothing more
    """

    def __init__(self) -> None:
        super().__init__(signal.SIGTERM)
        self.then: Callable[[], object] | None = None
        self._arrived = threading.Event()

    @property
    def requested(self) -> bool:
        """Tell whether SIGTERM came."""
        return self._arrived.is_set()

    def wait(self, within_s: float) -> bool:
        """Wait, but not beyond SIGTERM. Returns whether it came."""
        return self._arrived.wait(within_s)

    def request(self) -> None:
        """Ask for the end, as SIGTERM does."""
        self._arrived.set()
        if self.then is not None:
            self.then()

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        self.request()


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
            # a step that runs in this very process would be given the lock, and take it for our end
            _watched.add(str(path))
            yield {LAUNCHER_VARIABLE: str(path)}


def end_with_launcher(
    environment: Mapping[str, str] = os.environ, *, at_once: bool = False
) -> None:
    """End this process as soon as its launcher is gone; does nothing if none is named.

    at_once: do not clean up before, since a successor may be at work already
    Raises: IceaggrError if the launcher left before this call.
    """
    path = environment.get(LAUNCHER_VARIABLE)
    if not path or path in _watched:
        return
    try:
        # the thread holds it until the process ends
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    except FileNotFoundError:
        raise IceaggrError(
            "a process without the step that launched it",
            where=f"environment variable {LAUNCHER_VARIABLE}",
            found=f"no file {path}",
            expected="the step that launched it to be running",
            remedy="Start the step again: it launches its processes",
        ) from None
    _watched.add(path)
    threading.Thread(target=_wait_and_end, args=(file, at_once), daemon=True).start()


def without_launchers(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out, with a word in the log, what torchrun and its kin tell processes of their place.

    Another job may have left it in the shell: a process that believed it would wait for partners
    that do not exist.
    """
    ignored = {name: text for name, text in environment.items() if _OF_LAUNCHERS.fullmatch(name)}
    if ignored:
        log.warning(
            "ignored %s: left by another job, a training starts its processes itself",
            ", ".join(f"{name}={text}" for name, text in sorted(ignored.items())),
        )
    return {name: text for name, text in environment.items() if name not in ignored}


def end_with_parent() -> None:
    """End this process like SIGTERM does when the program that runs it is killed.

    A shell script, `timeout`, `sh -c` or a Python program that is killed by SIGKILL passes nothing
    on. A process that was put aside on purpose goes on: by `nohup`, by `&`, by `setsid`, or as a
    job of an interactive shell, which leads a process group of its own.
    """
    parent = os.getppid()
    if _is_put_aside(parent):
        return
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _is_put_aside(parent: int) -> bool:
    # a shell without job control starts what ends in `&` deaf to SIGINT; nohup makes deaf to SIGHUP
    deaf = any(signal.getsignal(n) is signal.SIG_IGN for n in (signal.SIGHUP, signal.SIGINT))
    try:
        own_job = os.getpgid(parent) != os.getpgrp()
    except (ProcessLookupError, PermissionError):
        return True
    return deaf or own_job


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _wait_and_end(file: TextIO, at_once: bool) -> None:
    fcntl.lockf(file, fcntl.LOCK_EX)  # waits in the operating system: it costs nothing
    if not at_once:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_S)
    os._exit(EXIT_CODE_WITHOUT_LAUNCHER)
