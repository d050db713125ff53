"""What a training starts from, decided by a real registry and kept by the run."""

from dataclasses import replace

import pytest
from mlflow import MlflowClient

from iceaggr.errors import ConfigError, IceaggrError, TrainingError
from iceaggr.models.bundle import load_model
from iceaggr.steps.context import RunContext
from iceaggr.steps.train_model import run_worker
from iceaggr.steps.train_request import (
    decide_start,
    run_train_here,
    train_in_processes,
)
from iceaggr.steps.training_choices import TrainingChoices
from iceaggr.steps.training_inputs import choose_start
from iceaggr.tracking.registry import ModelRegistry
from iceaggr.tracking.run import open_tracker
from tests.training.small_runs import small_config, small_inputs

FROM_CHAMPION = TrainingChoices(start_from="champion")


@pytest.fixture
def documents(tmp_path):
    inputs = small_inputs(tmp_path / "data", small_config())
    paths = tmp_path / "manifest.json", tmp_path / "normalization.json"
    for path, text in zip(
        paths, (inputs.manifest.to_json(), inputs.normalization.to_json()), strict=True
    ):
        path.write_text(text)
    return paths


def context_of(tmp_path, run_id, model_name, **sections):
    config = small_config(
        normalization={"preset": "seed"}, promotion={"model_name": model_name}, **sections
    )
    return RunContext(run_id, "starts", (tmp_path / "work").as_uri(), config)


def train(context, documents, choices=FROM_CHAMPION):
    facts = run_train_here(
        context, *documents, model_path=documents[0].with_name("model.json"), choices=choices
    )
    return facts.labels["model_uri"], facts.labels["started_from"]


def promote(context, model_uri, service):
    """Make a trained model the champion, whatever the one before it was."""
    registry = ModelRegistry()
    name = context.config.promotion.model_name
    tracker = open_tracker(service.mlflow_uri, "starts", context.run_id, "x", "promote_model")
    registered = registry.register(context.open_store(), model_uri, name, tracker.run_id, {})
    tracker.finish(None)
    registry.set_champion(registered, registry.champion(name), {})
    return registered


def tags_of(context, service):
    client = MlflowClient(service.mlflow_uri)
    experiment = client.get_experiment_by_name("starts").experiment_id
    (run,) = client.search_runs(
        [experiment], f"tags.`iceaggr.pipeline_run_id` = '{context.run_id}'"
    )
    return run.data.tags


@pytest.fixture
def champion(tmp_path, documents, mlflow_service):
    """The champion of "starts", trained once for all tests."""
    found = ModelRegistry().champion("starts")
    if found is None:
        first = context_of(tmp_path, "first", "starts")
        found = promote(first, train(first, documents)[0], mlflow_service)
    return found


@pytest.mark.integration
def test_first_run_of_a_schedule_starts_from_scratch_and_says_so_and_so_does_its_retry(
    tmp_path, documents, mlflow_service
):
    context = context_of(tmp_path, "none-1", "starts-none")
    model_uri, started_from = train(context, documents)
    assert started_from == "scratch, as starts-none has no champion yet"
    assert tags_of(context, mlflow_service)["training/started_from"] == started_from
    promote(context, model_uri, mlflow_service)
    assert train(context, documents) == (model_uri, started_from)


@pytest.mark.integration
def test_next_run_starts_from_the_champion_and_a_retry_from_the_same_one(
    tmp_path, documents, mlflow_service, champion
):
    second = context_of(tmp_path, "second", "starts", training={"n_epochs": 1})
    model_uri, started_from = train(second, documents)
    assert started_from == f"champion {champion.uri}"
    assert tags_of(second, mlflow_service)["training/started_from"] == started_from
    assert load_model(second.open_store(), model_uri).facts["started_from"] == champion.uri
    assert promote(second, model_uri, mlflow_service) != champion
    # not even the registry is asked again
    retry = replace(second, config=FROM_CHAMPION.applied_to(second.config), tracked=False)
    assert choose_start(retry).model == champion.uri
    assert train(retry, documents) == (model_uri, started_from)


@pytest.mark.integration
def test_champion_of_another_network_is_refused_with_what_differs(tmp_path, documents, champion):
    wider = context_of(tmp_path, "wider", "starts", model={"d_model": 32})
    with pytest.raises(TrainingError, match=rf"{champion.uri}.*d_model 16.*d_model 32"):
        train(wider, documents)


@pytest.mark.integration
def test_processes_start_from_what_the_launching_step_decided(tmp_path, documents, champion):
    context = context_of(tmp_path, "apart", "starts")
    decide_start(context, FROM_CHAMPION)
    facts = train_in_processes(
        context,
        *documents,
        model_path=tmp_path / "model.json",
        choices=FROM_CHAMPION,
        launch=lambda uri: run_worker(uri, rank=0, launched=False),
        paths=context.paths.training.local_request,
    )
    assert facts.labels["started_from"] == f"champion {champion.uri}"


def test_decision_that_is_damaged_is_named(tmp_path, documents):
    context = replace(context_of(tmp_path, "run-2", "x"), tracked=False)
    uri = f"{context.run_uri}/training/start.json"
    context.open_store().write_bytes(uri, b'{"model": 7}')
    with pytest.raises(
        IceaggrError, match=r"not the start of a training \[.*start.json\]: found model: 7"
    ):
        train(context, documents)


def test_champion_without_a_registry_is_refused(tmp_path, documents):
    context = replace(context_of(tmp_path, "run-1", "x"), tracked=False)
    with pytest.raises(ConfigError, match="from the champion needs a model registry"):
        train(context, documents)
