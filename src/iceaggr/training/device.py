"""Where the model runs: choice of device and precision, and copies that overlap with computing."""

from __future__ import annotations

import inspect
import logging
import os
import sysconfig
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import ModelConfig, TrainingConfig
from iceaggr.errors import TrainingError
from iceaggr.models import DirectionModel
from iceaggr.models.input_features import Features
from iceaggr.models.packed_transformer import MIN_HEAD_WIDTH
from iceaggr.signals import without_launchers
from iceaggr.training.inputs import BatchSource

# The processes of one run: started by torchrun, one per GPU, or a single one.
#
# Schedulers and other trainings leave RANK, WORLD_SIZE, MASTER_ADDR and their kin in a shell. A
# process that believed them would wait for partners that do not exist. So they count only where our
# own launcher has started the process, which says so itself.

# torch 2.13 has another name for it
_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_NO_SYNC: dict[str, Any] = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}


@dataclass(frozen=True)
class Processes:
    """The place of this process among all of the run. With one process nothing is ever sent."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Tell whether this process tracks and writes."""
        return self.rank == 0

    def gather(self, numbers: Sequence[float]) -> Tensor:
        """Collect a few numbers of every process: (world_size, K) float64, on the CPU."""
        mine = torch.tensor(list(numbers), dtype=torch.float64)
        if self.world_size == 1:
            return mine[None]
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(everyone, mine)
        return torch.stack(everyone)

    def gather_objects(self, item: Any) -> list[Any]:
        """Collect an object of every process, in rank order."""
        if self.world_size == 1:
            return [item]
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, item)
        return everyone

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is set in any process."""
        return bool(self.gather([float(flag)]).any())

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Let gradients be averaged over the processes during backward."""
        if self.world_size == 1:
            return model
        return DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            # buffers are constants: the normalisation and the frame of the features
            **_NO_SYNC,
        )


@contextmanager
def joined_processes(use_gpu: bool, launched: bool) -> Iterator[Processes]:
    """Join the processes that torchrun describes in the environment, and leave them at the end.

    Control messages always travel over gloo on the CPU, gradients over NCCL on GPUs.
    launched: our launcher started this process with others; False trains alone, whatever is there
    """
    if not launched:
        without_launchers(os.environ)
        yield Processes()
        return
    if int(os.environ["WORLD_SIZE"]) == 1:
        yield Processes()
        return
    started_here = not dist.is_initialized()
    if started_here:
        dist.init_process_group("cpu:gloo,cuda:nccl" if use_gpu else "gloo")
    try:
        yield Processes(
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        )
    finally:
        if started_here:
            dist.destroy_process_group()


logger = logging.getLogger(__name__)

N_FEATURES_AHEAD = 2
"""Batches whose features a CPU computes ahead of the step that uses them."""

Check = Callable[[EventBatch], None]
"""Raises TrainingError for a batch that must not reach the model."""


def choose_device(config: TrainingConfig, local_rank: int = 0) -> torch.device:
    """Choose the device, and say in the log which one `auto` took.

    Raises: TrainingError if a GPU is asked for and there is none, or if there are GPUs but none is
    left for this process: a run on both kinds of device would wait for itself forever.
    """
    if not check_gpus(config, local_rank + 1):
        logger.info("training on the CPU (device %s)", config.device)
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    logger.info("training on %s (device %s)", device_name(device), config.device)
    return device


def check_gpus(config: TrainingConfig, n_processes: int) -> bool:
    """Tell whether this machine trains on GPUs, one for each of its processes.

    Raises: TrainingError if it should and there are fewer.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    needs_gpu = config.device == "cuda" or (config.device == "auto" and n_gpus > 0)
    if needs_gpu and n_gpus < n_processes:
        raise TrainingError(
            "no GPU for this process" if n_processes == 1 else "not a GPU for each process",
            where="training.device",
            found=f"{n_gpus} usable GPUs",
            expected=f"at least {n_processes}",
            remedy="Start one process per GPU, set training.device to cpu, or run where CUDA sees "
            "more GPUs",
        )
    return needs_gpu


def device_name(device: torch.device) -> str:
    """Name a device for people: cpu, or the model of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def autocast(device: torch.device, config: TrainingConfig) -> AbstractContextManager[object]:
    """Open the precision of the forward pass: bfloat16 autocast, or float32 as it is."""
    wanted = config.precision
    use_bfloat16 = wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bfloat16)


@dataclass(frozen=True)
class LoadedBatch:
    """A batch as loaded, on the device, and where the epoch stands once it is used.

    features: what the network sees of it, where that was computed ahead.
    is_sound: it was checked ahead, and nothing was wrong
    """

    host: EventBatch
    placed: EventBatch
    position: dict[str, int]
    features: Features | None = None
    is_sound: bool = False


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
    check: Check | None = None,
) -> Iterator[LoadedBatch]:
    """Put each batch on the device, and do ahead of its step what can be done.

    For a GPU the next batch is copied from pinned memory while the present one is computed. On a
    CPU the features of the next batches are computed by a thread meanwhile, if a model is given:
    its classical fits are long runs of small operations, which leave the other cores idle. The same
    thread checks the batches. One that does not pass is handed out all the same, so that its turn
    in the order of steps comes before its error.
    """
    if device.type == "cpu" and model is None and check is None:
        for batch, position in batches:
            yield LoadedBatch(batch, batch, position)
        return
    # one thread of its own for these small operations: more would only wait for each other
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        if device.type == "cuda":
            yield from _copied(batches, device, check, pool)
        else:
            yield from _with_features(batches, model, check, pool)


def _copied(
    batches: Iterable[tuple[EventBatch, dict[str, int]]],
    device: torch.device,
    check: Check | None,
    pool: ThreadPoolExecutor,
) -> Iterator[LoadedBatch]:
    stream = torch.cuda.Stream(device)
    ready: LoadedBatch | None = None
    for batch, position in batches:
        checked = pool.submit(_is_sound, batch, check)
        with torch.cuda.stream(stream):
            copy = batch.pin_memory().to(device, non_blocking=True)
        if ready is not None:
            yield ready
        torch.cuda.current_stream(device).wait_stream(stream)
        _belongs_to(torch.cuda.current_stream(device), copy)
        ready = LoadedBatch(batch, copy, position, is_sound=checked.result())
    if ready is not None:
        yield ready


def _belongs_to(stream: torch.cuda.Stream, batch: EventBatch) -> None:
    # without this the allocator may reuse the memory while this stream still reads it
    for tensor in vars(batch).values():
        if isinstance(tensor, torch.Tensor):
            tensor.record_stream(stream)


def _with_features(
    batches: Iterable[tuple[EventBatch, dict[str, int]]],
    model: DirectionModel | None,
    check: Check | None,
    pool: ThreadPoolExecutor,
) -> Iterator[LoadedBatch]:
    waiting: deque[Future[LoadedBatch]] = deque()
    for batch, position in batches:
        waiting.append(pool.submit(_prepared, batch, position, model, check))
        if len(waiting) > N_FEATURES_AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _prepared(
    batch: EventBatch,
    position: dict[str, int],
    model: DirectionModel | None,
    check: Check | None,
) -> LoadedBatch:
    is_sound = _is_sound(batch, check)
    # a process whose share of the epoch has run out gets an empty batch
    if model is None or not batch.n_events:
        return LoadedBatch(batch, batch, position, is_sound=is_sound)
    try:
        features = model.features_of(batch)
    except Exception:
        # what spoils the features comes up again: in the check of the batch, which names the
        # events, or else in the model
        features = None
    return LoadedBatch(batch, batch, position, features, is_sound)


def _is_sound(batch: EventBatch, check: Check | None) -> bool:
    """Tell whether a batch was checked and passed; why not, its turn will tell."""
    if check is None:
        return False
    try:
        check(batch)
    except Exception:
        return False
    return True


# Whether the layers of a model are compiled for its device, and what is missing if not.


def compile_for(model: DirectionModel, device: torch.device, config: TrainingConfig) -> None:
    """Compile the layers of a model where its device and the configuration say so, and log it.

    Raises: TrainingError if the configuration insists and it cannot be.
    """
    wanted, obstacle = config.compile_layers, _obstacle_to_compiling(device, model.config)
    if wanted == "on" and obstacle:
        raise TrainingError(
            "layers cannot be compiled",
            where="training.compile_layers",
            found=obstacle,
            expected="a GPU, Triton, a C compiler, Python's headers and heads of width "
            f"{MIN_HEAD_WIDTH} or more",
            remedy="Set training.compile_layers to auto or off, or install what is missing",
        )
    if wanted == "off" or obstacle:
        level = logging.WARNING if wanted == "auto" and device.type == "cuda" else logging.INFO
        logger.log(level, "layers are not compiled: %s", obstacle or "switched off")
        return
    logger.info("layers are compiled for %s: the first step takes a minute", device)
    model.compile_layers()


def _obstacle_to_compiling(device: torch.device, config: ModelConfig) -> str:
    if device.type != "cuda":
        return f"the device is {device.type}"
    head_width = config.d_model // config.n_heads
    if head_width < MIN_HEAD_WIDTH:
        return f"attention heads of width {head_width} (model.d_model / model.n_heads)"
    if find_spec("triton") is None:
        return "torch came without Triton"
    if not (os.environ.get("CC") or which("gcc") or which("clang")):
        return "no C compiler (gcc, clang or $CC)"
    if not python_header().is_file():
        return "no C headers of Python (python3-dev)"
    return ""


def python_header() -> Path:
    """Say where the C header lies that a compiled launcher of kernels includes."""
    return Path(sysconfig.get_path("include")) / "Python.h"
