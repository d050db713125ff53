"""Which MLflow run a step writes to: the one of its pipeline run, the same for all its steps."""

from __future__ import annotations

import time
import uuid

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from iceaggr.errors import TrackingError
from iceaggr.tracking.experiment_page import experiment_tags, missing_tags

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
    for key, value in missing_tags(found.tags).items():
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
        _delete_tag(client, chosen.info.run_id)  # it has served; users see tags
    for other in others:
        if other.data.tags.get(_CREATOR_TAG) == me:
            client.delete_run(other.info.run_id)
    return str(chosen.info.run_id)


def _delete_tag(client: MlflowClient, run_id: str) -> None:
    try:
        client.delete_tag(run_id, _CREATOR_TAG)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # our own request, its answer lost
            raise


def _runs_of(client: MlflowClient, experiment: str, pipeline_run_id: str) -> list[Run]:
    mine = f'tags.`{PIPELINE_RUN_TAG}` = "{pipeline_run_id}"'
    return list(client.search_runs([experiment], mine, ViewType.ACTIVE_ONLY))
