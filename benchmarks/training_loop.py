"""How much of the time a GPU computes, from the profile of its kernels."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.loader import sharded_events
from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import ExperimentConfig
from iceaggr.detector import icecube86
from iceaggr.interfaces import NullTracker
from iceaggr.normalization_document import Normalization
from iceaggr.shards.manifest import ShardManifest, load_manifest
from iceaggr.signals import Interruption, TrainingInterruptedError
from iceaggr.storage import open_store
from iceaggr.training.device import LoadedBatch, Processes
from iceaggr.training.inputs import TrainingInputs, TrainingProgress
from iceaggr.training.keeper import RunState
from iceaggr.training.loop import Loop
from iceaggr.training.reporting import CurveWindow
from iceaggr.training.run import build_parts
from iceaggr.training.step import StepOutcome

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


# How fast the whole training loop is: shards, loader, checks, transfer, step, curves.
#
# Stretches of the loop and bare steps on the very same batches, which then lie on the device, take
# turns: their ratio holds on a busy machine, too, and a loader that cannot keep up shows in it.

N_SIMULATED = 5_000
N_ROUNDS = 5
SECONDS_PER_WINDOW = 3.0
MAX_STEPS_PER_WINDOW = 200


def bench_loop(config: ExperimentConfig, device: torch.device, step_s: float) -> dict[str, float]:
    """Measure the loop of a configuration on simulated events in local shards.

    step_s: about how long a step takes, in seconds
    Returns loop_events_per_s, loop_share_of_step (its ratio to the bare steps),
    loop_cpu_share_of_step (the same by processor time, hardly moved by a busy machine),
    waiting_share (of the time, for batches) and, on a GPU, gpu_busy_share of the loop. Medians of
    N_ROUNDS.
    """
    n_steps = int(min(max(2, SECONDS_PER_WINDOW / step_s), MAX_STEPS_PER_WINDOW))
    with tempfile.TemporaryDirectory(prefix="iceaggr-bench-") as folder:
        bench = _LoopBench(config, device, n_steps, Path(folder).resolve().as_uri())
        rounds = [bench.take_turns() for _ in range(N_ROUNDS)]
        figures = {
            name: statistics.median(getattr(one, name) for one in rounds)
            for name in vars(rounds[0])
        }
        if device.type == "cuda":
            figures["gpu_busy_share"] = bench.busy_share()
    return figures


@dataclass(frozen=True)
class _Round:
    """A stretch of the loop and the bare steps after it."""

    loop_events_per_s: float
    loop_share_of_step: float
    loop_cpu_share_of_step: float
    waiting_share: float


class _RememberingWindow(CurveWindow):
    """Keeps the batches of the steps since the last point."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.batches: list[EventBatch] = []

    def add(self, outcome: StepOutcome, batch: EventBatch) -> None:
        """Add a step, and keep its batch."""
        super().add(outcome, batch)
        self.batches.append(batch)


class _LoopBench:
    """One training that goes on from stretch to stretch: a window to get going, then one to time.

    n_steps: of a window
    """

    def __init__(
        self, config: ExperimentConfig, device: torch.device, n_steps: int, folder_uri: str
    ) -> None:
        self.device = device
        inputs = _inputs(_endless(config, n_steps), n_steps, folder_uri)
        self.window = _RememberingWindow(device)
        self.parts = build_parts(inputs, Processes(), device, self._on_point)
        self.parts.reporter.window = self.window
        self.state = RunState()
        self.points: list[TrainingProgress] = []
        self.timed: list[EventBatch] = []
        self.loop_cpu_s = 0.0
        self.interruption = Interruption()
        self.meter: BusyMeter | None = None

    def take_turns(self) -> _Round:
        """Time a stretch of the loop, then bare steps on the batches of its second window."""
        self._run_loop()
        n_events = sum(batch.n_events for batch in self.timed)
        bare_s, bare_cpu_s = self._take_bare_steps(self.timed)
        loop = self.points[1]
        return _Round(
            loop_events_per_s=loop.events_per_s,
            loop_share_of_step=loop.events_per_s * bare_s / n_events,
            loop_cpu_share_of_step=bare_cpu_s / self.loop_cpu_s,
            waiting_share=loop.data_wait_share,
        )

    def busy_share(self) -> float:
        """Measure the share of the loop's time in which the GPU computes or copies."""
        training = self.parts.config.training.model_copy(
            update={"log_every_n_steps": N_PROFILED_STEPS}
        )
        config = self.parts.config.model_copy(update={"training": training})
        self.parts = replace(self.parts, config=config)
        self.meter = BusyMeter(self.device)
        self._run_loop()
        return self.meter.share

    def _run_loop(self) -> None:
        self.points.clear()
        self.interruption = Interruption()
        with suppress(TrainingInterruptedError):
            Loop(self.parts, self.state, self.interruption).run()

    def _on_point(self, point: TrainingProgress) -> None:
        self.points.append(point)
        if len(self.points) == 1:
            self.window.batches = []
            self.loop_cpu_s = -time.process_time()
            if self.meter is not None:
                self.meter.start()
        elif len(self.points) == 2:
            self.loop_cpu_s += time.process_time()
            if self.meter is not None:
                self.meter.stop()
            self.timed = list(self.window.batches)
            self.interruption.request()

    def _take_bare_steps(self, batches: list[EventBatch]) -> tuple[float, float]:
        """Take a step on each batch: seconds by the clock, and of all cores."""
        step = self.parts.step
        rate = step.config.training.learning_rate
        wait_for(self.device)
        began, cpu_began = time.perf_counter(), time.process_time()
        for batch in batches:
            loaded = LoadedBatch(batch, batch, {})
            step.take(loaded, self.state.step + 1, self.state.progress, rate, batch.n_events)
        wait_for(self.device)
        return time.perf_counter() - began, time.process_time() - cpu_began


def _endless(config: ExperimentConfig, n_steps: int) -> ExperimentConfig:
    """Give the settings of a training that neither validates nor saves while it is timed."""
    changes = {
        "n_epochs": 1_000_000,
        "max_minutes": 0.0,
        "validation_every_minutes": 0.0,
        "checkpoint_every_minutes": 1e5,
        "max_validation_events": config.batches.n_events,
        "stop_if_not_learning_after_n_steps": 0,
        "log_every_n_steps": n_steps,
    }
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def _inputs(config: ExperimentConfig, n_steps: int, folder_uri: str) -> TrainingInputs:
    store = open_store()
    manifest = load_manifest(store, sharded_events(N_SIMULATED, 1))
    # enough for all stretches, so that no epoch ends inside one
    n_stretch = 2 * max(n_steps, N_PROFILED_STEPS) + 8
    wanted = (N_ROUNDS + 1) * n_stretch * config.batches.n_events
    return TrainingInputs(
        config=config,
        store=store,
        manifest=_repeated(manifest, 1 + wanted // manifest.n_events("train")),
        detector=icecube86(),
        geometry_csv=resources.files("iceaggr.resources")
        .joinpath("icecube86.csv")
        .read_text(encoding="utf-8"),
        normalization=Normalization.seed(),
        tracker=NullTracker(),
        output_uri=folder_uri,
    )


def _repeated(manifest: ShardManifest, n_listings: int) -> ShardManifest:
    """List the train shards several times: an epoch of more events, without their disk space."""
    train = manifest.shards_of("train") * n_listings
    return manifest.model_copy(update={"shards": (*train, *manifest.shards_of("validation"))})
