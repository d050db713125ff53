from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from iceaggr.training.distributed import Processes, joined_processes

ROOT = Path(__file__).parents[2]


def run_processes(
    folder: Path, n_processes: int, n_events: int, n_train: int = 72
) -> dict[str, Any]:
    folder.mkdir()
    module = ["-m", "tests.training.parallel_worker", str(folder), str(n_events), str(n_train)]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    done = subprocess.run(
        [sys.executable, *launch, *module],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((folder / "curves.json").read_text())
    return result


def test_single_process_sends_nothing() -> None:
    alone = Processes()
    assert alone.is_main
    assert alone.gather([1.0, 2.0]).tolist() == [[1.0, 2.0]]
    assert alone.gather_objects("item") == ["item"]
    assert [alone.any(flag) for flag in (True, False)] == [True, False]
    model = torch.nn.Linear(1, 1)
    assert alone.wrap(model, torch.device("cpu")) is model


def test_single_process_needs_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_processes(use_gpu=False) as processes:
        assert processes == Processes()
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_two_processes_give_the_curves_of_one_with_the_same_global_batch(tmp_path: Path) -> None:
    one = run_processes(tmp_path / "one", n_processes=1, n_events=16)
    two = run_processes(tmp_path / "two", n_processes=2, n_events=8)
    assert one["n_events_seen"] == two["n_events_seen"] == 3 * 72
    for name, curve in one["curves"].items():
        assert len(curve) > 0
        assert two["curves"][name] == pytest.approx(curve, rel=2e-4), name


@pytest.mark.slow
def test_events_fewer_than_processes_are_left_out_and_counted(tmp_path: Path) -> None:
    two = run_processes(tmp_path / "two", n_processes=2, n_events=8, n_train=65)
    assert two["n_events_seen"] == 3 * 64
    assert two["curves"]["train/n_events_left_out"][-1] == 2
    assert len(two["curves"]["train/loss"]) == 3 * 4
