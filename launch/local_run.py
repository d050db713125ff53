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
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from kfp import local
from rich.console import Console

import iceaggr
from iceaggr.errors import ConfigError, IceaggrError
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.local_services.processes import of_a_run
from iceaggr.local_services.services import LocalServices
from iceaggr.progress import PROGRESS_FILE_VARIABLE, StepProgress
from iceaggr.signals import SignalHandler, held_by_launcher
from iceaggr.storage import open_store
from iceaggr.tracking.run import SPOOL_PREFIX
from launch.display import Addresses, RunDisplay

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
            local.init(
                runner=local.SubprocessRunner(use_venv=False),
                pipeline_root=str(folder / "artifacts"),
                raise_on_error=True,
            )
            pipeline()
        except Exception as error:
            failure = error
    if failure is not None:
        raise _failure(
            list(_messages(progress_path.read_text(encoding="utf-8").splitlines())),
            failure,
            log_path,
        ) from None
    return LocalRun(folder)


@contextlib.contextmanager
def _for_steps(progress_path: Path) -> Iterator[None]:
    """Tell the steps where to report, and give them a folder for temporary files.

    KFP's command for a step leaves its source there, and a killed step whatever it had. All goes
    but tracking records that neither the server nor the object store would take.
    """
    scratch = Path(tempfile.mkdtemp(prefix="iceaggr-run-"))
    own_code = str(Path(iceaggr.__file__).parents[1])
    variables = {
        # compiled layers are worth keeping for the next run
        "TORCHINDUCTOR_CACHE_DIR": f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}",
        **os.environ,
        PROGRESS_FILE_VARIABLE: str(progress_path),
        "TMPDIR": str(scratch),
        # KFP reads what the steps print in the encoding of the shell, and strictly
        "PYTHONIOENCODING": f"{locale.getencoding()}:backslashreplace",
        # PYTHONPATH may hold another library than this process has
        "PYTHONPATH": os.pathsep.join(filter(None, [own_code, os.environ.get("PYTHONPATH")])),
    }
    try:
        # KFP starts a step behind a shell: were this process killed, the step would not notice
        with held_by_launcher() as launcher, _environment(variables | launcher):
            yield
    finally:
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


# The object store and tracking server of a local run: those of the environment, or our own.

_STORE_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID")


@contextmanager
def service_environment(state_folder: Path, console: Console) -> Iterator[Addresses]:
    """Give the block an object store and a tracking server in its environment.

    With MLFLOW_TRACKING_URI set, the user's own services are used, with all settings of the shell.
    Otherwise the shell's variables for stores and servers are ignored: the services of `make up`
    are used if they run; else they are started, and stopped by the last run that uses them.
    Raises: ConfigError if only one of the two services is configured.
    """
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if tracking_uri:
        yield Addresses(tracking_uri, stay_up=True)
        return
    _check_no_store_alone()
    services = LocalServices(state_folder)
    if not services.all_run():
        console.print("starting the object store and the MLflow server")
    with services as started, _environment(of_a_run(dict(os.environ), started.env)):
        yield Addresses(started.mlflow_uri, stay_up=services.stay_up)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Give this process, and those that it starts in the block, these variables alone."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _check_no_store_alone() -> None:
    configured = [name for name in _STORE_VARIABLES if os.environ.get(name)]
    if configured:
        raise ConfigError(
            "an object store is configured but no tracking server",
            where="environment",
            found=", ".join(configured),
            expected="also MLFLOW_TRACKING_URI, or neither",
            remedy="Set MLFLOW_TRACKING_URI to your server, or unset both to start local services",
        )


# The default data of a local run: simulated once, then reused.

EVENTS_PER_FILE = 10_000
SEED = 1


def ensure_simulated_events(raw_uri: str, n_events: int) -> None:
    """Simulate raw events unless they are there; the meta file, written last, marks them whole."""
    store = open_store()
    with StepProgress("simulate") as progress:
        if store.stat(f"{raw_uri}/train_meta.parquet") is not None:
            progress.conclude(f"{n_events:,} events, simulated before")
            return
        config = SimulationConfig(
            n_events=n_events, n_events_per_file=EVENTS_PER_FILE, seed=SEED, n_processes=0
        )
        simulate(
            store,
            raw_uri,
            config,
            on_progress=lambda done: progress.update(done, n_events, f"{done:,} events"),
        )
        progress.conclude(f"{n_events:,} events")


# A local run that is asked to end takes its steps and its services with it.
#
# Ctrl-C reaches the steps from the terminal itself. SIGTERM (of `kill`, `timeout`, a service
# manager) and the SIGHUP of a closed terminal would end this process alone: the step at work would
# go on, and the object store and the MLflow server would stay.

_STDERR = 2
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_LOOK_EVERY_S = 0.2
# a training writes a checkpoint before it ends
_GRACE_S = 30.0
_QUIET_LOOKS = 3


class Ending(SignalHandler):
    """Turns the first signal into SystemExit while it is entered, so that all inside cleans up."""

    def __init__(self) -> None:
        # nohup has its own way
        super().__init__(*(n for n in _SIGNALS if signal.getsignal(n) is not signal.SIG_IGN))
        self._asked = threading.Event()

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            # one signal is enough: the rest is cleaning up. Not SIG_IGN: a step that KFP starts now
            # would inherit it and ignore the signal that ends it
            signal.signal(each, lambda number, frame: None)
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
