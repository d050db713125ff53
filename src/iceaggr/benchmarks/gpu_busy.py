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
    meter = BusyMeter(device)
    meter.start()
    for _ in range(n_steps):
        take_step()
    meter.stop()
    return meter.share


class BusyMeter:
    """Profiles a GPU between start and stop; share is that of the time in which it was busy."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.share = 0.0
        self._profile = profile(activities=[ProfilerActivity.CUDA])
        self._began = 0.0

    def start(self) -> None:
        """Wait for the device, then begin."""
        wait_for(self.device)
        self._profile.start()
        self._began = time.perf_counter()

    def stop(self) -> None:
        """Wait for the device, end, and add up what ran."""
        wait_for(self.device)
        seconds = time.perf_counter() - self._began
        self._profile.stop()
        runs = [
            (event.time_range.start, event.time_range.end)
            for event in self._profile.events() or ()
            if event.device_type == DeviceType.CUDA
        ]
        self.share = covered(np.array(runs, np.float64).reshape(-1, 2)) / 1e6 / seconds


def covered(intervals: npt.NDArray[np.float64]) -> float:
    """Add up the length that intervals cover, each point once. intervals: (K, 2) start and end."""
    if not len(intervals):
        return 0.0
    intervals = intervals[np.argsort(intervals[:, 0], kind="stable")]
    ends = np.maximum.accumulate(intervals[:, 1])
    begins = np.maximum(intervals[1:, 0], ends[:-1])
    total = intervals[0, 1] - intervals[0, 0] + np.maximum(intervals[1:, 1] - begins, 0).sum()
    return float(total)
