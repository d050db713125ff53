"""A local run that is asked to end takes its steps and its services with it.

Ctrl-C reaches the steps from the terminal itself. SIGTERM (of `kill`, `timeout`, a service manager)
and the SIGHUP of a closed terminal would end this process alone: the step at work would go on, and
the object store and the MLflow server would stay.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import psutil

_STDERR = 2
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_LOOK_EVERY_S = 0.2
# a training writes a checkpoint before it ends
_GRACE_S = 30.0
_QUIET_LOOKS = 3


class Ending:
    """Turns the first signal into SystemExit while it is entered, so that all inside cleans up."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Ending:
        for number in _SIGNALS:
            # nohup has its own way
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._end)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            # one signal is enough: the rest is cleaning up. Not SIG_IGN: a step that KFP starts now
            # would inherit it and ignore the signal that ends it
            signal.signal(each, _nothing)
        self._asked.set()
        with contextlib.suppress(OSError):  # the terminal may be gone
            name = signal.Signals(number).name
            # sys.stderr goes to KFP's log
            os.write(_STDERR, f"ended by {name}: stopping the steps\n".encode())
        raise SystemExit(128 + number)

    @contextlib.contextmanager
    def taking_along(self) -> Iterator[None]:
        """Pass the signal on to the processes that are started in the block; wait for their end.

        KFP waits for the step at work before the exception gets through, and starts those that it
        has queued: so a thread tells them, as long as there are any.
        """
        steps, over = _Steps(), threading.Event()
        thread = threading.Thread(target=self._tell, args=(steps, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            if self._asked.is_set():
                steps.see_off()

    def _tell(self, steps: _Steps, over: threading.Event) -> None:
        while not over.wait(_LOOK_EVERY_S):
            if self._asked.is_set():
                steps.terminate()


def _nothing(number: int, frame: FrameType | None) -> None:
    pass


class _Steps:
    """The processes below this one that were not there at first."""

    def __init__(self) -> None:
        self._before = set(_children())
        self._told: set[psutil.Process] = set()

    def terminate(self) -> list[psutil.Process]:
        """Tell those to end that were not told yet. Returns all that live."""
        alive = [process for process in _children() if process not in self._before]
        for process in set(alive) - self._told:
            self._told.add(process)
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        return alive

    def see_off(self) -> None:
        """Wait for the end of all, and kill who takes too long."""
        deadline, n_quiet_looks = time.monotonic() + _GRACE_S, 0
        # between two steps there is none for a moment
        while n_quiet_looks < _QUIET_LOOKS and time.monotonic() < deadline:
            n_quiet_looks = 0 if self.terminate() else n_quiet_looks + 1
            time.sleep(_LOOK_EVERY_S)
        for process in self.terminate():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _children() -> list[psutil.Process]:
    """List the processes below this one, without the services, which lead groups of their own."""
    children = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            ours = os.getpgid(process.pid) == os.getpgrp()
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                children.append(process)
    return children
