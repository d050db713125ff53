"""Where the model runs: choice of device and precision, and copies that overlap with computing."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import TrainingConfig
from iceaggr.errors import TrainingError
from iceaggr.training.inputs import BatchSource

logger = logging.getLogger(__name__)


def choose_device(config: TrainingConfig, local_rank: int = 0) -> torch.device:
    """Choose the device, and say in the log which one `auto` took.

    Raises: TrainingError if a GPU is asked for and there is none.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device == "cuda" and n_gpus <= local_rank:
        raise TrainingError(
            "no GPU for this process",
            where="training.device",
            found=f"{n_gpus} usable GPUs",
            expected=f"at least {local_rank + 1}",
            remedy="Set training.device to auto or cpu, or run where CUDA sees a GPU",
        )
    use_gpu = config.device == "cuda" or (config.device == "auto" and n_gpus > local_rank)
    if not use_gpu:
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
    """A batch as loaded, on the device, and where the epoch stands once it is used."""

    host: EventBatch
    placed: EventBatch
    position: dict[str, int]


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
    batches: Iterable[tuple[EventBatch, dict[str, int]]], device: torch.device
) -> Iterator[LoadedBatch]:
    """Put each batch on the device.

    For a GPU the next batch is copied from pinned memory while the present one is computed.
    """
    if device.type != "cuda":
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
        _belongs_to_current_stream(copy)
        ready = LoadedBatch(batch, copy, position)
    if ready is not None:
        yield ready


def _belongs_to_current_stream(batch: EventBatch) -> None:
    # without this the allocator may reuse the memory while the main stream still reads it
    stream = torch.cuda.current_stream()
    for tensor in vars(batch).values():
        if isinstance(tensor, torch.Tensor):
            tensor.record_stream(stream)
