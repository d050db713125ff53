from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iceaggr.errors import TrainingError
from iceaggr.models.bundle import load_model
from iceaggr.training import (
    EXIT_CODE_INTERRUPTED,
    TrainingInputs,
    TrainingInterruptedError,
    TrainingProgress,
    train,
)
from iceaggr.training.checkpoint import CheckpointFolder
from iceaggr.training.step import OptimiserStep
from tests.batches.batch_builder import track_events
from tests.training.small_runs import (
    RecordingTracker,
    dom_events,
    final_weights,
    manifest_of,
    small_config,
    small_inputs,
    write_shard,
)


def same_weights(a: TrainingInputs, b: TrainingInputs) -> bool:
    first, second = final_weights(a), final_weights(b)
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
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


def test_time_limit_ends_the_run_validation_included(tmp_path: Path) -> None:
    training = {"n_epochs": 100_000, "max_minutes": 3 / 60, "schedule": "one_cycle"}
    tracker = RecordingTracker()
    config = small_config(training={**training, "checkpoint_every_n_epochs": 1000})
    result = train(small_inputs(tmp_path, config, tracker=tracker))
    assert result.stopped == "time"
    assert 0.5 < result.minutes * 60 < 4.0
    rates = tracker.curve("train/learning_rate")
    assert max(rates) == pytest.approx(1e-3, rel=0.1)
    assert rates[-1] < 1e-4
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


def interrupting(at_step: int) -> Any:
    def on_progress(point: TrainingProgress) -> None:
        if point.step == at_step:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_progress


@pytest.mark.parametrize("at_step", [2, 4, 6])
def test_sigterm_saves_and_the_same_call_goes_on(tmp_path: Path, at_step: int) -> None:
    config = small_config(training={"ema_decay": 0.9})
    whole, broken = (small_inputs(tmp_path / name, config) for name in ("whole", "broken"))
    train(whole)
    tracker = RecordingTracker()
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterruptedError, match="asked to stop") as caught:
        train(replace(broken, tracker=tracker), interrupting(at_step))
    assert caught.value.exit_code == EXIT_CODE_INTERRUPTED == 75
    assert tracker.tags["training/status"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) == handler
    result = train(replace(broken, require_checkpoint=True))
    assert result.n_steps == 8
    assert same_weights(whole, broken)


def test_resume_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    inputs = replace(small_inputs(tmp_path, small_config()), require_checkpoint=True)
    with pytest.raises(TrainingError, match=r"no checkpoint to resume from.*latest\.json"):
        train(inputs)


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
        training={"log_every_n_steps": 1, "device": "auto"}, batches={"n_workers": 1}
    )
    assert train(replace(inputs, config=changed)) == first


def spoil_at(monkeypatch: pytest.MonkeyPatch, at_step: int, spoil: Any) -> None:
    take = OptimiserStep.take

    def spoiled(self: OptimiserStep, batch: Any, step: int, *rest: Any) -> Any:
        if step == at_step:
            spoil(self.model)
        return take(self, batch, step, *rest)

    monkeypatch.setattr(OptimiserStep, "take", spoiled)


def spoil_weight(model: torch.nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = float("nan")


def spoil_gradient(model: torch.nn.Module) -> None:
    next(model.parameters()).register_hook(lambda gradient: gradient * float("nan"))


def spoil_optimizer_only(model: torch.nn.Module) -> None:
    next(model.parameters()).register_hook(lambda gradient: gradient * 1e38)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_weight, r"a weight is not finite \[step 6\].*event_id \d+"),
        (spoil_gradient, r"a gradient is not finite \[step 6\].*event_id \d+"),
        (spoil_optimizer_only, r"a gradient is not finite \[step 6\].*overflows.*event_id \d+"),
    ],
)
def test_planted_nan_is_caught_at_its_step_and_the_checkpoint_stays_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, message: str
) -> None:
    tracker = RecordingTracker()
    inputs = small_inputs(tmp_path, small_config(), tracker=tracker)
    spoil_at(monkeypatch, 6, spoil)
    with pytest.raises(TrainingError, match=message):
        train(inputs)
    assert tracker.tags["training/status"] == "failed"
    assert "not finite" in tracker.tags["training/reason"]
    checkpoint = CheckpointFolder(inputs.store, inputs.output_uri, 1).read_latest()
    assert checkpoint is not None
    assert checkpoint.document["state"]["step"] == 4
    assert all(torch.isfinite(t).all() for t in checkpoint.tensors["model"].values())
    monkeypatch.undo()
    assert train(inputs).n_steps == 8


def test_weights_spoiled_by_the_step_before_a_checkpoint_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = small_inputs(tmp_path, small_config())
    step = torch.optim.AdamW.step
    taken = []

    def spoiling(self: torch.optim.AdamW, *args: Any) -> Any:
        step(self, *args)
        taken.append(1)
        if len(taken) == 4:
            self.param_groups[0]["params"][0].data.view(-1)[0] = float("inf")

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiling)
    with pytest.raises(TrainingError, match=r"spoiled the weights \[step 4\].*event_id \d+"):
        train(inputs)
    checkpoint = CheckpointFolder(inputs.store, inputs.output_uri, 1).read_latest()
    assert checkpoint is not None
    assert checkpoint.document["state"]["step"] == 0


def test_planted_nan_in_the_data_is_caught_before_the_model(tmp_path: Path) -> None:
    inputs = small_inputs(tmp_path, small_config())
    events = dom_events(track_events(64, seed=5))
    charge = events.charge_pe.copy()
    charge[events.event_pulse_offsets()[40]] = np.nan
    shard = write_shard(
        inputs.store, f"file://{tmp_path}/bad", "train", replace(events, charge_pe=charge)
    )
    manifest = manifest_of([shard, *inputs.manifest.shards_of("validation")])
    with pytest.raises(TrainingError, match=r"refused before the model \[step \d\].*\(40\)"):
        train(replace(inputs, manifest=manifest))
    weights = final_weights(inputs)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_collapsed_run_stops_when_configured(tmp_path: Path) -> None:
    training = {"learning_rate": 1e-9, "stop_if_not_learning_after_n_steps": 8}
    inputs = small_inputs(tmp_path, small_config(training=training))
    with pytest.raises(TrainingError, match=r"does not learn \[step 8.*(collapsed|no better)"):
        train(inputs)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_asked_for_and_missing_is_an_error(tmp_path: Path) -> None:
    inputs = small_inputs(tmp_path, small_config(training={"device": "cuda"}))
    with pytest.raises(TrainingError, match=r"no GPU for this process.*found 0 usable GPUs"):
        train(inputs)


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
