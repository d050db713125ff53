"""The streaming benchmark runs for real against its own object store on few events."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import data_path, streaming


@pytest.mark.slow
@pytest.mark.integration
def test_bench_streaming_reports_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data_path, "N_SIMULATED", 300)
    monkeypatch.setattr(data_path, "N_REPEATS", 20)
    monkeypatch.setattr(streaming, "N_ROUNDS", 1)
    result = streaming.bench_streaming()
    json.dumps(result)
    passes = {"local", "download", "store", "cache_filling", "cache_filled"}
    for figures in ("events_per_s", "cpu_us_per_event", "store_cpu_us_per_event"):
        assert set(result[figures]) == passes
    assert set(result["ratio_to_local"]) == passes - {"local", "download"}
    assert min(result["events_per_s"].values()) > 0
    assert result["n_events"] > 4000
    # only what streams asks the store for anything
    asked = result["store_cpu_us_per_event"]
    assert asked["download"] > 0
    assert max(asked["local"], asked["cache_filled"]) < asked["download"]
    assert 0 < result["ratio_to_local_by_cpu"] < 1


@pytest.mark.slow
def test_bench_convert_reports_what_it_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "N_CONVERTED", 1_000)
    monkeypatch.setattr(streaming, "N_CONVERSIONS", 1)
    result = streaming.bench_convert()
    json.dumps(result)
    layouts = {"nubench-sqlite", "nubench-parquet"}
    for figures in ("ratio_to_copy", "ratio_to_copy_by_cpu", "peak_memory_mib"):
        assert set(result[figures]) == layouts
        assert min(result[figures].values()) > 0
    assert set(result["pulses_per_s"]) == {
        *layouts,
        *(f"{n} copied" for n in layouts),
        "sqlite_copy",
    }
    # with noise and without, 80 pulses of an event on average
    assert 100_000 < result["n_pulses"] < 200_000
