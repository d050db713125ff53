"""The benchmark of the whole loop runs for real on few events; a slow loader shows in it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from benchmarks import train
from benchmarks.train import bench_loop
from iceaggr.batches import EventBatch, EventLoader
from iceaggr.config import parse_config

CPU = torch.device("cpu")
CONFIG = parse_config(
    {
        "batches": {"n_events": 8, "n_workers": 1, "max_doms_per_event": 32},
        "model": {"d_model": 8, "n_heads": 1, "n_dom_layers": 1, "n_event_layers": 1},
    }
)


@pytest.fixture(autouse=True)
def few_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(train, "N_SIMULATED", 200)
    monkeypatch.setattr(train, "N_ROUNDS", 1)


def test_bench_loop_reports_what_it_measured() -> None:
    figures = bench_loop(CONFIG, CPU, step_s=1.0)
    assert set(figures) == {
        "loop_events_per_s",
        "loop_share_of_step",
        "loop_cpu_share_of_step",
        "waiting_share",
    }
    assert figures["loop_events_per_s"] > 0
    assert figures["loop_share_of_step"] > 0
    assert figures["loop_cpu_share_of_step"] > 0
    assert 0 <= figures["waiting_share"] < 1


def test_bench_loop_shows_a_loader_that_cannot_keep_up(monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = EventLoader.epoch

    def slow(
        loader: EventLoader, number: int, position: Mapping[str, int] | None = None
    ) -> Iterator[EventBatch]:
        for batch in epoch(loader, number, position):
            time.sleep(0.3)
            yield batch

    monkeypatch.setattr(EventLoader, "epoch", slow)
    figures = bench_loop(CONFIG, CPU, step_s=1.0)
    assert figures["waiting_share"] > 0.5
    assert figures["loop_share_of_step"] < 0.5
