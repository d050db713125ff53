"""Run the graph on this machine with KFP's own local runner, and show what it does.

KFP's log goes to a file. The steps report to a progress file, which a thread follows and draws.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import local

from iceaggr.errors import IceaggrError
from iceaggr.progress import PROGRESS_FILE_VARIABLE
from launch.display import RunDisplay


class PipelineRunError(IceaggrError):
    """A step of a local run failed; the message is the step's own."""


@dataclass(frozen=True)
class LocalRun:
    """Where a finished local run left its traces.

    run_id: identity of the run, as the steps saw it
    folder: KFP's local artifacts, log and progress of the run
    """

    run_id: str
    folder: Path

    def output(self, task: str, name: str) -> Path:
        """Find the file of one output artifact. Raises: PipelineRunError if it is not there."""
        task_folder = task.replace("_", "-")
        found = sorted(self.folder.glob(f"artifacts/*/{task_folder}/{name}"))
        if not found:
            raise PipelineRunError(
                f"output {name} of {task} is missing", where=str(self.folder / "artifacts")
            )
        return found[-1]


def run_here(
    pipeline: Any,
    arguments: dict[str, Any],
    folder: Path,
    display: RunDisplay,
    prepare: Callable[[], None] | None = None,
) -> LocalRun:
    """Run the graph with subprocesses of this Python.

    prepare: makes the raw events before the first step, if they are to be made.
    folder: an empty folder for artifacts, `kfp.log` and `progress.jsonl`.
    Raises: PipelineRunError with the sentence of the step that failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress_path = folder / "progress.jsonl"
    progress_path.touch()
    log_path = folder / "kfp.log"
    failure: Exception | None = None
    with _following(progress_path, display), _kfp_log(log_path):
        os.environ[PROGRESS_FILE_VARIABLE] = str(progress_path)
        try:
            if prepare is not None:
                prepare()
            local.init(
                runner=local.SubprocessRunner(use_venv=False),
                pipeline_root=str(folder / "artifacts"),
                raise_on_error=True,
            )
            pipeline(**arguments)
        except Exception as error:
            failure = error
        finally:
            del os.environ[PROGRESS_FILE_VARIABLE]
    messages = _read_messages(progress_path)
    if failure is not None:
        raise _failure(messages, failure, log_path) from None
    return LocalRun(run_id=next(m["run_id"] for m in messages if m["run_id"]), folder=folder)


def _failure(messages: list[dict[str, Any]], error: Exception, log_path: Path) -> PipelineRunError:
    failed = [m for m in messages if m["kind"] == "failed"]
    if not failed:
        sentence = " ".join(str(error).split())
        return PipelineRunError(f"the run failed: {sentence}", remedy=f"Full log: {log_path}")
    first = failed[0]
    return PipelineRunError(
        f"{first['step']} failed: {first['text'].rstrip('.')}", remedy=f"Full log: {log_path}"
    )


@contextlib.contextmanager
def _kfp_log(path: Path) -> Iterator[None]:
    """Send everything that KFP prints, logs and warns to one file."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with path.open("a", buffering=1) as file:
        handler = logging.StreamHandler(file)
        root.handlers = [handler]
        with (
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
            warnings.catch_warnings(),
        ):
            logging.captureWarnings(True)
            try:
                yield
            finally:
                logging.captureWarnings(False)
                root.handlers, root.level = handlers, level


@contextlib.contextmanager
def _following(path: Path, display: RunDisplay) -> Iterator[None]:
    """Draw the progress messages while the block runs."""
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(path, display, stop), daemon=True)
    with display:
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _follow(path: Path, display: RunDisplay, stop: threading.Event) -> None:
    with path.open() as file:
        partial = ""
        while True:
            last_round = stop.is_set()
            partial += file.read()
            *lines, partial = partial.split("\n")
            for line in lines:
                display.show(json.loads(line))
            if last_round:
                return
            time.sleep(0.1)


def _read_messages(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
