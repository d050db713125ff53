"""What MLflow's page of an experiment offers without configuration: its kind, a note, a view.

MLflow keeps saved views of the table of runs as tags of the experiment, one JSON document each
(MLflow 3.15 and later list them under Views; older servers ignore the tag).
"""

from __future__ import annotations

import json
import time

from iceaggr.errors import TrackingError
from iceaggr.tracking.connection import as_tracking_error, connect

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
    view = {
        "name": VIEW_NAME,
        "createdAt": int(time.time() * 1000),
        "state": json.dumps(_view_state()),
    }
    return {
        # a model that is trained, not an application of language models: decides what MLflow shows
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": _NOTE,
        f"mlflow.sharedViewState.{VIEW_ID}": json.dumps(view),
    }


def missing_tags(known: dict[str, str]) -> dict[str, str]:
    """Give what the page of an experiment lacks that somebody else made; its note stays theirs."""
    mine = experiment_tags()
    return {key: mine[key] for key in mine if key not in known and key != "mlflow.note.content"}


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


def _view_state() -> dict[str, object]:
    columns = [f"metrics.`{name}`" for name in _METRICS]
    columns += [f"params.`{name}`" for name in _PARAMS]
    columns += [f"tags.`{name}`" for name in _TAGS]
    return {
        "selectedColumns": columns,
        "orderByKey": f"metrics.`{_METRICS[0]}`",
        "orderByAsc": True,
    }
