"""SIGTERM: the run saves a checkpoint and ends with an exit code that asks for another attempt."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from iceaggr.errors import TrainingError

EXIT_CODE_INTERRUPTED = getattr(os, "EX_TEMPFAIL", 75)
"""Exit code of an interrupted run: temporary failure, the same command resumes it (75)."""


class TrainingInterruptedError(TrainingError):
    """The run was asked to stop and has saved a checkpoint; call it again to go on."""

    exit_code = EXIT_CODE_INTERRUPTED


class Interruption:
    """Remembers SIGTERM while it is entered; the loop asks between two steps.

    Outside the main thread Python delivers no signals, and nothing is installed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None
        self._installed = False

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._remember)
            self._installed = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous)
            self._installed = False

    def _remember(self, signal_number: int, frame: FrameType | None) -> None:
        self.requested = True
