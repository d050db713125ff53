"""Evaluation: held-out events in; metrics, tables, figures and one HTML report out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import EvaluationConfig
from iceaggr.detector import Detector, icecube86
from iceaggr.evaluation.baselines import CLASSICAL_FITS, TITLES
from iceaggr.evaluation.calibration import risk_coverage
from iceaggr.evaluation.confidence_plots import draw_calibration, draw_risk_coverage
from iceaggr.evaluation.cumulative_plots import draw_cumulative, draw_cumulative_by_topology
from iceaggr.evaluation.event_display import EventSnapshot, draw_event
from iceaggr.evaluation.event_table import angles_of, join_truth
from iceaggr.evaluation.metrics import MethodSummary, flat_metrics, summarize_methods
from iceaggr.evaluation.plots import (
    draw_against_azimuth,
    draw_against_energy,
    draw_against_pulses,
    draw_against_zenith,
    draw_bias,
    draw_zenith_map,
)
from iceaggr.evaluation.report import MIN_EVENTS_DRAWN, ReportContext, render_report
from iceaggr.evaluation.scoring import ScoredEvents, score_events
from iceaggr.evaluation.slices import slice_table

ENERGY_UNITS = ((1.0, "GeV"), (1e3, "TeV"), (1e6, "PeV"), (1e9, "EeV"))


@dataclass(frozen=True)
class Evaluation:
    """Everything known about a model on its test events.

    events: one row per event; metrics: flat names for a tracker; slices: one row per bin;
    figures: name -> PNG; report_html: one self-contained page; summaries: the headline's rows.
    """

    events: pd.DataFrame
    metrics: dict[str, float]
    slices: pd.DataFrame
    figures: dict[str, bytes]
    report_html: str
    summaries: list[MethodSummary] = field(default_factory=list)

    def headline(self) -> list[MethodSummary]:
        """Give the model and each baseline with errors and paired gain, the model first."""
        return self.summaries


def evaluate(
    model: nn.Module,
    batches: Iterable[EventBatch],
    truth: pd.DataFrame | None,
    config: EvaluationConfig,
    on_progress: Callable[[int], None] | None = None,
    context: ReportContext | None = None,
) -> Evaluation:
    """Score a model and every baseline on the same labelled events.

    truth: simulated truth by event_id (see events.truth), None for real events.
    on_progress: called with the number of events scored so far.  context: what the report says
    about the run, and the detector of the displays.
    Raises: EvaluationError for unlabelled, repeated or no events, or non-finite predictions.
    """
    context = context or ReportContext()
    scored = score_events(model, batches, config, on_progress)
    events = join_truth(scored.events, truth)
    summaries = summarize_methods(events, config, scored.seconds_per_event, scored.failed_share)
    reference = best_classical(events)
    slices = slice_table(events, config, reference)
    figures = draw_figures(events, reference, config)
    displays = draw_displays(scored, events, context.detector)
    metrics = flat_metrics(events, summaries)
    report_html = render_report(
        context, events, config, {"summaries": summaries, "slices": slices, "reference": reference},
        figures | displays,
    )  # fmt: skip
    return Evaluation(events, metrics, slices, figures | displays, report_html, summaries)


def best_classical(events: pd.DataFrame) -> str:
    """Name the classical fit with the smallest mean opening angle on these events."""
    scored = [name for name in CLASSICAL_FITS if f"{name}_angle_deg" in events]
    return min(scored, key=lambda name: float(angles_of(events, name).mean()))


def draw_figures(
    events: pd.DataFrame, reference: str, config: EvaluationConfig
) -> dict[str, bytes]:
    """Draw every figure that these events allow: name -> PNG, in the order of the report."""
    methods = ["model", *(name for name in TITLES if f"{name}_angle_deg" in events)]
    min_events = min(config.min_events_per_bin, MIN_EVENTS_DRAWN)
    has_truth = {"energy_gev", "topology"} <= set(events.columns)
    figures = {"opening_angle_cumulative": draw_cumulative(events, methods)}
    if has_truth:
        figures["cumulative_by_topology"] = draw_cumulative_by_topology(events, methods)
        figures["angle_vs_energy"] = draw_against_energy(events, reference, min_events)
    curves = risk_coverage(events["opening_angle_deg"].to_numpy(), events["kappa"].to_numpy())
    return {
        **figures,
        "angle_vs_pulses": draw_against_pulses(events, reference, min_events),
        "angle_vs_zenith": draw_against_zenith(events, reference, min_events),
        "zenith_predicted_vs_true": draw_zenith_map(events),
        "bias_vs_zenith": draw_bias(events, min_events),
        "calibration": draw_calibration(events),
        "accuracy_vs_kept_share": draw_risk_coverage(curves),
        "angle_vs_azimuth": draw_against_azimuth(events, reference, min_events),
    }


def draw_displays(
    scored: ScoredEvents, events: pd.DataFrame, detector: Detector | None
) -> dict[str, bytes]:
    """Draw the chosen events: `event_best_1` and so on -> PNG."""
    rows = {int(row["event_id"]): row for row in _rows_of(scored.displays, events)}
    drawn: dict[str, bytes] = {}
    count: dict[str, int] = {}
    for kind, event in scored.displays:
        count[kind] = count.get(kind, 0) + 1
        name = f"event_{kind.lower()}_{count[kind]}"
        note = f"{kind}{_true_nature(rows[event.event_id])}"
        drawn[name] = draw_event(event, detector or _detector_of(event), note)
    return drawn


def _rows_of(
    displays: list[tuple[str, EventSnapshot]], events: pd.DataFrame
) -> list[dict[Hashable, Any]]:
    shown = events["event_id"].isin([event.event_id for _, event in displays])
    return events[shown].to_dict("records")


def _true_nature(row: Mapping[Hashable, Any]) -> str:
    """Describe an event's simulated truth: `: track, 12 TeV`, or nothing when it is not known."""
    if not {"topology", "energy_gev"} <= set(row.keys()):
        return ""
    return f": {row['topology']}, {energy_words(float(row['energy_gev']))}"


def energy_words(energy_gev: float) -> str:
    """Write an energy with three digits in the unit that suits it: 96 GeV, 12.3 TeV, 1.96 PeV."""
    # 999.6 GeV has four digits left of the point once rounded, so it is written as 1 TeV
    unit_gev, unit = next(
        ((size, name) for size, name in ENERGY_UNITS if energy_gev < 999.5 * size), ENERGY_UNITS[-1]
    )
    return f"{energy_gev / unit_gev:.3g} {unit}"


def _detector_of(event: EventSnapshot) -> Detector:
    """Use the built-in detector where the event's DOMs are its own, else only the DOMs it has."""
    built_in = icecube86()
    known = {tuple(place) for place in built_in.xyz_m.astype(np.float32).tolist()}
    if all(tuple(place) in known for place in event.xyz_m.astype(np.float32).tolist()):
        return built_in
    n_sensors = len(event.xyz_m)
    return Detector(
        sensor_id=np.arange(n_sensors),
        xyz_m=event.xyz_m,
        string_id=np.full(n_sensors, -1),
        efficiency=np.ones(n_sensors),
        in_use=np.ones(n_sensors, bool),
    )
