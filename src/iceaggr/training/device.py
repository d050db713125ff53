"""Where the model runs: choice of device and precision, and copies that overlap with computing."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import TrainingConfig
from iceaggr.errors import TrainingError
from iceaggr.models import DirectionModel
from iceaggr.models.input_features import Features
from iceaggr.training.inputs import BatchSource

logger = logging.getLogger(__name__)

N_FEATURES_AHEAD = 2
"""Batches whose features a CPU computes ahead of the step that uses them."""


def choose_device(config: TrainingConfig, local_rank: int = 0) -> torch.device:
    """Choose the device, and say in the log which one `auto` took.

    Raises: TrainingError if a GPU is asked for and there is none, or if there are GPUs but none is
    left for this process: a run on both kinds of device would wait for itself forever.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    needs_gpu = config.device == "cuda" or (config.device == "auto" and n_gpus > 0)
    if needs_gpu and n_gpus <= local_rank:
        raise TrainingError(
            "no GPU for this process",
            where="training.device",
            found=f"{n_gpus} usable GPUs",
            expected=f"at least {local_rank + 1}",
            remedy="Start one process per GPU, set training.device to cpu, or run where CUDA sees "
            "more GPUs",
        )
    if not needs_gpu:
        logger.info("training on the CPU (device %s, %d GPUs seen)", config.device, n_gpus)
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    logger.info("training on %s (device %s)", torch.cuda.get_device_name(device), config.device)
    return device


def autocast(device: torch.device, config: TrainingConfig) -> AbstractContextManager[object]:
    """Open the precision of the forward pass: bfloat16 autocast, or float32 as it is."""
    wanted = config.precision
    use_bfloat16 = wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bfloat16)


@dataclass(frozen=True)
class LoadedBatch:
    """A batch as loaded, on the device, and where the epoch stands once it is used.

    features: what the network sees of it, where that was computed ahead.
    """

    host: EventBatch
    placed: EventBatch
    position: dict[str, int]
    features: Features | None = None


def positioned(
    loader: BatchSource, epoch: int, position: dict[str, int] | None = None
) -> Generator[tuple[EventBatch, dict[str, int]], None, None]:
    """Pair each batch with the loader's position, which moves on when the next one is fetched."""
    batches = loader.epoch(epoch, position)
    try:
        for batch in batches:
            yield batch, dict(loader.position)
    finally:
        # ends the loader's threads even when the epoch is left early
        close = getattr(batches, "close", None)
        if close is not None:
            close()


def placed(
    batches: Iterable[tuple[EventBatch, dict[str, int]]],
    device: torch.device,
    model: DirectionModel | None = None,
) -> Iterator[LoadedBatch]:
    """Put each batch on the device.

    For a GPU the next batch is copied from pinned memory while the present one is computed. On a
    CPU the features of the next batches are computed by a thread meanwhile, if a model is given:
    its classical fits are long runs of small operations, which leave the other cores idle.
    """
    if device.type != "cuda":
        if model is not None:
            yield from _with_features(batches, model)
            return
        for batch, position in batches:
            yield LoadedBatch(batch, batch, position)
        return
    stream = torch.cuda.Stream(device)
    ready: LoadedBatch | None = None
    for batch, position in batches:
        with torch.cuda.stream(stream):
            copy = batch.pin_memory().to(device, non_blocking=True)
        if ready is not None:
            yield ready
        torch.cuda.current_stream(device).wait_stream(stream)
        _belongs_to(torch.cuda.current_stream(device), copy)
        ready = LoadedBatch(batch, copy, position)
    if ready is not None:
        yield ready


def _belongs_to(stream: torch.cuda.Stream, batch: EventBatch) -> None:
    # without this the allocator may reuse the memory while this stream still reads it
    for tensor in vars(batch).values():
        if isinstance(tensor, torch.Tensor):
            tensor.record_stream(stream)


def _with_features(
    batches: Iterable[tuple[EventBatch, dict[str, int]]], model: DirectionModel
) -> Iterator[LoadedBatch]:
    waiting: deque[tuple[EventBatch, dict[str, int], Future[Features] | None]] = deque()
    # one thread of its own for these small operations: more would only wait for each other
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for batch, position in batches:
            # a process whose share of the epoch has run out gets an empty batch
            future = pool.submit(model.features_of, batch) if batch.n_events else None
            waiting.append((batch, position, future))
            if len(waiting) > N_FEATURES_AHEAD:
                yield _loaded(*waiting.popleft())
        while waiting:
            yield _loaded(*waiting.popleft())


def _loaded(
    batch: EventBatch, position: dict[str, int], features: Future[Features] | None
) -> LoadedBatch:
    if features is None or features.exception() is not None:
        # what spoils the features comes up again: in the check of the batch, which names the
        # events, or else in the model
        return LoadedBatch(batch, batch, position)
    return LoadedBatch(batch, batch, position, features.result())
