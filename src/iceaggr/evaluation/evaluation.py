"""Evaluation: held-out events in; metrics, tables, figures and one HTML report out."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from iceaggr.batches.event_batch import EventBatch
from iceaggr.built_in_detectors import built_in_detector, names_around
from iceaggr.config import EvaluationConfig
from iceaggr.detector import Detector
from iceaggr.evaluation.baselines import (
    CLASSICAL_FITS,
    TITLES,
    BaselineTimer,
    RefinedSample,
    chosen_fits,
    constant_angles_deg,
    random_angles_deg,
    refine_sample,
)
from iceaggr.evaluation.calibration import risk_coverage
from iceaggr.evaluation.event_display import EventSnapshot, draw_event, snapshot
from iceaggr.evaluation.event_table import (
    Columns,
    angles_of,
    concatenate,
    directions,
    join_truth,
    measured,
    predict_batch,
    score_batch,
    true_direction,
)
from iceaggr.evaluation.metrics import (
    MethodSummary,
    flat_metrics,
    refined_metrics,
    refined_table,
    summarize_methods,
)
from iceaggr.evaluation.plots import (
    draw_against_azimuth,
    draw_against_energy,
    draw_against_pulses,
    draw_against_zenith,
    draw_bias,
    draw_calibration,
    draw_cumulative,
    draw_cumulative_by_topology,
    draw_risk_coverage,
    draw_within_against_energy,
    draw_zenith_map,
)
from iceaggr.evaluation.published import benchmark_metrics, benchmark_table, has_benchmark
from iceaggr.evaluation.report import MIN_EVENTS_DRAWN, ReportContext, render_report
from iceaggr.evaluation.slices import slice_table
from iceaggr.events.dom_events import DomEvents

# Scoring: one pass over the test events with the model and every baseline.

N_SPARE_SNAPSHOTS = 128
"""Events drawn at random while scoring, among which the median displays are found."""


@dataclass(frozen=True)
class ScoredEvents:
    """The result of one pass over the test events.

    events: one row per event, sorted by event_id, with <baseline>_angle_deg for every baseline.
    seconds_per_event: of the model and the classical fits; failed_share: of events that
    a fit could not reconstruct; displays: (`Best` | `Median` | `Worst`, event) in this order.
    """

    events: pd.DataFrame
    seconds_per_event: dict[str, float]
    failed_share: dict[str, float]
    displays: list[tuple[str, EventSnapshot]]


def score_events(
    model: nn.Module,
    batches: Iterable[EventBatch],
    config: EvaluationConfig,
    on_progress: Callable[[int], None] | None = None,
) -> ScoredEvents:
    """Run the model and the classical fits on labelled events, once.

    on_progress: called with the number of events scored so far after each minibatch.
    Raises: EvaluationError for unlabelled, repeated or no events and non-finite predictions.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    timer, gallery = BaselineTimer(chosen_fits(config)), Gallery(config.n_displays, config.seed)
    parts: list[Columns] = []
    n_scored, model_seconds = 0, 0.0
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            started = time.perf_counter()
            predictions = predict_batch(model, batch, device)
            model_seconds += time.perf_counter() - started
            columns = score_batch(batch, predictions)
            gallery.offer(batch, columns, predictions.direction.numpy())
            fits = timer.angles_deg(batch)
            parts.append({**columns, **{f"{name}_angle_deg": fits[name] for name in fits}})
            n_scored += batch.n_events
            if on_progress is not None:
                on_progress(n_scored)
            if config.max_events and n_scored >= config.max_events:
                break
    finally:
        model.train(was_training)
    events = concatenate(parts)
    # from the columns of the table, so that whoever reads the table finds the same figures
    events = measured(events, directions(events, "azimuth", "zenith"))
    events = add_guesses(events, config.seed)
    seconds = {"model": model_seconds, **timer.seconds}
    return ScoredEvents(
        events=events,
        seconds_per_event={name: spent / n_scored for name, spent in seconds.items()},
        failed_share={name: failed / n_scored for name, failed in timer.n_failed.items()},
        displays=gallery.choose(float(events["opening_angle_deg"].median())),
    )


class Gallery:
    """Keeps the few events worth a display while events stream by, in bounded memory."""

    def __init__(self, n_each: int, seed: int) -> None:
        self._n_each = n_each
        self._rng = np.random.default_rng(seed)
        self._n_seen = 0
        self._best: list[EventSnapshot] = []
        self._worst: list[EventSnapshot] = []
        self._spare: list[EventSnapshot] = []

    def offer(
        self, batch: EventBatch, columns: Columns, predicted: npt.NDArray[np.float64]
    ) -> None:
        """Look at a scored minibatch; predicted: (B, 3) unit vectors."""
        if not self._n_each:
            return
        angle_deg, kappa = columns["opening_angle_deg"], columns["kappa"]
        true = true_direction(batch).numpy()

        def take(row: int) -> EventSnapshot:
            taken = snapshot(batch, row, true[row], predicted[row])
            return replace(taken, angle_deg=float(angle_deg[row]), kappa=float(kappa[row]))

        order = np.argsort(angle_deg, kind="stable")
        best = [take(int(row)) for row in order[: self._n_each]]
        worst = [take(int(row)) for row in order[::-1][: self._n_each]]
        self._best = sorted([*self._best, *best], key=_by_angle)[: self._n_each]
        self._worst = sorted([*self._worst, *worst], key=_by_angle)[-self._n_each :]
        self._sample(take, batch.n_events)

    def choose(self, median_deg: float) -> list[tuple[str, EventSnapshot]]:
        """Name the best, the median and the worst events seen."""
        spare = sorted(self._spare, key=lambda event: abs(event.angle_deg - median_deg))
        median = [("Median", event) for event in spare[: self._n_each]]
        best = [("Best", event) for event in self._best]
        return [*best, *median, *(("Worst", event) for event in reversed(self._worst))]

    def _sample(self, take: Callable[[int], EventSnapshot], n_events: int) -> None:
        """Keep a uniform sample of all events so far (reservoir sampling)."""
        place = self._n_seen + np.arange(n_events)
        lot = (self._rng.random(n_events) * (place + 1)).astype(np.int64)
        for row in np.flatnonzero(lot < N_SPARE_SNAPSHOTS):
            if len(self._spare) < N_SPARE_SNAPSHOTS:
                self._spare.append(take(int(row)))
            else:
                self._spare[lot[row]] = take(int(row))
        self._n_seen += n_events


def _by_angle(event: EventSnapshot) -> float:
    return event.angle_deg


def add_guesses(events: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Add the angles of a random direction and of the best constant one, degrees."""
    true = directions(events, "true_azimuth", "true_zenith")
    return events.assign(
        random_angle_deg=random_angles_deg(true, seed),
        constant_angle_deg=constant_angles_deg(true),
    )


ENERGY_UNITS = ((1.0, "GeV"), (1e3, "TeV"), (1e6, "PeV"), (1e9, "EeV"))


@dataclass(frozen=True)
class Evaluation:
    """Everything known about a model on its test events.

    events: one row per event; metrics: flat names for a tracker; slices: one row per bin;
    figures: name -> PNG; report_html: one self-contained page; summaries: the headline's rows.
    benchmark: one row per current, energies and method (`benchmark_table`), empty without truth.
    refined: what refinement adds on bright events (`refined_table`), empty where it was not asked
    for or no event is bright; sample: these events one by one.
    """

    events: pd.DataFrame
    metrics: dict[str, float]
    slices: pd.DataFrame
    figures: dict[str, bytes]
    report_html: str
    summaries: list[MethodSummary] = field(default_factory=list)
    benchmark: pd.DataFrame = field(default_factory=pd.DataFrame)
    refined: pd.DataFrame = field(default_factory=pd.DataFrame)
    sample: RefinedSample | None = None

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
    chunks: Iterable[DomEvents] = (),
) -> Evaluation:
    """Score a model and every baseline on the same labelled events.

    truth: simulated truth by event_id (see events.truth), None for real events.
    on_progress: called with the number of events scored so far.  context: what the report says
    about the run, and the detector of the displays.
    chunks: the same events with all their DOMs, of which `refine_events` bright ones are refined
    Raises: EvaluationError for unlabelled, repeated or no events, or non-finite predictions.
    """
    context = context or ReportContext()
    scored = score_events(model, batches, config, on_progress)
    scored = replace(scored, events=join_truth(scored.events, truth))
    sample = None
    if config.refine_events and context.detector is not None:
        sample = refine_sample(chunks, scored.events, config.refine_events, context.detector)
    return evaluate_scored(scored, config, context, sample)


def evaluate_scored(
    scored: ScoredEvents,
    config: EvaluationConfig,
    context: ReportContext,
    sample: RefinedSample | None = None,
) -> Evaluation:
    """Summarise events that are scored already: by a model here, or in a file of predictions.

    Whatever their table lacks (kappa, sizes, fits, truth) the figures and the page go without.
    sample: bright events of them that were refined.
    """
    events = scored.events
    summaries = summarize_methods(events, config, scored.seconds_per_event, scored.failed_share)
    reference = best_classical(events)
    slices = slice_table(events, config, reference)
    published = context.origin.published
    benchmark = (
        benchmark_table(events, ["model", *fits_of(events)], config, published)
        if has_benchmark(events)
        else pd.DataFrame()
    )
    refined, of_refined = pd.DataFrame(), {}
    if sample is not None and len(sample.events):
        refined = refined_table(sample, config)
        of_refined = refined_metrics(sample, refined)
    figures = draw_figures(events, reference, config, context.origin.azimuth_period_deg)
    displays = draw_displays(scored, events, context.detector)
    report_html = render_report(
        context, events, config,
        {"summaries": summaries, "slices": slices, "reference": reference, "benchmark": benchmark,
         "sample": sample, "refined": refined},
        figures | displays,
    )  # fmt: skip
    return Evaluation(
        events=events,
        metrics=flat_metrics(events, summaries) | benchmark_metrics(benchmark) | of_refined,
        slices=slices,
        figures=figures | displays,
        report_html=report_html,
        summaries=summaries,
        benchmark=benchmark,
        refined=refined,
        sample=sample,
    )


def fits_of(events: pd.DataFrame) -> list[str]:
    """List the classical fits that these events were reconstructed with."""
    return [name for name in CLASSICAL_FITS if f"{name}_angle_deg" in events]


def best_classical(events: pd.DataFrame) -> str:
    """Name the classical fit with the smallest mean angle on these events, `constant` without."""
    return min(
        fits_of(events), key=lambda name: float(angles_of(events, name).mean()), default="constant"
    )


def draw_figures(
    events: pd.DataFrame,
    reference: str,
    config: EvaluationConfig,
    azimuth_period_deg: float = 360.0,
) -> dict[str, bytes]:
    """Draw every figure that these events allow: name -> PNG, in the order of the report.

    azimuth_period_deg: of the detector's strings, see `Detector.azimuth_period_deg`.
    """
    methods = ["model", *(name for name in TITLES if f"{name}_angle_deg" in events)]
    min_events = min(config.min_events_per_bin, MIN_EVENTS_DRAWN)
    has_truth = {"energy_gev", "topology"} <= set(events.columns)
    figures = {"opening_angle_cumulative": draw_cumulative(events, methods)}
    if has_truth:
        figures["cumulative_by_topology"] = draw_cumulative_by_topology(events, methods)
        figures["angle_vs_energy"] = draw_against_energy(events, reference, min_events)
    if has_benchmark(events):
        figures["within_vs_energy"] = draw_within_against_energy(events, min_events)
    if "n_pulses" in events:
        figures["angle_vs_pulses"] = draw_against_pulses(events, reference, min_events)
    figures["angle_vs_zenith"] = draw_against_zenith(events, reference, min_events)
    figures["zenith_predicted_vs_true"] = draw_zenith_map(events)
    figures["bias_vs_zenith"] = draw_bias(events, min_events)
    if "kappa" in events:
        curves = risk_coverage(events["opening_angle_deg"].to_numpy(), events["kappa"].to_numpy())
        figures["calibration"] = draw_calibration(events)
        figures["accuracy_vs_kept_share"] = draw_risk_coverage(curves)
    figures["angle_vs_azimuth"] = draw_against_azimuth(
        events, reference, min_events, azimuth_period_deg
    )
    return figures


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
        note = f"{kind}{true_nature(rows[event.event_id])}"
        drawn[name] = draw_event(event, detector or _detector_of(event), note)
    return drawn


def _rows_of(
    displays: list[tuple[str, EventSnapshot]], events: pd.DataFrame
) -> list[dict[Hashable, Any]]:
    shown = events["event_id"].isin([event.event_id for _, event in displays])
    return events[shown].to_dict("records")


def true_nature(row: Mapping[Hashable, Any]) -> str:
    """Describe an event's simulated truth, as `: track, 12 TeV, coincident muon`."""
    words = [str(row["topology"])] if "topology" in row else []
    if "energy_gev" in row:
        words.append(energy_words(float(row["energy_gev"])))
    if "coincident_muon" in row and bool(row["coincident_muon"]):
        words.append("coincident muon")
    return f": {', '.join(words)}" if words else ""


def energy_words(energy_gev: float) -> str:
    """Write an energy with three digits in the unit that suits it: 96 GeV, 12.3 TeV, 1.96 PeV."""
    # 999.6 GeV has four digits left of the point once rounded, so it is written as 1 TeV
    unit_gev, unit = next(
        ((size, name) for size, name in ENERGY_UNITS if energy_gev < 999.5 * size), ENERGY_UNITS[-1]
    )
    return f"{energy_gev / unit_gev:.3g} {unit}"


def _detector_of(event: EventSnapshot) -> Detector:
    """Use a built-in detector where the event's DOMs are its own, else only the DOMs it has."""
    for name in names_around(event.xyz_m):
        return built_in_detector(name)
    n_sensors = len(event.xyz_m)
    return Detector(
        sensor_id=np.arange(n_sensors),
        xyz_m=event.xyz_m,
        string_id=np.full(n_sensors, -1),
        efficiency=np.ones(n_sensors),
        in_use=np.ones(n_sensors, bool),
    )
