"""Progress of the steps: what a step says while it works, to a terminal or to a pipeline run.

A step runs in its own process, under KFP in its own pod, so it reports as JSON lines: to the file
named by ICEAGGR_PROGRESS_FILE when a local run follows it, else as plain lines on stdout.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from iceaggr.errors import IceaggrError, as_machine_error
from iceaggr.signals import TerminatedError, Termination, end_with_launcher

PROGRESS_FILE_VARIABLE = "ICEAGGR_PROGRESS_FILE"
_SECONDS_BETWEEN_UPDATES = 0.5
_SECONDS_BETWEEN_LINES = 10.0

Kind = Literal["start", "update", "done", "failed"]


class StepProgress:
    """Reports the start, the advance and the end of one step; use it as a context manager.

    An exception that leaves the block is reported as the step's failure, in one sentence, and
    raised on; what the machine refused (disk, memory, ...) is raised as MachineError. SIGTERM ends
    the block by an exception, so that everything inside cleans up.
    """

    def __init__(self, step: str, *, task: str = "", run_id: str = "") -> None:
        self.step = step
        self.task = task
        self.run_id = run_id
        self.facts = ""
        self._file = os.environ.get(PROGRESS_FILE_VARIABLE, "")
        self._last_update = 0.0
        self._started = time.monotonic()
        self._termination = Termination()

    def __enter__(self) -> StepProgress:
        self._started = time.monotonic()
        # a local run that is killed must not leave its steps behind
        end_with_launcher()
        self._termination.begin()
        self._send("start", text="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._termination.finish()
        if error is None:
            self._send("done", text=self.facts)
            return
        told = as_machine_error(error) or error
        if self._termination.arrived and not isinstance(error, TerminatedError):
            # compiled code that calls back into Python turns the exception into one of its own
            told = TerminatedError()
        self._send("failed", text=_sentence(told), where=_place(trace))
        if told is not error:
            raise told from error

    def update(self, done: float, total: float, text: str = "") -> None:
        """Report an advance: done of total, with a few words; drops what comes too fast."""
        now = time.monotonic()
        pause = _SECONDS_BETWEEN_UPDATES if self._file else _SECONDS_BETWEEN_LINES
        if now - self._last_update < pause and done < total:
            return
        self._last_update = now
        self._send("update", done=float(done), total=float(total), text=text)

    def conclude(self, facts: str) -> None:
        """Set the sentence that the end of the step shows."""
        self.facts = facts

    def _send(self, kind: Kind, **fields: Any) -> None:
        message = {
            "kind": kind,
            "step": self.step,
            "task": self.task,
            "run_id": self.run_id,
            "seconds": round(time.monotonic() - self._started, 2),
            **fields,
        }
        if self._file:
            # one write of one short line with O_APPEND is atomic, so parallel steps can share it
            with open(self._file, "ab", buffering=0) as file:
                file.write(json.dumps(message).encode() + b"\n")
        else:
            print(as_line(message), file=sys.stdout, flush=True)


def as_line(message: dict[str, Any]) -> str:
    """Format a progress message as one line of text."""
    name = f"{message['step']}[{message['task']}]" if message["task"] else message["step"]
    state = message["kind"]
    # the caller prints the whole error after this line, but nothing after an interruption
    is_told_later = state == "failed" and not message["text"].startswith("interrupted")
    text = "" if is_told_later else message["text"]
    if state == "update":
        total = message["total"]
        state = f"{100 * message['done'] / total:3.0f} %" if total else f"{message['done']:.0f}"
    return f"{name:<28} {state:<7} {message['seconds']:7.1f} s  {text}".rstrip()


def _sentence(error: BaseException) -> str:
    if isinstance(error, IceaggrError):
        return str(error)
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return f"interrupted ({type(error).__name__}: {error})"
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"


def _place(trace: TracebackType | None) -> str:
    frames = traceback.extract_tb(trace)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


_SUMMARY = "summary.json: "


def say_summary(path: Path) -> None:
    """Print the summary of the run as one line of the step's log, for whoever follows the run.

    A laptop reaches the log through Kubeflow's API, and often not the object store. Without a
    summary nothing is printed.
    """
    if path.exists():
        summary = json.loads(path.read_text(encoding="utf-8"))
        print(f"{_SUMMARY}{json.dumps(summary, sort_keys=True)}", flush=True)


def find_summary(log: Iterable[str]) -> dict[str, Any] | None:
    """Find the last summary in the lines of a log, None if there is no whole one."""
    found = None
    for line in log:
        # a runner may indent what a step prints
        if line.lstrip().startswith(_SUMMARY):
            # a line that was cut is none
            with contextlib.suppress(ValueError):
                found = json.loads(line.lstrip().removeprefix(_SUMMARY))
    return found
