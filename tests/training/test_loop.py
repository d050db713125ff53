from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iceaggr.errors import IceaggrError, ShardError, TrainingError
from iceaggr.shards import encoding
from iceaggr.training import (
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
        (spoil_optimizer_only, r"a gradient is not finite \[step 6\].*embed.*event_id \d+"),
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


@pytest.mark.parametrize("reader_looks", [True, False])
def test_planted_nan_in_the_data_is_caught_before_the_model(
    reader_looks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not reader_looks:  # the batch check must not rely on the shard reader
        monkeypatch.setattr(encoding, "_check_values", lambda events, where: None)
    inputs = small_inputs(tmp_path, small_config())
    events = dom_events(track_events(64, seed=5))
    charge = events.charge_pe.copy()
    charge[events.event_pulse_offsets()[40]] = np.nan
    shard = write_shard(
        inputs.store, f"file://{tmp_path}/bad", "train", replace(events, charge_pe=charge)
    )
    manifest = manifest_of([shard, *inputs.manifest.shards_of("validation")])
    expected: tuple[type[IceaggrError], str] = (
        (ShardError, r"damaged shard \[.*, event_id 40\]: found charge_pe nan")
        if reader_looks
        else (TrainingError, r"refused before the model \[step \d\].*\(40\)")
    )
    with pytest.raises(expected[0], match=expected[1]):
        train(replace(inputs, manifest=manifest))
    weights = final_weights(inputs)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_collapsed_run_stops_when_configured(tmp_path: Path) -> None:
    training = {"learning_rate": 1e-9, "stop_if_not_learning_after_n_steps": 8}
    inputs = small_inputs(tmp_path, small_config(training=training))
    with pytest.raises(TrainingError, match=r"does not learn \[step 8.*(collapsed|no better)"):
        train(inputs)
