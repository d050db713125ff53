from pathlib import Path

import pytest
import yaml

from benchmarks import train
from benchmarks.train import bench_train


def test_bench_train_reports_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(train, "MAX_STEPS", {"cpu": 2, "cuda": 2})
    monkeypatch.setattr(train, "N_SIMULATED", 200)
    monkeypatch.setattr(train, "N_ROUNDS", 1)
    monkeypatch.setattr(train, "MAX_STEPS_PER_WINDOW", 2)
    config = tmp_path / "small.yaml"
    model = {"d_model": 8, "n_heads": 1, "n_dom_layers": 1, "n_event_layers": 1}
    config.write_text(yaml.safe_dump({"batches": {"n_events": 4}, "model": model}))
    result = bench_train(config)
    assert result["events_per_s"] > 0
    assert 0 < result["share_of_matmul_peak"] < 1
    assert result["model_tflops_per_s"] < result["matmul_tflops_per_s"]
    assert 0 < result["peak_memory_gib"] < 24
    assert result["loop_events_per_s"] > 0
    assert 0 <= result["waiting_share"] < 1
