from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import ModelConfig
from iceaggr.errors import TrainingError
from iceaggr.models import kappa_map, seed_frame
from iceaggr.models.bundle import load_model
from iceaggr.training import (
    TrainingProgress,
    loop,
    train,
    validation,
)
from iceaggr.training.checkpoint import CheckpointFolder
from tests.training.small_runs import (
    RecordingTracker,
    final_weights,
    same_weights,
    small_config,
    small_inputs,
)


def test_run_ends_with_a_model_curves_and_a_result(tmp_path: Path) -> None:
    tracker, points = RecordingTracker(), list[TrainingProgress]()
    inputs = small_inputs(tmp_path, small_config(), tracker=tracker)
    result = train(inputs, points.append)
    assert (result.stopped, result.n_steps, result.n_events_seen) == ("epochs", 8, 128)
    assert [point.step for point in points] == [2, 4, 6, 8]
    assert points[-1].share == 1.0
    angles = tracker.curve("validation/opening_angle_deg")
    assert len(angles) == 2
    assert result.last_validation_opening_angle_deg == angles[-1]
    assert result.best_validation_opening_angle_deg == min(angles)
    for name in ("loss", "opening_angle_deg", "learning_rate", "gradient_norm", "events_per_s"):
        assert all(math.isfinite(value) for value in tracker.curve(f"train/{name}")), name
    for name in ("data_wait_share", "mean_vector_length", "memory_gib"):
        assert all(value >= 0 for value in tracker.curve(f"train/{name}")), name
    assert tracker.tags["training/status"] == "finished"
    loaded = load_model(inputs.store, result.model_uri)
    weights = final_weights(inputs)
    assert all(torch.equal(t, weights[n]) for n, t in loaded.model.state_dict().items())
    assert loaded.facts["manifest_digest"] == inputs.manifest.digest()


def test_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        runs.append(small_inputs(tmp_path / name, small_config(training={"seed": seed})))
        train(runs[-1])
    assert same_weights(runs[0], runs[1])
    assert not same_weights(runs[0], runs[2])


def test_run_fits_each_event_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[int] = []
    fit = seed_frame.find_seeds

    def counted(batch: EventBatch, config: ModelConfig) -> seed_frame.Seeds:
        fitted.extend(batch.event_id.tolist())
        return fit(batch, config)

    monkeypatch.setattr(seed_frame, "find_seeds", counted)
    model = {"seed": "improved", "seed_frame": True, "seed_head": True}
    inputs = small_inputs(tmp_path, small_config(model=model, training={"n_epochs": 3}))
    train(inputs)
    # 64 train and 32 validation events, three passes over each
    assert len(fitted) == len(set(fitted)) == 96


def test_saved_model_carries_the_map_of_its_validation_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kappa_map, "MIN_EVENTS", 100)
    fitted: list[tuple[int, kappa_map.KappaMap | None]] = []

    def noted(kappa: np.ndarray, cosine: np.ndarray) -> kappa_map.KappaMap | None:
        # four times as sure as it should be, so that there is something to mend
        found = kappa_map.fit_kappa_map(4 * kappa, cosine)
        fitted.append((len(kappa), found))
        return found

    monkeypatch.setattr(validation, "fit_kappa_map", noted)
    config = small_config(loss={"kind": "von_mises_fisher"})
    inputs = small_inputs(tmp_path, config, n_validation=120)
    result = train(inputs)
    assert [n_events for n_events, _ in fitted] == [120, 120]
    saved = load_model(inputs.store, result.model_uri).model
    assert saved.kappa_map == fitted[-1][1]
    assert saved.kappa_map is not None
    # a retry of the finished run saves the same once more, without another validation
    train(inputs)
    assert len(fitted) == 2
    assert load_model(inputs.store, result.model_uri).model.kappa_map == saved.kappa_map
    angle = small_inputs(tmp_path / "angle", small_config(), n_validation=120)
    assert load_model(angle.store, train(angle).model_uri).model.kappa_map is None


@pytest.mark.parametrize(("kind", "last"), [("von_mises_fisher", 32), ("angle", 16)])
def test_last_validation_goes_on_for_the_map_of_kappa(tmp_path: Path, kind: str, last: int) -> None:
    config = small_config(
        loss={"kind": kind}, training={"max_validation_events": 16, "max_kappa_map_events": 30}
    )
    tracker = RecordingTracker()
    train(small_inputs(tmp_path, config, n_validation=48, tracker=tracker))
    assert tracker.curve("validation/n_events") == [16, last]


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    inputs = small_inputs(tmp_path, small_config())
    first = train(inputs)
    points: list[TrainingProgress] = []
    assert train(inputs, points.append) == first
    assert points == []


def test_one_batch_is_overfitted(tmp_path: Path) -> None:
    tracker = RecordingTracker()
    training = {"n_epochs": 50, "learning_rate": 5e-3, "schedule": "one_cycle"}
    model = {"dropout": 0.0, "d_model": 32, "dom_statistics": True, "fourier_bands": 6}
    config = small_config(
        training={**training, "checkpoint_every_n_epochs": 1000},
        model={**model, "event_token": True},
        loss={"kind": "von_mises_fisher"},
    )
    train(small_inputs(tmp_path, config, n_train=16, n_validation=2, tracker=tracker))
    angles = tracker.curve("train/opening_angle_deg")
    assert angles[0] > 60
    assert angles[-1] < 20


@pytest.fixture
def steady_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ten milliseconds pass from one look at the clock to the next, on a busy machine, too."""
    ticks = itertools.count(1)
    clock = SimpleNamespace(monotonic=lambda: next(ticks) / 100)
    for module in (loop, validation):
        monkeypatch.setattr(module, "time", clock)


def test_time_limit_ends_the_run_validation_included(tmp_path: Path, steady_clock: None) -> None:
    training = {"n_epochs": 100_000, "max_minutes": 3 / 60, "schedule": "one_cycle"}
    tracker = RecordingTracker()
    config = small_config(training={**training, "checkpoint_every_n_epochs": 1000})
    result = train(small_inputs(tmp_path, config, tracker=tracker))
    assert result.stopped == "time"
    assert 0.5 < result.minutes * 60 < 4.0
    rates = tracker.curve("train/learning_rate")
    assert max(rates) == pytest.approx(1e-3, rel=0.1)
    assert rates[-1] < 0.5 * max(rates)
    assert tracker.curve("train/progress")[-1] == 1.0
    assert not math.isnan(result.last_validation_opening_angle_deg)


def test_averaged_weights_are_validated_and_saved(tmp_path: Path) -> None:
    inputs = small_inputs(tmp_path, small_config(training={"ema_decay": 0.9}))
    result = train(inputs)
    saved = load_model(inputs.store, result.model_uri).model.state_dict()
    checkpoint = CheckpointFolder(inputs.store, inputs.output_uri, 1).read_latest()
    assert checkpoint is not None
    average, last = checkpoint.tensors["average"], checkpoint.tensors["model"]
    assert all(torch.equal(saved[name], tensor) for name, tensor in average.items())
    assert not all(torch.equal(last[name], tensor) for name, tensor in average.items())


def test_run_whose_checkpoints_are_gone_is_not_trained_again(tmp_path: Path) -> None:
    inputs = small_inputs(tmp_path, small_config())
    first = train(inputs)
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.rename(tmp_path / "elsewhere")
    points: list[TrainingProgress] = []
    with pytest.raises(TrainingError, match=r"no checkpoint to resume from.*latest\.json"):
        train(inputs, points.append)
    assert points == []
    (tmp_path / "elsewhere").rename(checkpoints)
    assert train(inputs) == first


def test_run_whose_checkpoints_are_gone_starts_anew_on_purpose(tmp_path: Path) -> None:
    inputs = small_inputs(tmp_path, small_config())
    train(inputs)
    weights = final_weights(inputs)
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "has_checkpoints.json").unlink()
    points: list[TrainingProgress] = []
    train(inputs, points.append)
    assert points[0].step == 2
    assert all(torch.equal(tensor, weights[n]) for n, tensor in final_weights(inputs).items())


def test_resume_of_another_configuration_is_an_error(tmp_path: Path) -> None:
    inputs = small_inputs(tmp_path, small_config())
    train(inputs)
    other = replace(inputs, config=small_config(training={"learning_rate": 2e-3}))
    with pytest.raises(TrainingError, match=r"another run: training\.learning_rate differs"):
        train(other)


def test_resume_with_other_data_is_an_error(tmp_path: Path) -> None:
    inputs = small_inputs(tmp_path, small_config())
    train(inputs)
    other = small_inputs(tmp_path, small_config(), n_train=80)
    with pytest.raises(TrainingError, match="another run: manifest_digest differs"):
        train(other)


def test_resume_may_change_what_does_not_change_the_result(tmp_path: Path) -> None:
    inputs = small_inputs(tmp_path, small_config())
    first = train(inputs)
    changed = small_config(
        training={"log_every_n_steps": 1, "device": "auto", "checkpoint_every_n_epochs": 2},
        batches={"n_workers": 1},
        model={"max_rows_kept": 64},
    )
    assert train(replace(inputs, config=changed)) == first


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_asked_for_and_missing_is_an_error(tmp_path: Path) -> None:
    inputs = small_inputs(tmp_path, small_config(training={"device": "cuda"}))
    with pytest.raises(TrainingError, match=r"no GPU for this process.*found 0 usable GPUs"):
        train(inputs)


def test_run_says_in_the_tracker_where_it_trained(tmp_path: Path) -> None:
    tracker = RecordingTracker()
    result = train(small_inputs(tmp_path, small_config(training={"n_epochs": 1}), tracker=tracker))
    assert (tracker.tags["training/device"], tracker.tags["training/n_processes"]) == ("cpu", "1")
    assert (result.device, result.n_processes) == ("cpu", 1)


def test_device_auto_says_what_it_took(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="iceaggr"):
        train(small_inputs(tmp_path, small_config(training={"device": "auto", "n_epochs": 1})))
    assert any("training on" in message for message in caplog.messages)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_run_in_bfloat16_learns_from_pinned_batches(tmp_path: Path) -> None:
    training = {"device": "cuda", "precision": "bfloat16", "n_epochs": 2}
    result = train(small_inputs(tmp_path, small_config(training=training)))
    assert result.n_steps == 8
