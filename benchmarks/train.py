"""How fast the model trains on simulated events: bare steps, and the whole loop beside them."""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.data_path import sharded_events
from iceaggr.batches.collation import collate
from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import BatchConfig, ExperimentConfig, load_config
from iceaggr.detector import icecube86
from iceaggr.events.reading import read_raw_events
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.interfaces import NullTracker
from iceaggr.models import build_model
from iceaggr.normalization_document import Normalization
from iceaggr.shards.manifest import ShardManifest, load_manifest
from iceaggr.signals import Interruption, TrainingInterruptedError
from iceaggr.storage import open_store
from iceaggr.training.device import LoadedBatch, Processes, choose_device, compile_for
from iceaggr.training.inputs import TrainingInputs, TrainingProgress
from iceaggr.training.keeper import RunState
from iceaggr.training.loop import Loop
from iceaggr.training.reporting import CurveWindow
from iceaggr.training.run import build_parts
from iceaggr.training.step import OptimiserStep, StepOutcome

# How much of the time a GPU computes, from the profile of its kernels.

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


# `iceaggr bench train`: bare steps, then all of the above.

BACKWARD_FACTOR = 3.0
"""Forward and backward cost three forward passes; recomputed activations do not count as work."""
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
MAX_SECONDS = 20.0
MAX_STEPS = {"cpu": 20, "cuda": 200}
N_BATCHES = {"cpu": 1, "cuda": 4}
"""Batches taken in turn: a GPU must show that no step depends on the shapes of the last one."""
N_WARM_UP = {"cpu": 1, "cuda": 8}
SEED = 77


def bench_train(config_path: str | Path | None = None) -> dict[str, Any]:
    """Time training steps of a configuration, batches in memory, and the loop around them.

    config_path: a YAML configuration; None takes the defaults, which are the baseline's network.
    Returns, of forward, loss, backward and optimiser step on batches that lie on the device:
    events_per_s, model_tflops_per_s, matmul_tflops_per_s (the peak, measured in the same run),
    share_of_matmul_peak, peak_memory_gib (of the process, or of the GPU) and what was run; on a GPU
    step_gpu_busy_share, the share of the time in which it computes. Of the whole loop, which reads
    shards: what `bench_loop` gives, gpu_busy_share among it.
    Raises: ConfigError.
    """
    config = load_config(config_path) if config_path else ExperimentConfig()
    device = choose_device(config.training)
    batches = [one.to(device) for one in simulated_batches(config.batches, N_BATCHES[device.type])]
    torch.manual_seed(config.training.seed)
    model = build_model(config.model, Normalization.seed()).train()
    compile_for(model, device, config.training)
    stepper = OptimiserStep(model, config, device, Processes())
    steps = _Steps(stepper, batches, device)
    warm_up_s = steps.warm_up()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    n_steps, seconds = steps.timed()
    peak = matmul_tflops_per_s(device)
    flops = sum(model.n_flops(batch) for batch in batches) / len(batches)
    achieved = BACKWARD_FACTOR * flops * n_steps / seconds / 1e12
    n_events = sum(batch.n_events for batch in batches) / len(batches)
    measured = {
        "config": config.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "n_threads": torch.get_num_threads(),
        "n_parameters": model.n_parameters(),
        **_sizes(batches),
        "n_steps": n_steps,
        "warm_up_s": warm_up_s,
        "events_per_s": n_steps * n_events / seconds,
        "model_tflops_per_s": achieved,
        "matmul_tflops_per_s": peak,
        "share_of_matmul_peak": achieved / peak,
        "peak_memory_gib": _peak_memory_gib(device),
    }
    if device.type == "cuda":
        measured["step_gpu_busy_share"] = busy_share(steps.take, N_PROFILED_STEPS, device)
    return measured | bench_loop(config, device, step_s=seconds / n_steps)


def _sizes(batches: list[EventBatch]) -> dict[str, float]:
    n_events = sum(batch.n_events for batch in batches)
    return {
        "n_events_per_batch": n_events / len(batches),
        "n_doms_per_event": sum(batch.n_doms for batch in batches) / n_events,
        "n_pulses_per_event": sum(batch.n_pulses for batch in batches) / n_events,
    }


def simulated_batches(config: BatchConfig, n_batches: int) -> list[EventBatch]:
    """Simulate labelled minibatches of the configured size and caps."""
    n_events = config.n_events * n_batches
    with tempfile.TemporaryDirectory(prefix="iceaggr-bench-") as folder:
        store, uri = open_store(), f"{Path(folder).resolve().as_uri()}/raw"
        simulation = SimulationConfig(
            preset="easy",
            n_events=n_events,
            n_events_per_file=n_events,
            seed=SEED,
            n_processes=1,
        )
        simulate(store, uri, simulation)
        (events,) = read_raw_events(store, uri)
    rows = np.arange(events.n_events).reshape(n_batches, -1)
    return [collate(events, one, icecube86(), config) for one in rows]


@dataclass
class _Steps:
    """Steps over batches in turn. The features are computed within: nothing overlaps."""

    stepper: OptimiserStep
    batches: list[EventBatch]
    device: torch.device
    n_taken: int = 0

    def take(self) -> None:
        """Take one step."""
        batch = self.batches[self.n_taken % len(self.batches)]
        self.n_taken += 1
        rate = self.stepper.config.training.learning_rate
        loaded = LoadedBatch(batch, batch, {})
        self.stepper.take(loaded, self.n_taken, 0.5, rate, batch.n_events)

    def warm_up(self) -> float:
        """Take the steps that compile and allocate; give their seconds."""
        began = time.perf_counter()
        for _ in range(N_WARM_UP[self.device.type]):
            self.take()
        wait_for(self.device)
        return time.perf_counter() - began

    def timed(self) -> tuple[int, float]:
        """Count and time steps; a GPU is waited for at the end only."""
        began, n_steps = time.perf_counter(), 0
        while n_steps < MAX_STEPS[self.device.type] and time.perf_counter() - began < MAX_SECONDS:
            self.take()
            n_steps += 1
        wait_for(self.device)
        return n_steps, time.perf_counter() - began


def matmul_tflops_per_s(device: torch.device) -> float:
    """Measure the best rate of a square matrix product, float32 on a CPU, bfloat16 on a GPU."""
    size = MATMUL_SIZE.get(device.type, 1024)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        wait_for(device)
        began = time.perf_counter()
        for _ in range(4):
            left @ right
        wait_for(device)
        best = min(best, (time.perf_counter() - began) / 4)
    return 2 * size**3 / best / 1e12


def _peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
