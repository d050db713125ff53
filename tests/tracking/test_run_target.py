"""What a new experiment shows in MLflow without configuration."""

import json
import uuid

import pytest
from mlflow import MlflowClient

from iceaggr.tracking.run import open_tracker
from iceaggr.tracking.run_target import (
    VIEW_ID,
    VIEW_NAME,
    experiment_of_run,
    experiment_tags,
    run_link,
    view_link,
)

SHARED_VIEW = f"mlflow.sharedViewState.{VIEW_ID}"


def test_saved_view_is_what_mlflow_reads():
    view = json.loads(experiment_tags()[SHARED_VIEW])
    state = json.loads(view["state"])
    assert view["name"] == VIEW_NAME
    assert isinstance(view["createdAt"], int)
    assert state["orderByKey"] in state["selectedColumns"]
    kinds = {column.split(".`")[0] for column in state["selectedColumns"]}
    assert kinds == {"metrics", "params", "tags"}


def test_link_opens_the_saved_view():
    link = view_link("http://127.0.0.1:5000/", "7")
    assert link.startswith("http://127.0.0.1:5000/#/experiments/7/runs?viewStateShareKey=iceaggr")


@pytest.mark.integration
def test_new_experiment_gets_the_view_and_an_old_one_keeps_its_own(mlflow_service):
    name = f"page {uuid.uuid4().hex}"
    with open_tracker("", name, uuid.uuid4().hex, "a run", "step") as tracker:
        client = tracker.client
    server = mlflow_service.mlflow_uri
    experiment_id = client.get_experiment_by_name(name).experiment_id
    assert experiment_of_run(server, tracker.run_id) == experiment_id
    page = run_link(server, tracker.run_id, experiment_id)
    assert page.endswith(f"/runs/{tracker.run_id}?workflowType=machine_learning")
    assert f"/#/experiments/{experiment_id}/runs/" in page
    made = client.get_experiment_by_name(name)
    assert made.tags[SHARED_VIEW]
    assert made.tags["mlflow.experimentKind"] == "custom_model_development"
    assert VIEW_NAME in made.tags["mlflow.note.content"]
    client.set_experiment_tag(made.experiment_id, "mlflow.note.content", "our own words")
    with open_tracker("", name, uuid.uuid4().hex, "another run", "step"):
        pass
    assert client.get_experiment_by_name(name).tags["mlflow.note.content"] == "our own words"


@pytest.mark.integration
def test_experiment_that_somebody_else_made_gets_kind_and_view_and_keeps_what_it_has(
    mlflow_service,
):
    client, name = MlflowClient(mlflow_service.mlflow_uri), f"theirs {uuid.uuid4().hex}"
    theirs = client.create_experiment(name, tags={"mlflow.note.content": "theirs", "team": "x"})
    with open_tracker("", name, uuid.uuid4().hex, "a run", "step"):
        pass
    tags = client.get_experiment(theirs).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags[SHARED_VIEW]
    assert (tags["mlflow.note.content"], tags["team"]) == ("theirs", "x")
