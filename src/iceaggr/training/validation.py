"""Validation: the same bounded set of held-out events each time, beside the best constant."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iceaggr.angles import opening_angle
from iceaggr.config import ExperimentConfig
from iceaggr.errors import TrainingError
from iceaggr.losses import direction_loss
from iceaggr.training.device import autocast, placed, positioned
from iceaggr.training.distributed import Processes
from iceaggr.training.guards import check_batch
from iceaggr.training.inputs import BatchSource

N_CONSTANTS = 300
"""Directions tried for the best constant prediction: a grid of about 12 degrees."""


@dataclass(frozen=True)
class ValidationResult:
    """Scores on the validation events, angles in degrees.

    opening_angle_deg, median_opening_angle_deg: of the model
    constant_opening_angle_deg: mean of the best constant direction on the same events
    gain_deg, gain_error_deg: constant minus model, event by event: mean and its standard error
    mean_vector_length: length of the mean predicted unit vector; 1 = always the same direction
    mean_z, true_mean_z: mean z of the predicted and the true unit vectors
    """

    n_events: int
    loss: float
    opening_angle_deg: float
    median_opening_angle_deg: float
    constant_opening_angle_deg: float
    gain_deg: float
    gain_error_deg: float
    mean_vector_length: float
    mean_z: float
    true_mean_z: float
    seconds: float

    def metrics(self) -> dict[str, float]:
        """Name the scores as points of curves."""
        return {f"validation/{name}": float(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Validator:
    """Runs the model over the validation events.

    loader: batches of the validation split of this process
    n_events: events of the whole split; each process stops after the batch that completes its share
        of max_validation_events
    """

    loader: BatchSource
    normalizer: nn.Module
    config: ExperimentConfig
    device: torch.device
    processes: Processes
    n_events: int

    @property
    def n_events_planned(self) -> int:
        """Count the events that a validation reads at least, over all processes."""
        return min(self.n_events, self.config.training.max_validation_events)

    def run(
        self, model: nn.Module, progress: float, interrupted: Callable[[], bool]
    ) -> ValidationResult | None:
        """Score the model; None if the run was asked to stop meanwhile.

        Raises: TrainingError if there is no validation event or an input is bad.
        """
        started = time.monotonic()
        was_training = model.training
        model.eval()
        with torch.no_grad():
            parts = self._collect(model, progress, interrupted)
        model.train(was_training)
        if self.processes.any(interrupted()):
            return None
        # cat per name over all processes: a process may have had nothing
        everyone = [part for own in self.processes.gather_objects(parts) for part in own]
        if not everyone:
            raise TrainingError(
                "the validation split is empty",
                where="manifest",
                found="0 events",
                expected="at least one batch",
                remedy="Use more events or a larger data.validation_share",
            )
        predicted, true, loss = (torch.cat(tensors) for tensors in zip(*everyone, strict=True))
        return _score(predicted, true, loss, time.monotonic() - started)

    def _collect(
        self, model: nn.Module, progress: float, interrupted: Callable[[], bool]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        limit = math.ceil(self.config.training.max_validation_events / self.processes.world_size)
        parts = []
        n_events = 0
        # epoch 0 whatever the epoch of training: always the same events in the same order
        with closing(positioned(self.loader, 0)) as batches:
            for loaded in placed(batches, self.device):
                if loaded.host.n_events == 0:
                    continue
                batch = loaded.placed
                check_batch(loaded.host, self.normalizer, self.config.normalization, "validation")
                assert batch.direction is not None, "check_batch lets only labelled events pass"
                with autocast(self.device, self.config.training):
                    output = model(batch)
                    loss = direction_loss(output, batch.direction, self.config.loss, progress)
                parts.append(
                    (output.direction.float().cpu(), batch.direction.cpu(), loss.float().cpu())
                )
                n_events += batch.n_events
                if n_events >= limit or interrupted():
                    break
        return parts


def _score(predicted: Tensor, true: Tensor, loss: Tensor, seconds: float) -> ValidationResult:
    angle = opening_angle(predicted.double(), true.double())
    constant = opening_angle(best_constant(true.double()).expand_as(true), true.double())
    gain = torch.rad2deg(constant - angle)
    n_events = len(angle)
    mean_vector = predicted.double().mean(dim=0)
    return ValidationResult(
        n_events=n_events,
        loss=float(loss.double().mean()),
        opening_angle_deg=float(torch.rad2deg(angle.mean())),
        median_opening_angle_deg=float(torch.rad2deg(angle.median())),
        constant_opening_angle_deg=float(torch.rad2deg(constant.mean())),
        gain_deg=float(gain.mean()),
        gain_error_deg=float(gain.std() / math.sqrt(n_events)) if n_events > 1 else math.inf,
        mean_vector_length=float(mean_vector.norm()),
        mean_z=float(mean_vector[2]),
        true_mean_z=float(true[:, 2].double().mean()),
        seconds=seconds,
    )


def best_constant(true: Tensor) -> Tensor:
    """Find the constant direction of the smallest mean opening angle, on a spherical grid.

    true: (B, 3) unit vectors. Returns (3,) in the dtype of the input.
    Source: Fibonacci lattice, A. Gonzalez, Math. Geosci. 42 (2010) 49.
    """
    row = torch.arange(N_CONSTANTS, dtype=true.dtype)
    z = 1 - (2 * row + 1) / N_CONSTANTS
    turn = row * math.pi * (3 - math.sqrt(5))
    radius = (1 - z**2).sqrt()
    grid = torch.stack([radius * turn.cos(), radius * turn.sin(), z], dim=-1)
    total = torch.zeros(N_CONSTANTS, dtype=true.dtype)
    for chunk in true.split(4096):
        total += torch.acos((chunk @ grid.T).clamp(-1, 1)).sum(dim=0)
    return grid[total.argmin()]
