"""How fast the model trains: forward, loss, backward and optimiser step on simulated events."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iceaggr.batches.collation import collate
from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import BatchConfig, ExperimentConfig, load_config
from iceaggr.detector import icecube86
from iceaggr.events.reading import read_raw_events
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.models import build_model
from iceaggr.normalization import Normalization
from iceaggr.storage import open_store
from iceaggr.training.device import LoadedBatch, choose_device
from iceaggr.training.distributed import Processes
from iceaggr.training.step import OptimiserStep

BACKWARD_FACTOR = 3.0
"""Forward and backward cost three forward passes; recomputed activations do not count as work."""
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
MAX_SECONDS = 20.0
MAX_STEPS = 20
SEED = 77


def bench_train(config_path: str | Path | None = None) -> dict[str, Any]:
    """Time training steps of a configuration on simulated events, batches in memory.

    config_path: a YAML configuration; None takes the defaults, which are the baseline's network.
    Returns events_per_s, model_tflops_per_s, matmul_tflops_per_s (the peak, measured in the same
    run), share_of_matmul_peak, peak_memory_gib (of the process, or of the GPU), and what was run.
    Raises: ConfigError.
    """
    config = load_config(config_path) if config_path else ExperimentConfig()
    device = choose_device(config.training)
    batch = simulated_batch(config.batches).to(device)
    torch.manual_seed(config.training.seed)
    model = build_model(config.model, Normalization.seed()).train()
    stepper = OptimiserStep(model, config, device, Processes())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    n_steps, seconds = _time_steps(stepper, batch, device)
    peak = matmul_tflops_per_s(device)
    achieved = BACKWARD_FACTOR * model.n_flops(batch) * n_steps / seconds / 1e12
    return {
        "config": config.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "n_threads": torch.get_num_threads(),
        "n_parameters": model.n_parameters(),
        "n_events_per_batch": batch.n_events,
        "n_doms_per_event": batch.n_doms / batch.n_events,
        "n_pulses_per_event": batch.n_pulses / batch.n_events,
        "n_steps": n_steps,
        "events_per_s": n_steps * batch.n_events / seconds,
        "model_tflops_per_s": achieved,
        "matmul_tflops_per_s": peak,
        "share_of_matmul_peak": achieved / peak,
        "peak_memory_gib": _peak_memory_gib(device),
    }


def simulated_batch(config: BatchConfig) -> EventBatch:
    """Simulate one labelled minibatch of the configured size and caps."""
    with tempfile.TemporaryDirectory(prefix="iceaggr-bench-") as folder:
        store, uri = open_store(), f"{Path(folder).resolve().as_uri()}/raw"
        simulate(
            store,
            uri,
            SimulationConfig(
                n_events=config.n_events,
                n_events_per_file=config.n_events,
                seed=SEED,
                n_processes=1,
            ),
        )
        (events,) = read_raw_events(store, uri)
    return collate(events, np.arange(events.n_events), icecube86(), config)


def _time_steps(
    stepper: OptimiserStep, batch: EventBatch, device: torch.device
) -> tuple[int, float]:
    """Count and time steps after one to warm up."""
    rate = stepper.config.training.learning_rate
    # the features are computed within the step: this measures the work, not what overlaps
    loaded = LoadedBatch(batch, batch, {})
    stepper.take(loaded, 1, 0.0, rate, batch.n_events)
    _wait_for(device)
    began, n_steps = time.perf_counter(), 0
    while n_steps < MAX_STEPS and time.perf_counter() - began < MAX_SECONDS:
        stepper.take(loaded, n_steps + 2, 0.5, rate, batch.n_events)
        _wait_for(device)
        n_steps += 1
    return n_steps, time.perf_counter() - began


def matmul_tflops_per_s(device: torch.device) -> float:
    """Measure the best rate of a square matrix product, float32 on a CPU, bfloat16 on a GPU."""
    size = MATMUL_SIZE.get(device.type, 1024)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        _wait_for(device)
        began = time.perf_counter()
        for _ in range(4):
            left @ right
        _wait_for(device)
        best = min(best, (time.perf_counter() - began) / 4)
    return 2 * size**3 / best / 1e12


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
