"""Training that begins with the weights of another model, and what must fit for that."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iceaggr.config import ExperimentConfig
from iceaggr.detector import Detector, icecube86
from iceaggr.errors import TrainingError
from iceaggr.models.bundle import LoadedModel, load_model
from iceaggr.normalization_document import FeatureScaling, Normalization
from iceaggr.signals import TrainingInterruptedError
from iceaggr.training import TrainingInputs, normalization_shift, start_from_model, train
from iceaggr.training.checkpoint import CheckpointFolder
from tests.training.small_runs import same_weights, small_config, small_inputs

NAME = "models:/small/1"
# what this run's statistics say; the champion below was trained with the seed's constants
SECOND = Normalization.seed().model_copy(update={"time_ns": FeatureScaling(centre=0.0, scale=1e4)})
SAME_SPLIT: dict[str, Any] = {"normalization": {"preset": "seed"}}


def configured(**sections: dict[str, Any]) -> ExperimentConfig:
    return small_config(**{**SAME_SPLIT, **sections})


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    inputs = small_inputs(tmp_path_factory.mktemp("champion"), configured())
    return load_model(inputs.store, train(inputs).model_uri)


def second_run(folder: Path, config: ExperimentConfig) -> TrainingInputs:
    return replace(small_inputs(folder, config), normalization=SECOND)


def test_run_begins_with_the_weights_and_the_normalisation_of_the_model(
    tmp_path: Path, champion: LoadedModel
) -> None:
    frozen = configured(training={"learning_rate": 1e-30, "weight_decay": 0.0, "n_epochs": 1})
    inputs = start_from_model(second_run(tmp_path, frozen), champion, NAME)
    result = train(inputs)
    saved = load_model(inputs.store, result.model_uri)
    for name, tensor in champion.model.state_dict().items():
        assert torch.equal(saved.model.state_dict()[name], tensor), name
    assert saved.model.normalization == champion.model.normalization == Normalization.seed()
    assert saved.facts["started_from"] == NAME
    scratch = second_run(tmp_path / "scratch", frozen)
    train(scratch)
    assert not same_weights(inputs, scratch)
    fresh = load_model(scratch.store, f"{scratch.output_uri}/model")
    assert fresh.model.normalization == SECOND
    assert fresh.facts["started_from"] == "scratch"


def test_average_of_weights_begins_with_the_model_too(
    tmp_path: Path, champion: LoadedModel
) -> None:
    frozen = {"learning_rate": 1e-30, "weight_decay": 0.0, "n_epochs": 1, "ema_decay": 0.9}
    inputs = second_run(tmp_path, configured(training=frozen))
    inputs = start_from_model(inputs, champion, NAME)
    train(inputs)
    checkpoint = CheckpointFolder(inputs.store, inputs.output_uri, 1).read_latest()
    assert checkpoint is not None
    for name, tensor in checkpoint.tensors["average"].items():
        torch.testing.assert_close(tensor, champion.model.state_dict()[name], rtol=1e-6, atol=1e-7)


def test_started_run_that_was_interrupted_goes_on_from_its_checkpoint(
    tmp_path: Path, champion: LoadedModel
) -> None:
    whole, stopped = (
        start_from_model(second_run(tmp_path / name, configured()), champion, NAME)
        for name in ("whole", "stopped")
    )
    train(whole)
    with pytest.raises(TrainingInterruptedError, match="found SIGTERM"):
        train(stopped, lambda point: os.kill(os.getpid(), signal.SIGTERM))
    assert not same_weights(whole, stopped)
    train(stopped)
    assert same_weights(whole, stopped)


@pytest.mark.parametrize("change", ["scratch", "other weights", "other name"])
def test_resume_with_another_start_is_an_error(
    tmp_path: Path, champion: LoadedModel, change: str
) -> None:
    begun = second_run(tmp_path, configured())
    inputs = start_from_model(begun, champion, NAME)
    train(inputs)
    assert inputs.start is not None
    weights = {name: tensor.clone() for name, tensor in inputs.start.weights.items()}
    next(t for t in weights.values() if t.dim() == 2)[0, 0] += 1
    others = {
        "scratch": replace(inputs, start=None),
        "other weights": replace(inputs, start=replace(inputs.start, weights=weights)),
        "other name": replace(inputs, start=replace(inputs.start, name="models:/small/2")),
    }
    with pytest.raises(TrainingError, match=r"checkpoint of another run: start\.(model|sha256)"):
        train(others[change])


def test_start_from_another_network_names_every_field_that_differs(
    tmp_path: Path, champion: LoadedModel
) -> None:
    other = configured(model={"d_model": 32, "dom_statistics": True})
    with pytest.raises(TrainingError) as caught:
        start_from_model(second_run(tmp_path, other), champion, NAME)
    message = str(caught.value)
    assert message.startswith("training cannot start from this model")
    assert f"[{NAME}]: found model.d_model 16, model.dom_statistics False," in message
    assert "expected model.d_model 32, model.dom_statistics True. Take over" in message


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"data": {"split_salt": "x"}}, "found data.split_salt iceaggr-1, expected data.*salt x"),
        ({"data": {"test_share": 0.3}}, r"found data.test_share 0.1, expected data.test_share 0.3"),
        ({"normalization": {"preset": "raw"}}, "found normalization.preset seed, expected .* raw"),
    ],
)
def test_start_refuses_what_would_leak_or_lose_its_meaning(
    tmp_path: Path, champion: LoadedModel, sections: dict[str, Any], named: str
) -> None:
    with pytest.raises(TrainingError, match=named):
        start_from_model(second_run(tmp_path, configured(**sections)), champion, NAME)


def test_start_refuses_another_detector(tmp_path: Path, champion: LoadedModel) -> None:
    table = icecube86()
    moved = Detector(
        table.sensor_id,
        table.xyz_m + np.array([0.0, 0.0, 1.0]),
        table.string_id,
        table.efficiency,
        table.in_use,
    )
    inputs = replace(second_run(tmp_path, configured()), detector=moved)
    with pytest.raises(TrainingError, match=r"found detector \w{12}, expected detector \w{12}"):
        start_from_model(inputs, champion, NAME)


def test_start_refuses_a_model_that_does_not_tell_its_split(
    tmp_path: Path, champion: LoadedModel
) -> None:
    silent = replace(champion, facts={})
    with pytest.raises(TrainingError, match=r"found data\.split_salt nothing, data\.validation"):
        start_from_model(second_run(tmp_path, configured()), silent, NAME)


def test_start_may_change_what_no_weight_depends_on(tmp_path: Path, champion: LoadedModel) -> None:
    free = configured(
        model={"dropout": 0.0, "max_rows_per_chunk": 64},
        training={"n_epochs": 1, "learning_rate": 2e-3},
        loss={"kind": "von_mises_fisher"},
    )
    inputs = start_from_model(second_run(tmp_path, free), champion, NAME)
    assert train(inputs).n_steps == 4


def test_normalization_shift_measures_centres_in_kept_scales() -> None:
    seed = Normalization.seed()
    assert normalization_shift(seed, seed) == {"centre_shift": 0.0, "scale_ratio": 1.0}
    shift = normalization_shift(kept=seed, fitted=SECOND)
    assert shift["centre_shift"] == pytest.approx(1e4 / 3e4)
    assert shift["scale_ratio"] == pytest.approx(3.0)
