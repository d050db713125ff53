"""What the rounding of a run depends on besides its settings, noted in every checkpoint.

Sums are rounded in another order with another number of threads, another version of torch or
another kind of processor. A run that is resumed with the same ones ends with the same bits.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from pydantic import TypeAdapter

from iceaggr.training.device import device_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rounding:
    """What one process computes with.

    n_threads: of a CPU; 0 on a GPU, where they do not matter
    device: model of the GPU, or what torch tells of the processor
    """

    n_threads: int
    torch_version: str
    device: str

    @classmethod
    def present(cls, device: torch.device) -> Rounding:
        """Look at this process."""
        on_cpu = device.type == "cpu"
        return cls(
            n_threads=torch.get_num_threads() if on_cpu else 0,
            torch_version=str(torch.__version__),
            device=_processor() if on_cpu else device_name(device),
        )

    def changes_since(self, earlier: Rounding) -> list[str]:
        """Name what differs, with the earlier value and the present one."""
        both = [(f.name, getattr(earlier, f.name), getattr(self, f.name)) for f in fields(self)]
        return [f"{name} was {before}, is {now}" for name, before, now in both if before != now]


_STORED = TypeAdapter(list[Rounding])


def go_on_with(stored: Any, rank: int, device: torch.device, *, set_threads: bool) -> list[str]:
    """Compute as the attempt before did where this machine can; returns what differs, in words.

    stored: what a checkpoint notes of every process; None in those of older versions
    set_threads: take over the earlier number of threads if there are as many cores
    Raises: ValueError, LookupError if it is damaged.
    """
    present = Rounding.present(device)
    if stored is None:
        logger.info("the checkpoint does not say with how many threads it was computed, nor where")
        return []
    earlier = _STORED.validate_python(stored)[rank]
    differs_elsewhere = (earlier.torch_version, earlier.device) != (
        present.torch_version,
        present.device,
    )
    if earlier.n_threads != present.n_threads and set_threads and not differs_elsewhere:
        present = _with_threads(earlier.n_threads, device)
    return present.changes_since(earlier)


def _with_threads(n_threads: int, device: torch.device) -> Rounding:
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if 1 <= n_threads <= (n_cores or 1):
        logger.info(
            "computing with %d threads as before, not %d", n_threads, torch.get_num_threads()
        )
        torch.set_num_threads(n_threads)
    return Rounding.present(device)


@contextmanager
def fixed_threads() -> Iterator[None]:
    """Fix the number of threads while a block runs, and put it back afterwards."""
    n_threads = torch.get_num_threads()
    # said aloud, MKL keeps to it; by itself it takes fewer for some sizes
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _processor() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    # not every version that we support tells the model
    tell = getattr(torch.cpu, "get_capabilities", None)
    name = str(tell().get("cpu_name", "")) if tell is not None else ""
    return f"{name} {capability}".strip()
