"""Which run a tracker writes to, and opening it: at once, or later when the server is back."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from iceaggr.errors import TrackingError
from iceaggr.patience import ask_patiently, may_pass
from iceaggr.tracking.connection import as_tracking_error, connect
from iceaggr.tracking.outbox import Record, RunSender

# What MLflow's page of an experiment offers without configuration: its kind, a note, a view.
#
# MLflow keeps saved views of the table of runs as tags of the experiment, one JSON document each
# (MLflow 3.15 and later list them under Views; older servers ignore the tag).

VIEW_ID = "iceaggr"
"""Names the saved view in addresses: `#/experiments/ID/runs?viewStateShareKey=iceaggr`."""

_MODEL_TRAINING = "workflowType=machine_learning"
"""Opens a page in the mode Model training. MLflow 3.17 shows the one that the browser had last, at
first GenAI, whatever the kind of the experiment; `#/runs/ID` loses the word.
"""
VIEW_NAME = "Test figures side by side"

_METRICS = (
    "test/mean_deg",
    "test/median_deg",
    "test/p68_deg",
    "test_error/mean_deg",
    "test_track/median_deg",
    "test_cascade/median_deg",
    "test_kappa/gap",
    "train/events_per_s",
)
_PARAMS = ("config/model/d_model", "config/model/seed", "config/training/learning_rate")
_TAGS = ("data_digest", "promoted")

_NOTE = f"""\
One run per pipeline run, written to by all its steps.

**Views > {VIEW_NAME}** shows the figures on test events as columns, best mean opening angle first.
Only runs with the same data digest were judged on the same events; for those,
`iceaggr compare RUN RUN` gives the paired difference with its error, in total and per bin.

Metrics: `test/` the model on test events, `test_error/` standard errors, `test_track/`,
`test_cascade/`, `test_kappa/` calibration, `test_baselines/` classical fits; `train/` and
`validation/` are curves. Parameters: `config/` holds every setting.
"""


def experiment_tags() -> dict[str, str]:
    """Make the tags that a new experiment is created with."""
    columns = [f"metrics.`{name}`" for name in _METRICS]
    columns += [f"params.`{name}`" for name in _PARAMS]
    columns += [f"tags.`{name}`" for name in _TAGS]
    state = {"selectedColumns": columns, "orderByKey": columns[0], "orderByAsc": True}
    now_ms = int(time.time() * 1000)
    view = {"name": VIEW_NAME, "createdAt": now_ms, "state": json.dumps(state)}
    return {
        # a model that is trained, not an application of language models: decides what MLflow shows
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": _NOTE,
        f"mlflow.sharedViewState.{VIEW_ID}": json.dumps(view),
    }


def view_link(tracking_uri: str, experiment: str) -> str:
    """Give the address of the table of runs with the saved view; experiment: its id."""
    page = f"{tracking_uri.rstrip('/')}/#/experiments/{experiment}/runs"
    return f"{page}?viewStateShareKey={VIEW_ID}&{_MODEL_TRAINING}"


def run_link(tracking_uri: str, run_id: str, experiment: str = "") -> str:
    """Give the address of a run's page.

    experiment: its id; without it the page opens, too, but in the mode that the browser had last.
    """
    server = tracking_uri.rstrip("/")
    if not experiment:
        return f"{server}/#/runs/{run_id}"
    return f"{server}/#/experiments/{experiment}/runs/{run_id}?{_MODEL_TRAINING}"


def experiment_of_run(tracking_uri: str, run_id: str) -> str:
    """Name the experiment of a run by its id, '' if the server is away."""
    try:
        with as_tracking_error("no such run", run_id):
            return str(connect(tracking_uri).get_run(run_id).info.experiment_id)
    except TrackingError:
        return ""


# Which MLflow run a step writes to: the one of its pipeline run, the same for all its steps.

PIPELINE_RUN_TAG = "iceaggr.pipeline_run_id"
_CREATOR_TAG = "iceaggr.created_by"
_SETTLE_S = 1.5


def checked_run_id(pipeline_run_id: str) -> str:
    """Check the id by which all steps find their run. Raises: TrackingError."""
    if not pipeline_run_id or '"' in pipeline_run_id:
        raise TrackingError(
            "not the id of a pipeline run",
            where="run_id",
            found=repr(pipeline_run_id),
            expected="text without quotation marks",
            remedy="Give each pipeline run an id of its own",
        )
    return pipeline_run_id


def experiment_id(client: MlflowClient, name: str) -> str:
    """Find or create an experiment; a step that creates it at the same moment is no error."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, tags=experiment_tags()))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise TrackingError(
            "experiment was deleted",
            where=name,
            found="a deleted one of that name",
            expected="an active experiment",
            remedy="Restore it with `mlflow experiments restore`, or choose another name",
        )
    for key, value in experiment_tags().items():
        # somebody else may have made it, and its note stays theirs
        if key not in found.tags and key != "mlflow.note.content":
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def find_or_create_run(
    client: MlflowClient, experiment: str, pipeline_run_id: str, run_name: str
) -> str:
    """Return the id of the pipeline run's one MLflow run, creating it if it is the first.

    MLflow has no unique keys for runs. So steps that start together may each create one; all then
    wait until the newest is 1.5 s old, agree on the oldest, and whoever made another deletes it.
    This holds unless creating a run takes longer than that, or clocks differ by more.
    """
    me = uuid.uuid4().hex
    runs = _runs_of(client, experiment, pipeline_run_id)
    if not runs:
        tags = {PIPELINE_RUN_TAG: pipeline_run_id, _CREATOR_TAG: me}
        client.create_run(experiment, run_name=run_name, tags=tags)
        runs = _runs_of(client, experiment, pipeline_run_id)
    youngest_s = time.time() - max((run.info.start_time for run in runs), default=0) / 1e3
    if youngest_s < _SETTLE_S:
        time.sleep(_SETTLE_S - max(0.0, youngest_s))
        runs = _runs_of(client, experiment, pipeline_run_id)
    if not runs:
        raise TrackingError(
            "the run disappeared while it was opened",
            where=pipeline_run_id,
            found="no run",
            expected="the run that was made a moment ago",
            remedy="Do not delete runs of a pipeline that is still running",
        )
    chosen, *others = sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))
    if chosen.data.tags.get(_CREATOR_TAG) == me:
        try:
            client.delete_tag(chosen.info.run_id, _CREATOR_TAG)  # it has served; users see tags
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # our own request, its answer lost
                raise
    for other in others:
        if other.data.tags.get(_CREATOR_TAG) == me:
            client.delete_run(other.info.run_id)
    return str(chosen.info.run_id)


def _runs_of(client: MlflowClient, experiment: str, pipeline_run_id: str) -> list[Run]:
    mine = f'tags.`{PIPELINE_RUN_TAG}` = "{pipeline_run_id}"'
    return list(client.search_runs([experiment], mine, ViewType.ACTIVE_ONLY))


STUMBLE_S = 1.0
"""A server that has just answered may stumble over one request."""
_FILE = "run.json"
_ENDED = {"FINISHED", "FAILED", "KILLED"}


@dataclass(frozen=True)
class RunTarget:
    """Everything that finds or makes a run, on whatever day its server answers.

    run_id: '' until the run is open, unless Kubeflow's plugin made the run.
    """

    tracking_uri: str
    experiment_name: str
    pipeline_run_id: str
    run_name: str
    run_id: str = ""

    def open(
        self, patience_s: float = 0.0, failing_s: float = STUMBLE_S
    ) -> tuple[MlflowClient, RunTarget]:
        """Find or create the run. Returns a client, and the target with the run's id.

        patience_s, failing_s: how long to wait for a server that is away, or that answers with
        errors of its own.
        Raises: TrackingError, within seconds after the patience, if no server answers.
        """
        client = connect(self.tracking_uri, patience_s, failing_s)
        return client, ask_patiently(
            lambda: self._opened(client), is_away=may_pass, patience_s=max(patience_s, failing_s)
        )

    def _opened(self, client: MlflowClient) -> RunTarget:
        with as_tracking_error("cannot open the run", client.tracking_uri):
            run_id = self.run_id
            if not run_id:
                experiment = experiment_id(client, self.experiment_name)
                run_id = find_or_create_run(client, experiment, self.pipeline_run_id, self.run_name)
        return replace(self, run_id=run_id)

    def save(self, spool: Path) -> None:
        """Write the target beside the records that are for it."""
        (spool / _FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")


def load_target(spool: Path) -> RunTarget:
    """Read what `save` wrote. Raises: OSError, ValueError, TypeError."""
    return RunTarget(**json.loads((spool / _FILE).read_text(encoding="utf-8")))


class LateSender:
    """Sends records to a run that it opens before the first of them, if nobody has before.

    So a step that begins while the server is away goes on, and its records follow.
    """

    def __init__(self, target: RunTarget, spool: Path) -> None:
        self._target = target
        self._spool = spool
        self._opened: tuple[MlflowClient, RunSender] | None = None
        target.save(spool)

    @property
    def run_id(self) -> str:
        """Name the run, '' as long as it could not be opened."""
        return self._target.run_id

    @property
    def client(self) -> MlflowClient:
        """Give the client of the run's server. Raises: TrackingError until the run is open."""
        if self._opened is None:
            raise TrackingError(
                "the run is not open yet",
                where=self._target.run_name,
                found="no answer of the server so far",
                expected="a run",
                remedy="Wait for the server, or open the tracker with must_answer",
            )
        return self._opened[0]

    def open(self, patience_s: float = 0.0, failing_s: float = STUMBLE_S) -> RunSender:
        """Open the run and set it running again if it had ended.

        patience_s, failing_s: as `RunTarget.open` takes them.  Raises: TrackingError.
        """
        client, target = self._target.open(patience_s, failing_s)
        with as_tracking_error("cannot open the run", client.tracking_uri):
            if client.get_run(target.run_id).info.status in _ENDED:
                client.update_run(target.run_id, status="RUNNING")
        target.save(self._spool)
        sender = RunSender(client, target.run_id)
        self._target, self._opened = target, (client, sender)
        return sender

    def send(self, records: list[Record]) -> None:
        """Send records, opening the run if need be; whatever fails is to be tried again."""
        sender = self._opened[1] if self._opened else self.open()
        sender.send(records)
