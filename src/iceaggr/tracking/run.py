"""The tracker: one MLflow run per pipeline run, written to by all its steps."""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import mlflow
import psutil
from mlflow import MlflowClient
from mlflow.entities import Run

from iceaggr.errors import TrackingError
from iceaggr.patience import FIRST_CONTACT_S, away_s, first_contact_s, may_pass
from iceaggr.service_settings import attached_run_id, tracking_server
from iceaggr.tracking.connection import as_tracking_error, connect, refuse_password
from iceaggr.tracking.outbox import Outbox
from iceaggr.tracking.run_target import LateSender, RunTarget, checked_run_id
from iceaggr.validation import flattened

# What a run depended on besides its settings: code, versions, image, hardware.

_PACKAGES = ("iceaggr", "torch", "numpy", "pyarrow", "mlflow", "kfp")


def surroundings() -> dict[str, str]:
    """Collect tags of the code; those that are empty are left out."""
    tags = {"code/commit": code_commit(), "code/image": os.environ.get("ICEAGGR_IMAGE", "")}
    tags["mlflow.source.git.commit"] = tags["code/commit"].removesuffix("-dirty")
    tags["mlflow.source.name"] = "iceaggr pipeline"
    versions = {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}
    tags["code/versions"] = ", ".join(f"{name} {one}" for name, one in versions.items() if one)
    return {key: value for key, value in tags.items() if value}


def code_commit() -> str:
    """Name the git commit: of the image if it says so, else of the working tree; '' if unknown.

    Ends in `-dirty` when tracked files differ from the commit.
    """
    if told := os.environ.get("ICEAGGR_GIT_COMMIT"):
        return told
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        here = Path(__file__).parent
        done = subprocess.run(
            command, cwd=here, capture_output=True, text=True, timeout=10, encoding="utf-8"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def hardware() -> str:
    """Describe processors, memory and GPUs in one line."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gib = psutil.virtual_memory().total / 2**30
    return f"{n_cores} cores, {memory_gib:.0f} GiB, {_gpus()}"


def _gpus() -> str:
    torch = sys.modules.get("torch")  # a step that computes has it; the others need no GPU
    if torch is None or not torch.cuda.is_available():
        return "no GPU"
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


log = logging.getLogger(__name__)

PARAM_PREFIX = "config/"
SPOOL_PREFIX = "iceaggr-tracking-"
"""Of the temporary folder in which the records of a step wait; what was not sent stays in it."""
_LONGEST_PARAM = 6000
_LONGEST_TAG = 8000
_LONGEST_KEY = 250

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]


class MlflowTracker:
    """Tracker whose calls return at once: a background thread does the sending.

    Parameters get the prefix `config/`, so that no key is one that Kubeflow's launcher logs. When
    the server goes away, records wait on disk and follow later; `finish` tells where the rest is.
    """

    def __init__(self, sender: LateSender, step: str, spool: Path) -> None:
        self._sender = sender
        self._step = step
        self._spool = spool
        self._outbox = Outbox(sender.send, spool)
        self._is_finished = False
        atexit.register(self.finish, None, 20.0)

    @property
    def run_id(self) -> str:
        """Name the MLflow run, '' while a server that is away has not been asked for it."""
        return self._sender.run_id

    @property
    def client(self) -> MlflowClient:
        """Give the client of the run's server. Raises: TrackingError until it has answered."""
        return self._sender.client

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings, nested mappings joined by '/'; too long ones also as a text file."""
        values: dict[str, str] = {}
        for key, value in flattened(params, "/").items():
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            name = _key(f"{PARAM_PREFIX}{key.removeprefix(PARAM_PREFIX)}")
            if len(text) > _LONGEST_PARAM:
                self.log_text(text, f"params/{name.removeprefix(PARAM_PREFIX)}.txt")
                text = text[: _LONGEST_PARAM - 3] + "..."
            values[name] = text
        self._outbox.put({"kind": "params", "values": values})

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record one point of each curve; an infinite value is recorded as not a number."""
        now_ms = int(time.time() * 1000)
        for key, value in metrics.items():
            point = float(value) if math.isfinite(value) else math.nan
            self._outbox.put(
                {
                    "kind": "metric",
                    "key": _key(key),
                    "value": point,
                    "step": int(step),
                    "timestamp_ms": now_ms,
                }
            )

    def log_text(self, text: str, artifact_path: str) -> None:
        """Store a text or HTML page with the run."""
        folder, _, name = artifact_path.rpartition("/")
        copy = self._new_file(name)
        copy.write_text(text, encoding="utf-8")
        self._put_file(copy, folder)

    def log_file(self, path: Path, artifact_folder: str) -> None:
        """Store a local file with the run; the caller may delete it right away.

        Raises: TrackingError if there is no such file.
        """
        if not Path(path).is_file():
            raise TrackingError(
                "no such file to track",
                where=str(path),
                found="nothing there",
                expected="a file",
                remedy="Write it before it is tracked",
            )
        copy = self._new_file(Path(path).name)
        shutil.copyfile(path, copy)
        self._put_file(copy, artifact_folder)

    def _put_file(self, copy: Path, folder: str) -> None:
        record = {"kind": "file", "name": copy.name, "path": str(copy), "folder": folder}
        self._outbox.put(record)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Mark the run, for searching and comparing."""
        values = {_key(key): str(value)[:_LONGEST_TAG] for key, value in tags.items()}
        self._outbox.put({"kind": "tags", "values": values})

    def tell_step(self, state: str) -> None:
        """Show how far this step is, and on what machine."""
        self.set_tags({f"step/{self._step}": f"{state} on {hardware()}"})

    def log_dataset(
        self, name: str, digest: str, source_uri: str, context: str, facts: Mapping[str, object]
    ) -> None:
        """Record which data went in: shown by MLflow as the run's dataset.

        digest: of the manifest, at most 36 characters. context: training, evaluation.
        facts: small numbers worth seeing, such as the events of each split.
        """
        self._outbox.put(
            {
                "kind": "dataset",
                "name": name,
                "digest": digest[:36],
                "source": json.dumps({"uri": source_uri}),
                "context": context,
                "profile": json.dumps(dict(facts), default=str),
            }
        )

    def flush(self, within_s: float = 60.0) -> int:
        """Wait until all is on the server; returns the number of records still waiting."""
        return self._outbox.flush(within_s)

    def finish(
        self,
        status: EndStatus | None = None,
        within_s: float = 120.0,
        *,
        tell: bool = True,
        how: str = "",
    ) -> Path | None:
        """End this step's part: send what waits, then set the run's status.

        status: None leaves the run to the steps that follow; the last step gives FINISHED, a step
        that fails gives FAILED. A later step or a retry sets an ended run to running again.
        Returns None when all has arrived, else the folder with what has not, for
        `python -m iceaggr.tracking.unsent FOLDER`. Never raises for a server that is away.
        tell: False leaves it to the caller to say where the rest is.
        how: what the tag of this step says of its end; empty = done, or the status
        """
        if self._is_finished:
            return None
        self._is_finished = True
        atexit.unregister(self.finish)
        self.tell_step(how or ("done" if status in (None, "FINISHED") else status.lower()))
        if status is not None:
            self._outbox.put({"kind": "status", "status": status})
        n_unsent = self._outbox.close(within_s)
        if n_unsent == 0:
            shutil.rmtree(self._spool, ignore_errors=True)
            return None
        if tell:
            run, why = self.run_id or "(not open)", self._outbox.last_error or "no answer"
            log.warning(
                f"{n_unsent} tracking records of run {run} did not reach the server ({why}). They"
                f" lie in {self._spool}; send them later with: python -m iceaggr.tracking.unsent"
                f" {self._spool}"
            )
        return self._spool

    def __enter__(self) -> MlflowTracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish("FAILED" if kind is not None else None)

    def _new_file(self, name: str) -> Path:
        folder = self._spool / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder / name


def open_tracker(
    tracking_uri: str,
    experiment_name: str,
    pipeline_run_id: str,
    run_name: str,
    step: str,
    *,
    must_answer: bool = True,
) -> MlflowTracker:
    """Open the MLflow run of a pipeline run, the same for each of its steps and their retries.

    Under Kubeflow's MLflow plugin it is the run that the plugin made. An empty `tracking_uri`
    means the server of `iceaggr.service_settings`.
    must_answer: False goes on without a server, and sends everything when it is back.
    Raises: TrackingError, at once if the server refuses; if none answers within seconds (a minute
    if it fails), in a pod within `patience.AWAY_S`; ConfigError if its address holds a password.
    """
    server = tracking_uri or tracking_server()
    refuse_password(server)
    target = RunTarget(
        server,
        experiment_name,
        checked_run_id(pipeline_run_id),
        run_name,
        attached_run_id(),
    )
    spool = Path(tempfile.mkdtemp(prefix=f"{SPOOL_PREFIX}{step}-"))
    sender = LateSender(target, spool)
    try:
        sender.open(away_s() if must_answer else first_contact_s(), FIRST_CONTACT_S)
    except TrackingError as error:
        if must_answer or not may_pass(error):
            shutil.rmtree(spool)
            raise
        log.warning("%s. The step goes on; its records follow when the server is back", error)
    tracker = MlflowTracker(sender, step, spool)
    tracker.set_tags(surroundings())
    tracker.tell_step("running")
    return tracker


def _key(text: str) -> str:
    """Keep the characters that MLflow allows in names."""
    return re.sub(r"[^\w\-. :/]", "_", text)[:_LONGEST_KEY]


# Files that a tracked run keeps: finding a run by what users see of it, and fetching a file.

_N_NAMED = 5
# the address of a run's page, and runs:/ID
_ID_IN_ADDRESS = re.compile(r"runs:?/([0-9a-f]{32})\b")


@dataclass(frozen=True)
class RunFile:
    """A downloaded file of a run."""

    run_id: str
    run_name: str
    path: Path


def fetch_run_file(run: str, artifact_path: str, into: Path) -> RunFile:
    """Download one file of a run.

    run: its id, its name, the beginning of its name, or the address of its page.
    into: local folder.
    Raises: TrackingError if no run or several are meant, or it has no such file.
    """
    client = connect("", first_contact_s())
    with as_tracking_error("cannot look for the run", run):
        found = _find_run(client, run)
    name, run_id = str(found.info.run_name), str(found.info.run_id)
    with as_tracking_error("cannot fetch a file of the run", f"{name} {artifact_path}"):
        path = mlflow.artifacts.download_artifacts(
            run_id=_holder(client, found, artifact_path),
            artifact_path=artifact_path,
            dst_path=str(into),
            tracking_uri=client.tracking_uri,
        )
    return RunFile(run_id, name, Path(path))


def _find_run(client: MlflowClient, run: str) -> Run:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    in_address = _ID_IN_ADDRESS.search(run)
    asked = in_address[1] if in_address else run.replace("'", "").replace("%", "")
    for query in (
        f"attributes.run_id = '{asked}'",
        f"attributes.run_name = '{asked}'",
        f"attributes.run_name LIKE '{asked}%'",
    ):
        found = client.search_runs(experiments, query, max_results=_N_NAMED) if asked else []
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            raise TrackingError(
                "several runs are meant",
                where=run,
                found=_named(found),
                expected="one run",
                remedy="Give a whole name, or the id of the run where names are equal",
            )
    newest = client.search_runs(experiments, max_results=_N_NAMED)
    raise TrackingError(
        "no such run",
        where=run,
        found=f"newest runs {_named(newest)}" if newest else "no runs at all",
        expected="the name, the id or the address of a run on this server",
        remedy="The list of runs on the server's page shows their names",
    )


def _named(runs: list[Run]) -> str:
    return ", ".join(f"{run.info.run_name} ({run.info.run_id})" for run in runs)


def _holder(client: MlflowClient, run: Run, artifact_path: str) -> str:
    """Name the run that holds the file: the run itself, or one of its steps.

    Kubeflow's MLflow plugin makes a run for each step, below that of the pipeline.
    """
    folder = artifact_path.rpartition("/")[0]
    below = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    for candidate in (run, *client.search_runs([run.info.experiment_id], below)):
        known = client.list_artifacts(candidate.info.run_id, folder or None)
        if artifact_path in [item.path for item in known]:
            return str(candidate.info.run_id)
    raise TrackingError(
        "run has no such file",
        where=str(run.info.run_name),
        found=f"a run that is {run.info.status.lower()}, without {artifact_path}",
        expected="a run whose evaluation is done",
        remedy="Let its evaluation finish, or name another run",
    )
