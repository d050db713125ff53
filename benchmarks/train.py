"""How fast the model trains on simulated events: bare steps, and the whole loop beside them."""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.training_loop import N_PROFILED_STEPS, bench_loop, busy_share, wait_for
from iceaggr.batches.collation import collate
from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import BatchConfig, ExperimentConfig, load_config
from iceaggr.detector import icecube86
from iceaggr.events.reading import read_raw_events
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.models import build_model
from iceaggr.normalization_document import Normalization
from iceaggr.storage import open_store
from iceaggr.training.device import LoadedBatch, Processes, choose_device, compile_for
from iceaggr.training.step import OptimiserStep

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
    n_events = sum(batch.n_events for batch in batches)
    measured = {
        "config": config.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "n_threads": torch.get_num_threads(),
        "n_parameters": model.n_parameters(),
        "n_events_per_batch": n_events / len(batches),
        "n_doms_per_event": sum(batch.n_doms for batch in batches) / n_events,
        "n_pulses_per_event": sum(batch.n_pulses for batch in batches) / n_events,
        "n_steps": n_steps,
        "warm_up_s": warm_up_s,
        "events_per_s": n_steps * n_events / len(batches) / seconds,
        "model_tflops_per_s": achieved,
        "matmul_tflops_per_s": peak,
        "share_of_matmul_peak": achieved / peak,
        "peak_memory_gib": _peak_memory_gib(device),
    }
    if device.type == "cuda":
        measured["step_gpu_busy_share"] = busy_share(steps.take, N_PROFILED_STEPS, device)
    return measured | bench_loop(config, device, step_s=seconds / n_steps)


def simulated_batches(config: BatchConfig, n_batches: int) -> list[EventBatch]:
    """Simulate labelled minibatches of the configured size and caps."""
    n_events = config.n_events * n_batches
    with tempfile.TemporaryDirectory(prefix="iceaggr-bench-") as folder:
        store, uri = open_store(), f"{Path(folder).resolve().as_uri()}/raw"
        simulation = SimulationConfig(
            n_events=n_events, n_events_per_file=n_events, seed=SEED, n_processes=1
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
