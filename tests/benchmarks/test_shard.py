import json

from benchmarks import data_path
from benchmarks.data_path import cache_folder


def test_bench_shard_reports_what_it_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data_path, "N_SIMULATED", 100)
    monkeypatch.setattr(data_path, "N_REPEATS", 10)
    monkeypatch.setattr(data_path, "N_ROUNDS", 1)
    result = data_path.bench_shard()
    json.dumps(result)
    assert result["n_events"] == 1000
    assert result["n_pulses"] > 10_000
    assert result["pulses_per_s"] > 0
    assert result["ratio_to_floor"] > 0
    assert result["ratio_to_floor_without_sketch"] > 0
    assert 0.05 < result["peak_memory_gib"] < 1.5
    assert {path.name.split("-")[0] for path in cache_folder().iterdir()} == {
        "simulated",
        "repeated",
    }
