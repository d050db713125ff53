from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from iceaggr.errors import TrainingError
from iceaggr.normalization_document import Normalization
from iceaggr.shards import encoding
from iceaggr.training import (
    LearningRow,
    check_learning,
    learning_check_html,
    learning_check_table,
    learning_check_text,
)
from tests.batches.batch_builder import track_events
from tests.training.small_runs import (
    RecordingTracker,
    dom_events,
    manifest_of,
    small_config,
    small_inputs,
    write_shard,
)

CHECK = {"n_events_per_batch": 8}
RATES = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3]


def row(**changes: object) -> LearningRow:
    fields: dict[str, object] = {
        "learning_rate": 3e-4,
        "inputs": "fitted",
        "first_loss": 1.57,
        "last_loss": 1.5,
        "finite": True,
        "gradient_norm": 2.0,
        "refusal": "",
        "verdict": "learns",
    }
    return LearningRow(**{**fields, **changes})  # type: ignore[arg-type]


def test_every_rate_learns_with_normalised_inputs_and_none_with_raw_ones(tmp_path: Path) -> None:
    config = small_config(learning_check=CHECK, batches={"max_doms_per_event": 24})
    rows = learning_check_table(small_inputs(tmp_path, config))
    assert [r.learning_rate for r in rows] == RATES * 2
    assert [r.inputs for r in rows] == ["seed"] * 5 + ["raw"] * 5
    assert all(r.change < -0.005 for r in rows[:5])
    assert {r.verdict for r in rows[:5]} == {"learns"}
    assert {r.verdict for r in rows[5:]} <= {"inputs refused", "not finite"}
    assert all("badly scaled" in r.refusal for r in rows[5:])


def test_learning_check_passes_and_is_tracked_on_sound_shards(tmp_path: Path) -> None:
    tracker = RecordingTracker()
    inputs = small_inputs(tmp_path, small_config(learning_check=CHECK), tracker=tracker)
    checked = check_learning(inputs)
    assert checked.verdict == "learns"
    assert checked.learning_rate == inputs.config.training.learning_rate
    assert tracker.curve("train_check/first_loss") == [checked.first_loss]


def test_learning_check_is_reproducible_and_leaves_dropout_out(tmp_path: Path) -> None:
    inputs = small_inputs(tmp_path, small_config(learning_check=CHECK, model={"dropout": 0.9}))
    torch.manual_seed(17)
    first = check_learning(inputs)
    torch.manual_seed(18)
    assert check_learning(inputs) == first


def test_learning_check_refuses_raw_inputs(tmp_path: Path) -> None:
    inputs = small_inputs(tmp_path, small_config(learning_check=CHECK))
    with pytest.raises(TrainingError, match=r"learning check failed: inputs refused.*time_norm"):
        check_learning(replace(inputs, normalization=Normalization.raw()))


def test_learning_check_stops_when_the_loss_does_not_fall(tmp_path: Path) -> None:
    config = small_config(learning_check=CHECK, training={"learning_rate": 1e-12})
    with pytest.raises(TrainingError, match=r"failed: does not learn.*1e-12.*loss 1\."):
        check_learning(small_inputs(tmp_path, config))


def test_learning_check_of_few_events_says_that_they_are_too_few(tmp_path: Path) -> None:
    config = small_config(learning_check=CHECK, training={"learning_rate": 1e-12})
    inputs = small_inputs(tmp_path, config)
    n_events = inputs.manifest.n_events("train")
    words = rf"^too few events to learn from, and .*found {n_events} train events; loss .*at least"
    with pytest.raises(TrainingError, match=words) as caught:
        check_learning(inputs)
    assert "lower the rate" not in str(caught.value)
    # inputs that are wrong are told as such, however few events there are
    with pytest.raises(TrainingError, match=r"^the learning check failed: inputs refused"):
        check_learning(replace(inputs, normalization=Normalization.raw()))


def test_learning_check_of_many_events_names_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(learning_check=CHECK, training={"learning_rate": 1e-12})
    inputs = small_inputs(tmp_path, config)
    monkeypatch.setattr(type(inputs.manifest), "n_events", lambda manifest, split: 5000)
    with pytest.raises(TrainingError, match=r"^the learning check failed.*then lower the rate"):
        check_learning(inputs)


def test_learning_check_stops_when_the_loss_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "_check_values", lambda events, where: None)
    inputs = small_inputs(tmp_path, small_config(learning_check=CHECK))
    events = dom_events(track_events(64, seed=5))
    charge = events.charge_pe.copy()
    charge[:] = np.nan
    shard = write_shard(
        inputs.store, f"file://{tmp_path}/bad", "train", replace(events, charge_pe=charge)
    )
    with pytest.raises(TrainingError, match=r"learning check failed: not finite.*charge_norm"):
        check_learning(replace(inputs, manifest=manifest_of([shard])))


def test_text_table_has_one_aligned_line_per_row() -> None:
    text = learning_check_text([row(), row(inputs="raw", verdict="inputs refused")])
    lines = text.splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["fitted", "0.0003", "1.5700", "1.5000", "-0.0700", "2", "learns"]
    assert lines[1].index("learns") == lines[2].index("inputs refused")


def test_text_table_says_once_why_inputs_are_refused() -> None:
    refused = row(inputs="raw", verdict="inputs refused", refusal="time_norm is too wide")
    text = learning_check_text([row(), refused, refused])
    assert text.splitlines()[4:] == ["raw: time_norm is too wide"]


def test_html_table_is_self_contained_and_escaped() -> None:
    page = learning_check_html([row(), row(refusal="<script>", verdict="not finite")], "<b>x</b>")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "http:" not in page
    assert "https:" not in page
    assert page.count("<tr>") == 3
    assert 'class="good">learns' in page
    assert 'class="bad">not finite' in page
