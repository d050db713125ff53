"""The loader benchmark runs for real on few events and reports consistent figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import data_path


def test_bench_loader_reports_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data_path, "N_SIMULATED", 300)
    monkeypatch.setattr(data_path, "N_REPEATS", 2)
    # medians: a copy of a millisecond may be interrupted for longer than all else takes
    monkeypatch.setattr(data_path, "N_ROUNDS", 3)
    result = data_path.bench_loader()
    manifest = data_path.listed_manifest(data_path.sharded_events())
    assert result["n_events"] == manifest.n_events("train") > 0
    n_pulses = sum(entry.n_pulses for entry in manifest.shards)
    assert result["pulses_per_event"] == pytest.approx(n_pulses / result["n_events"], abs=0.1)
    assert set(result["events_per_s_by_n_workers"]) == {"0", "1", "2"}
    assert result["events_per_s"] > 0
    assert 0 < result["share_waiting"] < 1
    assert result["ratio_to_memory_copy"] > 1
    assert 0.05 < result["peak_memory_gib"] < 4
