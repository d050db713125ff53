from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import ModelConfig, TrainingConfig
from iceaggr.errors import TrainingError
from iceaggr.models import build_model
from iceaggr.normalization import Normalization
from iceaggr.training.device import autocast, check_gpus, choose_device, placed, positioned
from tests.batches.batch_builder import random_event_batch

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
    for device, on_gpus in (("auto", True), ("cuda", True), ("cpu", False)):
        config = TrainingConfig.model_validate({"device": device})
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
