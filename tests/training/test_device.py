from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import ModelConfig, TrainingConfig
from iceaggr.errors import TrainingError
from iceaggr.models import DirectionModel, build_model
from iceaggr.normalization_document import Normalization
from iceaggr.signals import without_launchers
from iceaggr.training import device
from iceaggr.training.device import (
    Processes,
    autocast,
    check_gpus,
    choose_device,
    compile_for,
    joined_processes,
    placed,
    positioned,
)
from tests.batches.batch_builder import random_event_batch

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


CPU = torch.device("cpu")


class CountingLoader:
    """Two batches; notes when its iterator is closed."""

    def __init__(self) -> None:
        self.position: dict[str, int] = {}
        self.is_closed = False

    def epoch(self, epoch: int, position: Mapping[str, int] | None = None) -> Iterator[EventBatch]:
        first = position["n_events_done"] if position else 0
        try:
            for number in range(first, 2):
                self.position = {"epoch": epoch, "n_events_done": number + 1}
                yield random_event_batch(2, seed=number)
        finally:
            self.is_closed = True

    def n_batches(self, epoch: int) -> int:
        return 2


def test_batch_keeps_the_position_it_came_with_when_read_ahead() -> None:
    pairs = list(positioned(CountingLoader(), epoch=3))
    assert [position["n_events_done"] for _, position in pairs] == [1, 2]
    assert {position["epoch"] for _, position in pairs} == {3}


def test_epoch_goes_on_from_a_position() -> None:
    loader = CountingLoader()
    (_, first), _ = positioned(loader, epoch=0)
    ((batch, _),) = positioned(loader, epoch=0, position=first)
    assert torch.equal(batch.time_ns, random_event_batch(2, seed=1).time_ns)


def test_leaving_an_epoch_early_ends_the_loader() -> None:
    loader = CountingLoader()
    with closing(positioned(loader, epoch=0)) as batches:
        for _ in placed(batches, CPU):
            break
    assert loader.is_closed


def test_cpu_uses_batches_where_they_are() -> None:
    loaded = list(placed(positioned(CountingLoader(), epoch=0), CPU))
    assert [one.position["n_events_done"] for one in loaded] == [1, 2]
    assert all(one.host is one.placed for one in loaded)


def test_cpu_computes_the_features_of_each_batch_ahead() -> None:
    config = ModelConfig(
        d_model=8,
        n_heads=1,
        n_dom_layers=0,
        n_event_layers=1,
        dom_statistics=True,
        seed="line_fit",
        seed_frame=True,
    )
    model = build_model(config, Normalization.seed()).eval()
    loaded = list(placed(positioned(CountingLoader(), epoch=0), CPU, model))
    assert [one.position["n_events_done"] for one in loaded] == [1, 2]
    for one in loaded:
        assert one.features is not None
        expected = model.features_of(one.placed)
        torch.testing.assert_close(one.features.doms, expected.doms)
        torch.testing.assert_close(model(one.placed, one.features).vector, model(one.placed).vector)


def test_batch_whose_features_fail_reaches_the_check_that_names_its_events() -> None:
    config = ModelConfig(
        d_model=8, n_heads=1, n_dom_layers=1, n_event_layers=1, seed="likelihood", seed_head=True
    )
    model = build_model(config, Normalization.seed()).eval()
    batch = random_event_batch(2)
    spoiled = replace(batch, charge_pe=torch.full_like(batch.charge_pe, torch.nan))
    with pytest.raises(RuntimeError, match="eigh"):
        model.features_of(spoiled)
    (loaded,) = placed([(spoiled, {})], CPU, model)
    assert loaded.host is spoiled
    assert loaded.features is None


def refuse_the_second(batch: EventBatch) -> None:
    if torch.equal(batch.time_ns, random_event_batch(2, seed=1).time_ns):
        raise TrainingError("a bad batch")


def test_batches_are_checked_ahead_by_a_thread_of_their_own() -> None:
    threads: list[threading.Thread] = []

    def check(batch: EventBatch) -> None:
        threads.append(threading.current_thread())
        refuse_the_second(batch)

    batches = placed(positioned(CountingLoader(), epoch=0), CPU, check=check)
    # the refused one is handed out in its turn: its error belongs to its step
    assert [one.is_sound for one in batches] == [True, False]
    assert len(threads) == 2
    assert threading.main_thread() not in threads


def test_batches_nobody_checked_do_not_count_as_sound() -> None:
    assert not any(one.is_sound for one in placed(positioned(CountingLoader(), epoch=0), CPU))


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_process_without_a_gpu_of_its_own_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = TrainingConfig.model_validate({"device": device})
    with pytest.raises(TrainingError, match=r"not a GPU for each process.*found 1 usable.*least 2"):
        choose_device(config, local_rank=1)


def test_machine_with_a_gpu_for_each_process_trains_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for chosen, on_gpus in (("auto", True), ("cuda", True), ("cpu", False)):
        config = TrainingConfig.model_validate({"device": chosen})
        assert check_gpus(config, 2) is on_gpus


def test_device_cpu_is_taken_even_where_there_is_a_gpu() -> None:
    assert choose_device(TrainingConfig(device="cpu")) == CPU


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_precision_of_the_forward_pass_on_a_cpu(precision: str, dtype: torch.dtype) -> None:
    config = TrainingConfig.model_validate({"precision": precision})
    with autocast(CPU, config):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_copies_are_whole_when_read_ahead() -> None:
    device = torch.device("cuda", 0)
    loaded = placed(positioned(CountingLoader(), epoch=0), device, check=refuse_the_second)
    for one, is_sound in zip(loaded, (True, False), strict=True):
        assert one.is_sound is is_sound
        assert one.placed.time_ns.is_cuda
        assert torch.equal(one.placed.time_ns.cpu(), one.host.time_ns)


CPU_DEVICE, GPU = torch.device("cpu"), torch.device("cuda", 0)


def built() -> DirectionModel:
    config = ModelConfig(d_model=16, n_heads=1, n_dom_layers=1, n_event_layers=1)
    return build_model(config, Normalization.seed())


def is_compiled(model: DirectionModel) -> bool:
    return model.event_transformer.layers._compiled is not None


def machine(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """Stand on a machine with all it takes but what is missing."""
    monkeypatch.delenv("CC", raising=False)
    here = Path(__file__)
    header = here.with_name("missing") if "Python.h" in missing else here
    monkeypatch.setattr(device, "python_header", lambda: header)
    monkeypatch.setattr(device, "find_spec", lambda name: None if name in missing else name)
    monkeypatch.setattr(device, "which", lambda name: None if name in missing else name)


def test_auto_leaves_the_cpu_alone_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = built()
    with caplog.at_level("INFO", logger="iceaggr"):
        compile_for(model, CPU_DEVICE, TrainingConfig())
    assert not is_compiled(model)
    assert "layers are not compiled: the device is cpu" in caplog.text


def test_auto_compiles_for_a_gpu_that_has_all_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    model = built()
    compile_for(model, GPU, TrainingConfig())
    assert is_compiled(model)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (["triton"], "torch came without Triton"),
        (["gcc", "clang"], "no C compiler"),
        (["Python.h"], "no C headers of Python"),
    ],
)
def test_what_is_missing_is_a_warning_or_an_error_as_configured(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    missing: list[str],
    words: str,
) -> None:
    machine(monkeypatch, *missing)
    model = built()
    compile_for(model, GPU, TrainingConfig(compile_layers="auto"))
    assert not is_compiled(model)
    assert [(r.levelname, words in r.message) for r in caplog.records] == [("WARNING", True)]
    with pytest.raises(TrainingError, match=f"layers cannot be compiled.*{words}"):
        compile_for(model, GPU, TrainingConfig(compile_layers="on"))


def test_heads_too_narrow_for_the_kernel_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine(monkeypatch)
    config = ModelConfig(d_model=16, n_heads=2, n_dom_layers=1, n_event_layers=1)
    model = build_model(config, Normalization.seed())
    compile_for(model, GPU, TrainingConfig())
    assert not is_compiled(model)
    assert "layers are not compiled: attention heads of width 8" in caplog.text
    with pytest.raises(TrainingError, match=r"cannot be compiled.*heads of width 8"):
        compile_for(model, GPU, TrainingConfig(compile_layers="on"))


def test_off_compiles_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    model = built()
    compile_for(model, GPU, TrainingConfig(compile_layers="off"))
    assert not is_compiled(model)
