"""Flat metrics: the figures of an evaluation under names that sort and chart well side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from iceaggr.config import EvaluationConfig
from iceaggr.evaluation.baselines import TITLES, RefinedSample
from iceaggr.evaluation.calibration import (
    LEVELS,
    calibration_gap,
    coverage,
    probability_inside,
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


# Refinement: the model's own answer and the refined one on the same bright events.

BRIGHT_GEV = 1e4
"""Energies above it are the high ones, for which refinement was made."""
REFINED_METHODS = {"model": "Network alone", "refined": "Refined"}


def refined_table(sample: RefinedSample, config: EvaluationConfig) -> pd.DataFrame:
    """Measure the model's answers and the refined ones on the events of a sample, and parts of it.

    Returns one row per part with events (all; each topology; each below and above BRIGHT_GEV; with
    and without an atmospheric muon) and method: part, title, n_events, method, and with _error
    each: mean_deg, median_deg, gain_deg (of refining, paired, mean) and coverage_50, coverage_68,
    coverage_90 (shares).
    """
    rows = []
    for part, (title, events) in _refined_parts(sample.events).items():
        angles = [events[name].to_numpy() for name in ("opening_angle_deg", "refined_angle_deg")]
        kappas = [events[name].to_numpy() for name in ("kappa", "refined_kappa")]
        for method, angle_deg, kappa in zip(REFINED_METHODS, angles, kappas, strict=True):
            # each from the seed itself: what else is measured beside it does not change its error
            rng = np.random.default_rng(config.seed)
            settings = (config.n_bootstrap, config.confidence, rng)
            found = {
                "mean_deg": estimate_mean(angle_deg, *settings),
                "median_deg": estimate_median(angle_deg, *settings),
                "gain_deg": estimate_mean(angles[0] - angle_deg, *settings),
            }
            pit = probability_inside(np.deg2rad(angle_deg), kappa)
            for level in LEVELS:
                n_inside = int((pit <= level).sum())
                share = estimate_share(n_inside, len(pit), config.confidence)
                found[f"coverage_{100 * level:.0f}"] = share
            key = {"part": part, "title": title, "n_events": len(events), "method": method}
            figures = {name: one.value for name, one in found.items()}
            rows.append(key | figures | {f"{name}_error": one.error for name, one in found.items()})
    return pd.DataFrame(rows)


def _refined_parts(events: pd.DataFrame) -> dict[str, tuple[str, pd.DataFrame]]:
    """Cut by topology, energy and atmospheric muons where the truth has them: no empty parts."""
    parts = {"all": ("All of them", events)}
    for topology, part in _topologies(events).items():
        title = f"{topology.capitalize()}s"
        parts[topology] = (title, part)
        if "energy_gev" in part:
            high = part["energy_gev"].to_numpy() > BRIGHT_GEV
            parts[f"{topology}_low"] = (f"{title} up to 10 TeV", part[~high])
            parts[f"{topology}_high"] = (f"{title} above 10 TeV", part[high])
    parts |= {name: (MUON_PARTS[name], part) for name, part in muon_parts(events).items()}
    return {name: found for name, found in parts.items() if len(found[1])}


def refined_metrics(sample: RefinedSample, table: pd.DataFrame) -> dict[str, float]:
    """Name the headline figures of a refined sample for a tracker, all under test_refined/.

    mean_deg, median_deg, coverage_68 and so on are after refinement, network_... before; gain_deg
    is paired. cascade_ and track_ name topologies. A figure that is not finite is left out.
    """
    if not len(table):
        return {}
    each = sample.seconds / len(sample.events)
    metrics = {"n_events": float(len(sample.events)), "milliseconds_per_event": 1e3 * each}
    for row in table[table["part"].isin(("all", *TOPOLOGIES))].to_dict("records"):
        prefix = "" if row["part"] == "all" else f"{row['part']}_"
        names = [name for name in table.columns if name.split("_")[0] in REFINED_FIGURES]
        if row["method"] == "model":
            prefix, names = f"network_{prefix}", [n for n in names if not n.startswith("gain")]
        metrics |= {f"{prefix}{name}": float(row[name]) for name in names}
    named = {f"test_refined/{name}": value for name, value in metrics.items()}
    return {name: value for name, value in named.items() if math.isfinite(value)}


REFINED_FIGURES = ("mean", "median", "gain", "coverage")
