from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from iceaggr.signals import without_launchers
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
    # torch tells of settings that are outdated, or cost time for nothing
    assert "find_unused_parameters" not in done.stderr
    assert "FutureWarning" not in done.stderr, done.stderr
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


LEFT_BY_ANOTHER_JOB = {
    "RANK": "3",
    "LOCAL_RANK": "3",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "10.255.255.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "other",
    "PET_NNODES": "2",
}


def test_process_trains_alone_whatever_another_job_left_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, text in LEFT_BY_ANOTHER_JOB.items():
        monkeypatch.setenv(name, text)
    with joined_processes(use_gpu=False, launched=False) as processes:
        assert processes == Processes()
    assert not torch.distributed.is_initialized()
    assert len(caplog.messages) == 1
    assert all(f"{name}={text}" in caplog.text for name, text in LEFT_BY_ANOTHER_JOB.items())


def test_process_alone_says_nothing_without_foreign_variables(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in set(os.environ) - set(without_launchers(os.environ)):
        monkeypatch.delenv(name)
    with joined_processes(use_gpu=False, launched=False) as processes:
        assert processes == Processes()
    assert not caplog.messages


def test_only_variables_of_launchers_count_as_such() -> None:
    kept = {"HOME": "/", "RANKS": "1", "OMP_NUM_THREADS": "2", "MASTER": "x", "PETS": "cat"}
    assert without_launchers({**kept, **LEFT_BY_ANOTHER_JOB}) == kept


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
