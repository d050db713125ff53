from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iceaggr.config import TrainingConfig
from iceaggr.errors import IceaggrError, ShardError, TrainingError
from iceaggr.shards import encoding
from iceaggr.training import loop, train
from iceaggr.training.checkpoint import CheckpointFolder
from iceaggr.training.loop import START_SHARE, HeapTrimmer, Pace, learning_rate_at
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

ONE_CYCLE = TrainingConfig(schedule="one_cycle", learning_rate=2e-3, warmup_share=0.1)


def test_constant_rate_is_the_configured_one_throughout() -> None:
    config = TrainingConfig(learning_rate=3e-4, warmup_share=0.5)
    assert {learning_rate_at(p, config) for p in (0.0, 0.3, 1.0)} == {3e-4}


def test_one_cycle_starts_low_peaks_after_warmup_and_ends_at_zero() -> None:
    assert learning_rate_at(0.0, ONE_CYCLE) == pytest.approx(2e-3 * START_SHARE)
    assert learning_rate_at(0.1, ONE_CYCLE) == pytest.approx(2e-3)
    assert learning_rate_at(0.55, ONE_CYCLE) == pytest.approx(1e-3)
    assert learning_rate_at(1.0, ONE_CYCLE) == pytest.approx(0.0, abs=1e-12)


def test_one_cycle_without_warmup_starts_at_the_peak() -> None:
    config = ONE_CYCLE.model_copy(update={"warmup_share": 0.0})
    assert learning_rate_at(0.0, config) == pytest.approx(2e-3)


@given(st.floats(0, 1), st.floats(0, 1))
def test_one_cycle_rises_then_falls(a: float, b: float) -> None:
    low, high = sorted((a, b))
    before, after = (learning_rate_at(p, ONE_CYCLE) for p in (low, high))
    if high <= 0.1:
        assert before <= after + 1e-15
    if low >= 0.1:
        assert before >= after - 1e-15


def test_rate_refuses_progress_outside_the_run() -> None:
    with pytest.raises(ValueError, match=r"progress is 1\.5"):
        learning_rate_at(1.5, ONE_CYCLE)


def test_pace_follows_steps_without_a_time_limit() -> None:
    pace = Pace(n_steps_planned=200, limit_s=0)
    assert pace.advance(50, elapsed_s=1e9, reserve_s=1e9) == 0.25
    assert not pace.time_is_up


def test_pace_follows_whichever_ends_first() -> None:
    pace = Pace(n_steps_planned=100, limit_s=100)
    assert pace.advance(10, elapsed_s=5, reserve_s=0) == pytest.approx(0.10)
    assert pace.advance(12, elapsed_s=40, reserve_s=0) == pytest.approx(0.40)


def test_pace_keeps_time_for_the_last_validation() -> None:
    pace = Pace(n_steps_planned=1000, limit_s=100)
    pace.advance(1, elapsed_s=79, reserve_s=20)
    assert not pace.time_is_up
    assert pace.advance(2, elapsed_s=80, reserve_s=20) == 1.0
    assert pace.time_is_up


def test_pace_lets_validation_claim_at_most_half_of_the_time() -> None:
    pace = Pace(n_steps_planned=1000, limit_s=100)
    pace.advance(1, elapsed_s=49, reserve_s=1e6)
    assert not pace.time_is_up


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0, 200), st.floats(0, 50))))
def test_pace_never_goes_backwards(points: list[tuple[int, float, float]]) -> None:
    pace = Pace(n_steps_planned=100, limit_s=100)
    reached = [pace.advance(*point) for point in points]
    assert reached == sorted(reached)
    assert all(0 <= p <= 1 for p in reached)


PAGE = 4096
BLOCK = 64 * 1024


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * PAGE / 2**20


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_trimmer_gives_back_the_holes_between_live_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TRIM_EVERY_S", 0.0)
    trimmer = HeapTrimmer()
    blocks = [bytearray(BLOCK) for _ in range(3000)]
    live = blocks[::8]  # they keep the heap from shrinking
    del blocks
    before = resident_mib()
    trimmer.trim_if_due()
    assert before - resident_mib() > 100
    assert len(live) == 375


def test_trimmer_waits_until_it_is_due() -> None:
    trimmer = HeapTrimmer()
    calls: list[int] = []
    trimmer._trim = calls.append
    trimmer.trim_if_due()
    assert calls == []
    trimmer._trimmed_at -= loop.TRIM_EVERY_S
    trimmer.trim_if_due()
    trimmer.trim_if_due()
    assert calls == [0]


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
