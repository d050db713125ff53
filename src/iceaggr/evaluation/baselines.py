"""Baselines: what must be beaten, scored on the very same events; and what refinement adds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from iceaggr.angles import best_constant_direction, opening_angle
from iceaggr.batches.collation import collate, join_batches, select_events
from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import EvaluationConfig
from iceaggr.detector import Detector
from iceaggr.evaluation.event_table import directions, true_direction
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.simulation.ice import site_of
from iceaggr.reconstruction import (
    FitResult,
    ensemble_fit,
    improved_line_fit,
    likelihood_fit,
    line_fit,
    tensor_of_inertia,
)
from iceaggr.reconstruction.photon_likelihood import sums
from iceaggr.reconstruction.refinement import (
    MIN_CHARGE_PE,
    NAMES,
    WHOLE,
    refine,
    triggering_charge_pe,
)
from iceaggr.shards.split import mixed_bits

Fit = Callable[[EventBatch], FitResult]
"""A classical reconstruction; where the hits fix no direction it says so and gives a fallback."""

CLASSICAL_FITS: dict[str, Fit] = {
    "line_fit": line_fit,
    "improved_line_fit": improved_line_fit,
    "tensor_of_inertia": tensor_of_inertia,
    "ensemble_fit": ensemble_fit,
    "likelihood_fit": likelihood_fit,
}
"""The classical reconstructions by the names used in metrics."""

TITLES = {
    "model": "This model",
    "random": "Random direction",
    "constant": "Best constant direction",
    "line_fit": "Line fit",
    "improved_line_fit": "Improved line fit",
    "tensor_of_inertia": "Tensor of inertia",
    "ensemble_fit": "Hit cleaning, ensemble of fits",
    "likelihood_fit": "Pandel likelihood fit",
}
"""How each method is called in tables and figures, in their order."""


def chosen_fits(config: EvaluationConfig) -> dict[str, Fit]:
    """List the classical fits that the configuration asks for."""
    skipped = () if config.likelihood_fit else ("likelihood_fit",)
    return {name: fit for name, fit in CLASSICAL_FITS.items() if name not in skipped}


@dataclass
class BaselineTimer:
    """Runs the classical fits on minibatches; adds up their time and their failures."""

    fits: dict[str, Fit]
    seconds: dict[str, float] = field(default_factory=dict)
    n_failed: dict[str, int] = field(default_factory=dict)

    def angles_deg(self, batch: EventBatch) -> dict[str, npt.NDArray[np.float64]]:
        """Measure each fit's opening angles: name -> (B,) float64 degrees.

        Events that a fit cannot reconstruct keep its fallback direction and are counted.
        """
        return {name: self._angle_deg(name, fit, batch) for name, fit in self.fits.items()}

    def _angle_deg(self, name: str, fit: Fit, batch: EventBatch) -> npt.NDArray[np.float64]:
        started = time.perf_counter()
        with torch.inference_mode():
            result = fit(batch)
            direction = result.direction.to("cpu", torch.float64)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.n_failed[name] = self.n_failed.get(name, 0) + result.n_failed
        direction = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
        return torch.rad2deg(opening_angle(direction, true_direction(batch))).numpy()


def random_angles_deg(true: Tensor, seed: int) -> npt.NDArray[np.float64]:
    """Measure the angles of isotropic random directions.

    true: (N, 3) float64 unit vectors. Returns (N,) degrees, the same for the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    guess = torch.randn(true.shape, generator=generator, dtype=torch.float64)
    guess = guess / torch.linalg.vector_norm(guess, dim=-1, keepdim=True)
    return torch.rad2deg(opening_angle(guess, true)).numpy()


def constant_angles_deg(true: Tensor) -> npt.NDArray[np.float64]:
    """Measure the angles of the best constant direction: (N,) degrees.

    The direction is chosen on these same events, which favours the baseline.
    """
    best = best_constant_direction(true)
    return torch.rad2deg(opening_angle(best.expand_as(true), true)).numpy()


# Refinement: not a baseline but the model's own answer, taken further on bright events.

SALT = "refined"
"""Of the choice of events: another one than that of the split."""


@dataclass(frozen=True)
class RefinedSample:
    """Bright test events, with the model's answer and the refined one.

    events: rows of the event table with triggering_charge_pe, refined_angle_deg, refined_kappa and
    refined_as (a hypothesis), in the order of their choice.
    n_bright: of all test events that were looked at, n_events.  seconds: of one core, for all
    min_charge_pe: of a bright event, as pays in the medium
    """

    events: pd.DataFrame
    n_bright: int
    n_events: int
    seconds: float
    min_charge_pe: float
    medium: str


def refine_sample(
    chunks: Iterable[DomEvents], events: pd.DataFrame, n_refined: int, detector: Detector
) -> RefinedSample:
    """Refine the predictions of up to n_refined of the bright events.

    chunks: with all scored events.  events: the table of predictions with true directions.
    A hash of event_id chooses, whatever the model says and in whatever order events come, so that
    models are compared on the same events.
    """
    medium = detector.medium.name
    threshold_pe = MIN_CHARGE_PE[medium]
    chosen, n_bright = _bright_events(chunks, events, n_refined, threshold_pe)
    rows = events.set_index("event_id").loc[[int(one.event_id[0]) for one in chosen]].reset_index()
    if not chosen:
        return RefinedSample(rows, 0, len(events), 0.0, threshold_pe, medium)
    began = time.process_time()
    batch = join_batches([collate(one, np.zeros(1, np.int64), detector, WHOLE) for one in chosen])
    direction = directions(rows, "azimuth", "zenith").numpy()
    found = refine(batch, site_of(detector), direction, rows["kappa"].to_numpy(np.float64))
    seconds = time.process_time() - began
    true = directions(rows, "true_azimuth", "true_zenith")
    angle = opening_angle(torch.from_numpy(found.direction), true)
    rows = rows.assign(
        triggering_charge_pe=triggering_charge_pe(batch),
        refined_angle_deg=torch.rad2deg(angle).numpy(),
        refined_kappa=found.kappa,
        refined_as=np.array(NAMES)[found.hypothesis],
    )
    return RefinedSample(rows, n_bright, len(events), seconds, threshold_pe, medium)


def _bright_events(
    chunks: Iterable[DomEvents], events: pd.DataFrame, n_chosen: int, min_charge_pe: float
) -> tuple[list[DomEvents], int]:
    """Keep the bright events of the smallest hashes, one by one, and count all bright ones."""
    scored = events["event_id"].to_numpy()
    kept: list[tuple[int, DomEvents]] = []
    n_bright = 0
    for chunk in chunks:
        rows = np.flatnonzero(np.isin(chunk.event_id, scored))
        if not len(rows):
            continue
        rows = rows[_triggering_charge_pe(chunk)[rows] >= min_charge_pe]
        n_bright += len(rows)
        lot = mixed_bits(chunk.event_id[rows], SALT)
        for place in np.argsort(lot)[:n_chosen]:
            kept.append((int(lot[place]), select_events(chunk, rows[place : place + 1])))
        kept = sorted(kept, key=lambda one: one[0])[:n_chosen]
    return [event for _, event in kept], n_bright


def _triggering_charge_pe(chunk: DomEvents) -> npt.NDArray[np.float64]:
    """Add up each event's charge that is not auxiliary, as `triggering_charge_pe` does: (B,) p.e.

    From the chunk itself: a minibatch of every event, made for this sum alone, costs more than it.
    """
    charge = np.where(chunk.auxiliary, 0.0, chunk.charge_pe.astype(np.float32))
    event = np.repeat(np.arange(chunk.n_events), np.diff(chunk.event_pulse_offsets()))
    return sums(charge, event, chunk.n_events)
