"""The loader benchmark runs for real on few events and reports consistent figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import loader


def test_bench_loader_reports_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(loader, "N_SIMULATED", 300)
    monkeypatch.setattr(loader, "N_REPEATS", 2)
    # medians: a copy of a millisecond may be interrupted for longer than all else takes
    monkeypatch.setattr(loader, "N_ROUNDS", 3)
    result = loader.bench_loader()
    manifest = loader.listed_manifest(loader.sharded_events())
    assert result["n_events"] == manifest.n_events("train") > 0
    n_pulses = sum(entry.n_pulses for entry in manifest.shards)
    assert result["pulses_per_event"] == pytest.approx(n_pulses / result["n_events"], abs=0.1)
    assert set(result["events_per_s_by_n_workers"]) == {"0", "1", "2"}
    assert result["events_per_s"] > 0
    assert 0 < result["share_waiting"] < 1
    assert result["ratio_to_memory_copy"] > 1
    assert 0.05 < result["peak_memory_gib"] < 4
