"""Run the graph on this machine with KFP's own local runner, and show what it does.

KFP's log goes to a file. The steps report to a progress file, which a thread follows and draws.
"""

from __future__ import annotations

import contextlib
import json
import locale
import logging
import os
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import local

import iceaggr
from iceaggr.errors import IceaggrError
from iceaggr.progress import PROGRESS_FILE_VARIABLE
from iceaggr.signals import held_by_launcher
from iceaggr.tracking.run import SPOOL_PREFIX
from launch.display import RunDisplay

_PROGRESS = "progress.jsonl"


class PipelineRunError(IceaggrError):
    """A step of a local run failed; the message is the step's own."""


@dataclass(frozen=True)
class LocalRun:
    """Where a finished local run left its traces.

    folder: KFP's local artifacts, log and progress of the run
    """

    folder: Path

    def finished_steps(self) -> set[str]:
        """Name the steps that said that they are done."""
        lines = (self.folder / _PROGRESS).read_text(encoding="utf-8").splitlines()
        return {message["step"] for message in _messages(lines) if message["kind"] == "done"}

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
    pipeline: Callable[[], Any],
    folder: Path,
    display: RunDisplay,
    prepare: Callable[[], None] | None = None,
) -> LocalRun:
    """Run the graph with subprocesses of this Python.

    pipeline: the graph with its arguments
    folder: an empty folder for artifacts, `kfp.log` and `progress.jsonl`
    prepare: makes the raw events before the first step, if they are to be made
    Raises: PipelineRunError with the sentence of the step that failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress_path, log_path = folder / _PROGRESS, folder / "kfp.log"
    progress_path.touch()
    failure: Exception | None = None
    with _following(progress_path, display), _kfp_log(log_path), _for_steps(progress_path):
        try:
            if prepare is not None:
                prepare()
            _run_steps(pipeline, folder / "artifacts")
        except Exception as error:
            failure = error
    if failure is not None:
        raise _failure(
            list(_messages(progress_path.read_text(encoding="utf-8").splitlines())),
            failure,
            log_path,
        ) from None
    return LocalRun(folder)


def _run_steps(pipeline: Callable[[], Any], artifacts: Path) -> None:
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(artifacts),
        raise_on_error=True,
    )
    pipeline()


@contextlib.contextmanager
def _for_steps(progress_path: Path) -> Iterator[None]:
    """Tell the steps where to report, and give them a folder for temporary files.

    KFP's command for a step leaves its source there, and a killed step whatever it had. All goes
    but tracking records that neither the server nor the object store would take.
    """
    before = dict(os.environ)
    scratch = Path(tempfile.mkdtemp(prefix="iceaggr-run-"))
    # compiled layers are worth keeping for the next run
    compiled = f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", compiled)
    # KFP reads what the steps print in the encoding of the shell, and strictly
    readable = f"{locale.getencoding()}:backslashreplace"
    own_code = str(Path(iceaggr.__file__).parents[1])
    os.environ.update(
        {
            PROGRESS_FILE_VARIABLE: str(progress_path),
            "TMPDIR": str(scratch),
            "PYTHONIOENCODING": readable,
            # PYTHONPATH may hold another library than this process has
            "PYTHONPATH": os.pathsep.join(filter(None, [own_code, before.get("PYTHONPATH")])),
        }
    )
    try:
        # KFP starts a step behind a shell: were this process killed, the step would not notice
        with held_by_launcher() as launcher:
            os.environ.update(launcher)
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        _clear(scratch)


def _clear(scratch: Path) -> None:
    for path in scratch.iterdir():
        if path.is_dir() and not path.is_symlink():
            if not path.name.startswith(SPOOL_PREFIX):
                shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty
        scratch.rmdir()


def _failure(messages: list[dict[str, Any]], error: Exception, log_path: Path) -> PipelineRunError:
    # a training that was restarted has failed before, and that is over
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for message in messages:
        if message["kind"] in ("start", "failed"):
            name = (message["step"], message["task"])
            last.pop(name, None)
            last[name] = message
    failed = [m for m in last.values() if m["kind"] == "failed"]
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
    with path.open("a", buffering=1, encoding="utf-8", errors="backslashreplace") as file:
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
    with path.open(encoding="utf-8") as file:
        partial = ""
        while True:
            last_round = stop.is_set()
            partial += file.read()
            *lines, partial = partial.split("\n")
            for message in _messages(lines):
                display.show(message)
            if last_round:
                return
            time.sleep(0.1)


def _messages(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        # a step that was killed, or met a full disk, may have left half a line
        with contextlib.suppress(ValueError):
            yield json.loads(line)
