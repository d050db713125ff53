"""How much of the time a GPU computes, from the profile of its kernels."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

N_PROFILED_STEPS = 10


def wait_for(device: torch.device) -> None:
    """Wait until a device has computed what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def busy_share(take_step: Callable[[], None], n_steps: int, device: torch.device) -> float:
    """Measure the share of the time in which at least one kernel or copy runs, over some steps."""
    wait_for(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        began = time.perf_counter()
        for _ in range(n_steps):
            take_step()
        wait_for(device)
        seconds = time.perf_counter() - began
    runs = [
        (event.time_range.start, event.time_range.end)
        for event in profiled.events()
        if event.device_type == DeviceType.CUDA
    ]
    return covered(np.array(runs, np.float64).reshape(-1, 2)) / 1e6 / seconds


def covered(intervals: npt.NDArray[np.float64]) -> float:
    """Add up the length that intervals cover, each point once. intervals: (K, 2) start and end."""
    if not len(intervals):
        return 0.0
    intervals = intervals[np.argsort(intervals[:, 0], kind="stable")]
    ends = np.maximum.accumulate(intervals[:, 1])
    begins = np.maximum(intervals[1:, 0], ends[:-1])
    total = intervals[0, 1] - intervals[0, 0] + np.maximum(intervals[1:, 1] - begins, 0).sum()
    return float(total)
