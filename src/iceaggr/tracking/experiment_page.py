"""What MLflow's page of an experiment offers without configuration: its kind, a note, a view.

MLflow keeps saved views of the table of runs as tags of the experiment, one JSON document each
(MLflow 3.15 and later list them under Views; older servers ignore the tag).
"""

from __future__ import annotations

import json
import time

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

VIEW_ID = "iceaggr"
"""Names the saved view in addresses: `#/experiments/ID/runs?viewStateShareKey=iceaggr`."""

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


def view_link(tracking_uri: str, experiment: str) -> str:
    """Give the address of the table of runs with the saved view; experiment: its id."""
    page = f"{tracking_uri.rstrip('/')}/#/experiments/{experiment}/runs"
    return f"{page}?viewStateShareKey={VIEW_ID}&workflowType=machine_learning"


def view_link_of_run(tracking_uri: str, run_id: str) -> str:
    """Give the address of the table of runs that a run stands in, '' if the server is away."""
    try:
        run = MlflowClient(tracking_uri).get_run(run_id)
    except MlflowException:
        return ""
    return view_link(tracking_uri, run.info.experiment_id)


def _view_state() -> dict[str, object]:
    columns = [f"metrics.`{name}`" for name in _METRICS]
    columns += [f"params.`{name}`" for name in _PARAMS]
    columns += [f"tags.`{name}`" for name in _TAGS]
    return {
        "selectedColumns": columns,
        "orderByKey": f"metrics.`{_METRICS[0]}`",
        "orderByAsc": True,
    }
