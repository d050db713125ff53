"""`train`: the whole run, from a manifest to a saved model."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from iceaggr.batches import EventLoader
from iceaggr.errors import IceaggrError
from iceaggr.models import build_model
from iceaggr.models.bundle import save_model
from iceaggr.models.kappa_map import KappaMap
from iceaggr.models.normalizer import Normalizer
from iceaggr.paths import TrainingPaths
from iceaggr.signals import Interruption, TrainingInterruptedError
from iceaggr.training.checkpoint import CheckpointFolder
from iceaggr.training.device import (
    Processes,
    choose_device,
    compile_for,
    device_name,
    joined_processes,
)
from iceaggr.training.inputs import ProgressCallback, TrainingInputs, TrainingResult
from iceaggr.training.keeper import Keeper, RunState, fixed_threads, run_identity
from iceaggr.training.loop import Loop, LoopParts
from iceaggr.training.reporting import CurveWindow, Reporter
from iceaggr.training.step import OptimiserStep
from iceaggr.training.validation import NotLearningError, Validator, with_few_events

logger = logging.getLogger(__name__)


def train(
    inputs: TrainingInputs,
    on_progress: ProgressCallback | None = None,
    *,
    launched: bool = False,
) -> TrainingResult:
    """Train a model, or resume the run found in the output folder, and save it.

    A step-driven run (max_minutes 0) that was killed at any moment and resumed on a CPU of the same
    kind, with the same torch and as many cores, ends with the same weights, bit for bit: it goes on
    with as many threads as before. Where one of these differs it goes on, too, and says so in a
    warning and in the tag training/rounding_changed.
    on_progress: is called at each point of the curves
    launched: torchrun started this process with others, on this call's behalf; False trains alone,
    whatever RANK and WORLD_SIZE another job left in the environment
    Raises: TrainingInterruptedError after SIGTERM (exit code 75, the same call goes on);
    TrainingError on bad inputs, divergence, no learning, or a lost, foreign or damaged checkpoint.
    """
    settings = inputs.config.training
    use_gpu = settings.device != "cpu" and torch.cuda.is_available()
    with joined_processes(use_gpu, launched) as group:
        device = choose_device(settings, group.local_rank)
        _tell_place(inputs, group, device)
        parts = build_parts(inputs, group, device, on_progress)
        try:
            with Interruption() as interruption, fixed_threads():
                state = _resume(inputs, parts)
                if not state.is_finished:
                    Loop(parts, state, interruption).run()
                return _finish(inputs, parts, state)
        except IceaggrError as caught:
            error = caught
            if isinstance(caught, NotLearningError):
                error = with_few_events(caught, inputs.manifest.n_events("train"))
            if group.is_main:
                interrupted = isinstance(error, TrainingInterruptedError)
                status = "interrupted" if interrupted else "failed"
                inputs.tracker.set_tags({"training/status": status, "training/reason": str(error)})
            raise error from None


def _resume(inputs: TrainingInputs, parts: LoopParts) -> RunState:
    state = parts.keeper.restore()
    changes = parts.keeper.rounding_changes
    if changes and parts.processes.is_main:
        inputs.tracker.set_tags({"training/rounding_changed": "; ".join(changes)})
    return state


def _tell_place(inputs: TrainingInputs, processes: Processes, device: torch.device) -> None:
    if processes.is_main:
        name, n_processes = device_name(device), processes.world_size
        medium = inputs.detector.medium_words
        logger.info("this process is one of %d, on %s; light in %s", n_processes, name, medium)
        inputs.tracker.set_tags(
            {
                "training/device": name,
                "training/n_processes": str(n_processes),
                "training/medium": medium,
            }
        )


def build_parts(
    inputs: TrainingInputs,
    processes: Processes,
    device: torch.device,
    on_progress: ProgressCallback | None = None,
) -> LoopParts:
    """Build model, loaders and keepers; the same seed gives the same weights in every process."""
    config = inputs.config
    torch.manual_seed(config.training.seed)
    model = build_model(config.model, inputs.normalization)
    if inputs.start is not None:
        model.load_state_dict(dict(inputs.start.weights))
    model.inputs.remember_seeds()
    compile_for(model, device, config.training)
    step = OptimiserStep(model, config, device, processes)
    # from here on the random state serves dropout, which must differ between processes
    torch.manual_seed(config.training.seed + 1 + processes.rank)
    normalizer = Normalizer(inputs.normalization)
    folder = CheckpointFolder(inputs.store, inputs.output_uri, config.training.n_checkpoints_kept)
    return LoopParts(
        config=config,
        step=step,
        train_loader=_loader(inputs, "train", processes),
        normalizer=normalizer,
        validator=Validator(
            loader=_loader(inputs, "validation", processes),
            normalizer=normalizer,
            config=config,
            device=device,
            processes=processes,
            n_events=inputs.manifest.n_events("validation"),
        ),
        keeper=Keeper(folder, step, run_identity(inputs, processes.world_size), processes),
        reporter=Reporter(CurveWindow(device), config, processes, inputs.tracker, on_progress),
        processes=processes,
    )


def _loader(inputs: TrainingInputs, split: str, processes: Processes) -> EventLoader:
    return EventLoader(
        inputs.store,
        inputs.manifest,
        split,
        inputs.detector,
        inputs.config.batches,
        rank=processes.rank,
        world_size=processes.world_size,
    )


def _finish(inputs: TrainingInputs, parts: LoopParts, state: RunState) -> TrainingResult:
    model_uri = TrainingPaths(inputs.output_uri).model_uri
    best, last = state.best_validation_opening_angle_deg, state.last_validation_opening_angle_deg
    assert best is not None, "a run ends with a validation"
    assert last is not None, "a run ends with a validation"
    if parts.processes.is_main:
        with parts.step.best_weights() as model:
            model.kappa_map = state.kappa_map
            save_model(inputs.store, model_uri, model, inputs.geometry_csv, _facts(inputs, state))
        inputs.tracker.set_tags({"training/status": "finished", "training/stopped": state.stopped})
        if state.kappa_map is not None:
            _tell_factors(inputs, state.kappa_map)
    return TrainingResult(
        model_uri=model_uri,
        best_validation_opening_angle_deg=best,
        last_validation_opening_angle_deg=last,
        n_steps=state.step,
        n_events_seen=state.n_events_seen,
        stopped=state.stopped,
        minutes=state.elapsed_s / 60,
        device=device_name(parts.step.device),
        n_processes=parts.processes.world_size,
    )


def _tell_factors(inputs: TrainingInputs, kappa_map: KappaMap) -> None:
    factors = np.exp(kappa_map.log_factor)
    words = f"{factors.min():.2f} to {factors.max():.2f}"
    logger.info("kappa is multiplied by %s, as the validation events ask", words)
    inputs.tracker.set_tags({"training/kappa_factors": words})


def _facts(inputs: TrainingInputs, state: RunState) -> dict[str, Any]:
    return {
        "experiment": inputs.config.model_dump(mode="json"),
        "manifest_digest": inputs.manifest.digest(),
        "official_split": inputs.manifest.official_split,
        "started_from": inputs.start.name if inputs.start else "scratch",
        "tracking_run_id": inputs.tracker.run_id,
        "n_steps": state.step,
        "n_events_seen": state.n_events_seen,
        "stopped": state.stopped,
        "metrics": state.metrics,
    }
