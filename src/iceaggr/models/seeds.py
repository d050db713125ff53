"""Seeds: the classical fits that a model starts from, each computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import ModelConfig
from iceaggr.reconstruction.fit_result import FitResult
from iceaggr.reconstruction.inertia import tensor_of_inertia
from iceaggr.reconstruction.line_fit import improved_line_fit, line_fit
from iceaggr.reconstruction.sensor_order import in_sensor_order
from iceaggr.reconstruction.track_likelihood import centred_hits, fit_point, fit_track


@dataclass(frozen=True)
class Seeds:
    """What the classical fits say of each event.

    fit: the seed itself.  alternatives: (B, K, 3) float32, directions of the other fits, K may
    be 0.  point_m: (B, 3) float32, fitted point of light or charge centre
    """

    fit: FitResult
    alternatives: Tensor
    point_m: Tensor


def n_alternatives(config: ModelConfig) -> int:
    """Count the fits beside the seed (K)."""
    if not config.seed_alternatives:
        return 0
    return 3 if config.seed == "likelihood" else 2


def find_seeds(batch: EventBatch, config: ModelConfig) -> Seeds:
    """Run the fits that the configuration asks for, and no others, on DOMs in one order."""
    batch = in_sensor_order(batch)
    fits: dict[str, FitResult] = {}
    needs_all = config.seed_alternatives or config.seed == "likelihood"
    if needs_all or config.seed == "line_fit":
        fits["line_fit"] = line_fit(batch)
    if needs_all or config.seed == "improved":
        fits["improved"] = improved_line_fit(batch, plain=fits.get("line_fit"))
    if needs_all:
        fits["inertia"] = tensor_of_inertia(batch)
    centred = centred_hits(batch)
    if config.seed == "likelihood":
        others = [fits["line_fit"], fits["inertia"]]
        fits["likelihood"] = fit_track(centred, fits["improved"], others)
    chosen = fits.pop(config.seed)
    alternatives = chosen.direction.new_zeros(batch.n_events, 0, 3)
    if config.seed_alternatives:
        alternatives = torch.stack([fit.direction for fit in fits.values()], dim=1)
    point = fit_point(centred) if config.point_fit else centred.centre_m
    return Seeds(chosen, alternatives, point)
