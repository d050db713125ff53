"""The processes of one run: started by torchrun, one per GPU, or a single one.

Schedulers and other trainings leave RANK, WORLD_SIZE, MASTER_ADDR and their kin in a shell. A
process that believed them would wait for partners that do not exist. So they count only where our
own launcher has started the process, which says so itself.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from iceaggr.signals import without_launchers

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
