"""Flat metrics: the figures of an evaluation under names that sort and chart well side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from iceaggr.config import EvaluationConfig
from iceaggr.evaluation.baselines import TITLES
from iceaggr.evaluation.calibration import (
    LEVELS,
    calibration_gap,
    coverage,
    pulls,
    width_parts,
)
from iceaggr.evaluation.event_table import angles_of, nats_of, pit_of
from iceaggr.evaluation.slices import (
    Estimate,
    estimate_angles,
    estimate_mean,
    estimate_median,
    estimate_share,
)
from iceaggr.events.truth import TOPOLOGIES


@dataclass(frozen=True)
class MethodSummary:
    """The accuracy of the model or of a baseline on all events.

    estimates: by statistic (degrees; share_above_90 a share).  gain: paired, mean angle of this
    baseline minus the model's on the same events, degrees; None for the model itself.
    by_topology: the same estimates for tracks and for cascades, where the truth is known.
    by_muon: the same for events with and without an atmospheric muon in the readout.
    seconds_per_event, failed_share: None where they say nothing (random and constant).
    """

    name: str
    title: str
    estimates: dict[str, Estimate]
    gain: Estimate | None
    by_topology: dict[str, dict[str, Estimate]]
    seconds_per_event: float | None
    failed_share: float | None
    by_muon: dict[str, dict[str, Estimate]] = field(default_factory=dict)


MUON_PARTS = {"nomuon": "Without an atmospheric muon", "muon": "With one in the readout"}
"""Events by the truth column coincident_muon: names of metrics, titles of tables."""


def summarize_methods(
    events: pd.DataFrame,
    config: EvaluationConfig,
    seconds_per_event: dict[str, float],
    failed_share: dict[str, float],
) -> list[MethodSummary]:
    """Summarize the model and every baseline of the event table, the model first."""
    rng = np.random.default_rng(config.seed)
    model = angles_of(events, "model")
    summaries = []
    for name in ("model", *(name for name in TITLES if f"{name}_angle_deg" in events)):
        angle_deg = angles_of(events, name)
        gain = None
        if name != "model":
            difference = angle_deg - model
            gain = estimate_mean(difference, config.n_bootstrap, config.confidence, rng)
        estimates = estimate_angles(angle_deg, config.n_bootstrap, config.confidence, rng)
        by_topology, by_muon = (
            {
                part: estimate_angles(
                    angles_of(chosen, name), config.n_bootstrap, config.confidence, rng
                )
                for part, chosen in parts.items()
            }
            for parts in (_topologies(events), muon_parts(events))
        )
        seconds, failed = seconds_per_event.get(name), failed_share.get(name)
        summaries.append(
            MethodSummary(
                name, TITLES[name], estimates, gain, by_topology, seconds, failed, by_muon
            )
        )
    return summaries


def _topologies(events: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Split events by topology where it is known, without empty parts."""
    names = TOPOLOGIES if "topology" in events else ()
    parts = {name: events[events["topology"] == name] for name in names}
    return {name: part for name, part in parts.items() if len(part)}


def muon_parts(events: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Split events by an atmospheric muon in the readout where that is known."""
    if "coincident_muon" not in events:
        return {}
    has_muon = events["coincident_muon"].to_numpy(bool)
    parts = {"nomuon": events[~has_muon], "muon": events[has_muon]}
    return {name: part for name, part in parts.items() if len(part)}


def flat_metrics(events: pd.DataFrame, summaries: list[MethodSummary]) -> dict[str, float]:
    """Name every overall figure so that a tracker sorts and charts it well.

    Trackers show a dozen characters of a name: what differs comes first.

    test/...                      the model: opening angles, share above 90 deg, number of events
    test_error/...                standard errors of those
    test_track/, test_cascade/... the model and the baselines on one topology
    test_muon/, test_nomuon/...   the same with and without an atmospheric muon in the readout
    test_kappa/...                calibration: coverage with its error, mean coverage error (gap);
                                  negative log-likelihood in nats per event, ignorance has 2.53;
                                  width found over claimed of the tenth by kappa farthest from 1
    test_bias/...                 mean of predicted minus true unit vector with its error
    test_baselines/...            each baseline, and the model's paired gain over it with its error
    test_speed/...                microseconds per event
    A figure that is not finite (an error from one event) is left out: trackers refuse NaN.
    """
    metrics: dict[str, float] = {"test/n_events": float(len(events))}
    for summary in summaries:
        if summary.name == "model":
            metrics |= _model_metrics(summary)
        else:
            metrics |= _baseline_metrics(summary)
        if summary.seconds_per_event is not None:
            name = f"test_speed/{summary.name}_microseconds_per_event"
            metrics[name] = 1e6 * summary.seconds_per_event
    metrics |= _bias_metrics(events)
    if "kappa" in events:
        metrics |= _calibration_metrics(events)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _model_metrics(summary: MethodSummary) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, estimate in summary.estimates.items():
        key = "share_above_90deg" if name == "share_above_90" else f"{name}_deg"
        metrics[f"test/{key}"] = estimate.value
        metrics[f"test_error/{key}"] = estimate.error
    for topology, estimates in (summary.by_topology | summary.by_muon).items():
        for name in ("mean", "median"):
            metrics[f"test_{topology}/{name}_deg"] = estimates[name].value
            metrics[f"test_{topology}/{name}_error_deg"] = estimates[name].error
    return metrics


def _baseline_metrics(summary: MethodSummary) -> dict[str, float]:
    metrics = {
        f"test_baselines/{summary.name}_{name}_deg": summary.estimates[name].value
        for name in ("mean", "median")
    }
    for topology, estimates in (summary.by_topology | summary.by_muon).items():
        metrics[f"test_{topology}/{summary.name}_median_deg"] = estimates["median"].value
    if summary.gain is not None:
        metrics[f"test_baselines/gain_over_{summary.name}_deg"] = summary.gain.value
        metrics[f"test_baselines/gain_over_{summary.name}_error_deg"] = summary.gain.error
    if summary.failed_share is not None:
        metrics[f"test_baselines/{summary.name}_failed_share"] = summary.failed_share
    return metrics


def _calibration_metrics(events: pd.DataFrame) -> dict[str, float]:
    angle_rad = np.deg2rad(angles_of(events, "model"))
    kappa = events["kappa"].to_numpy()
    pit = pit_of(events)
    metrics: dict[str, float] = {}
    for found in coverage(pit):
        name = f"test_kappa/coverage_{found.level * 100:.0f}"
        metrics |= {name: found.share, f"{name}_error": found.error}
    metrics["test_kappa/median"] = float(np.median(kappa))
    metrics["test_kappa/gap"] = calibration_gap(pit)
    nats = nats_of(events)
    metrics["test_kappa/negative_log_likelihood"] = float(nats.mean())
    error = float(nats.std(ddof=1)) / math.sqrt(len(nats)) if len(nats) > 1 else math.nan
    metrics["test_kappa/negative_log_likelihood_error"] = error
    worst = max(width_parts(angle_rad, kappa), key=lambda part: abs(math.log(part.ratio or 1e-300)))
    metrics["test_kappa/worst_width_ratio"] = worst.ratio
    metrics["test_kappa/worst_width_ratio_error"] = worst.error
    metrics["test_kappa/pull_median"] = float(np.median(pulls(angle_rad, kappa)))
    return metrics


def _bias_metrics(events: pd.DataFrame) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for axis in ("x", "y", "z"):
        bias = events[f"bias_{axis}"]
        metrics[f"test_bias/{axis}"] = float(bias.mean())
        metrics[f"test_bias/{axis}_error"] = float(bias.std() / math.sqrt(len(bias)))
    return metrics


def model_estimates(events: pd.DataFrame, config: EvaluationConfig) -> dict[str, Estimate]:
    """Estimate what only the model has, on all events; without kappa, the bias alone.

    Returns bias_x, bias_y, bias_z (mean of predicted minus true unit vector), kappa_median,
    negative_log_likelihood (nats), and coverage_50 and so on (share of events inside their own
    region).
    """
    rng = np.random.default_rng(config.seed)
    n_bootstrap, confidence = config.n_bootstrap, config.confidence
    biases = {f"bias_{axis}": events[f"bias_{axis}"].to_numpy() for axis in ("x", "y", "z")}
    found = {
        name: estimate_mean(bias, n_bootstrap, confidence, rng) for name, bias in biases.items()
    }
    if "kappa" not in events:
        return found
    kappa, nats = events["kappa"].to_numpy(), nats_of(events)
    found["kappa_median"] = estimate_median(kappa, n_bootstrap, confidence, rng)
    found["negative_log_likelihood"] = estimate_mean(nats, n_bootstrap, confidence, rng)
    pit = pit_of(events)
    for level in LEVELS:
        n_inside = int((pit <= level).sum())
        share = estimate_share(n_inside, len(events), config.confidence)
        found[f"coverage_{100 * level:.0f}"] = share
    return found


def method_table(
    summaries: list[MethodSummary], of_model: dict[str, Estimate] | None = None
) -> pd.DataFrame:
    """List every statistic of every method with its interval, all events and each topology.

    of_model: further statistics of the model (`model_estimates`).
    Returns columns method, events (all, track, cascade, muon, nomuon), statistic, value, error,
    low, high; degrees, shares and components of unit vectors as such; `gain` is that of the model
    over the method, paired.
    """
    rows = []
    for summary in summaries:
        overall = dict(summary.estimates)
        if summary.gain is not None:
            overall["gain"] = summary.gain
        if summary.name == "model":
            overall |= of_model or {}
        parts = {"all": overall} | summary.by_topology | summary.by_muon
        rows += [
            {"method": summary.name, "events": events, "statistic": name, **vars(estimate)}
            for events, estimates in parts.items()
            for name, estimate in estimates.items()
        ]
    return pd.DataFrame(rows)
