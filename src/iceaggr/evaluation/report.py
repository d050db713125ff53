"""The report: one self-contained HTML page per evaluation, no script, no outside request."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import yaml

from iceaggr.config import EvaluationConfig
from iceaggr.detector import Detector
from iceaggr.evaluation.baselines import TITLES, RefinedSample
from iceaggr.evaluation.calibration import Coverage, WidthPart, coverage, width_parts
from iceaggr.evaluation.event_table import angles_of, pit_of
from iceaggr.evaluation.metrics import (
    MUON_PARTS,
    REFINED_METHODS,
    MethodSummary,
    model_estimates,
    muon_parts,
)
from iceaggr.evaluation.published import SOURCE, DataOrigin, benchmark_blocks
from iceaggr.evaluation.slices import Estimate
from iceaggr.events.truth import TOPOLOGIES
from iceaggr.losses import NATS_OF_IGNORANCE
from iceaggr.pages import render
from iceaggr.reconstruction.refinement import NAMES
from iceaggr.shards.split import MIN_EVENTS_OF_SPLIT

CAPTIONS = {
    "opening_angle_cumulative": (
        "Share of events whose opening angle is smaller than the value on the x axis, for the model"
        " and every baseline on the same events (left linear, right logarithmic)."
    ),
    "cumulative_by_topology": (
        "The same for tracks and cascades apart: tracks have a direction to fit, cascades hardly"
        " more than a hint of one."
    ),
    "angle_vs_energy": (
        "Median opening angle and central 68 % of events against true neutrino energy, tracks and"
        " cascades apart; the dotted line is the angle between neutrino and muon, below which no"
        " track reconstruction can go."
    ),
    "within_vs_energy": (
        "Share of events whose opening angle is at most 1° and 5° against true neutrino energy,"
        " charged and neutral current apart; dotted, the direction of the muon itself, the"
        " kinematic bound."
    ),
    "angle_vs_pulses": (
        "Median opening angle and central 68 % of events against the number of pulses in the"
        " event, with those beyond the model's caps."
    ),
    "angle_vs_zenith": (
        "Median opening angle and central 68 % of events against the true cosine of the zenith."
    ),
    "zenith_predicted_vs_true": (
        "Predicted against true cosine of zenith; every column is normalised to its own events,"
        " so a perfect model fills the diagonal only."
    ),
    "bias_vs_zenith": (
        "Mean of predicted minus true unit vector with its standard error: an uncertain model pulls"
        " towards the middle, which shows as a falling z component."
    ),
    "calibration": (
        "Is κ honest? Left: flat if calibrated; an excess at 1 means errors larger than claimed."
        " Middle: share of events inside regions of nominal probability. Right: angle over claimed"
        " width; the band is what these κ would give were they true (wide errors end at 180°), the"
        " dotted Rayleigh curve what narrow errors would give."
    ),
    "accuracy_vs_kept_share": (
        "Opening angle of the events that remain when only the highest κ are kept: the operating"
        " curve of an analysis that may discard events."
    ),
    "angle_vs_azimuth": (
        "Median opening angle and central 68 % of events against true azimuth, folded by the turn"
        " that brings the detector's strings onto strings, where there is one; a wave would be an"
        " artefact of how they stand."
    ),
}
"""One sentence or two below each figure."""

MIN_EVENTS_DRAWN = 30
"""Events in a bin of a figure, at least, unless the configuration asks for fewer in tables."""

MAX_PULL = 3.0
"""A coverage farther from nominal than this many of its errors is called wrong."""

WIDE_FROM = 1.9
"""Figures wider than this, relative to their height, take the full width of the page."""


@dataclass(frozen=True)
class ReportContext:
    """What a report says about its run beyond the numbers.

    title: heading; facts: rows of a small table (model URI, data digest, split, code version ...);
    settings: the whole configuration; detector: for displays, else the built-in one.
    origin: where the events come from; model: what its row is called; notes: said first.
    """

    title: str = "Evaluation"
    facts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    detector: Detector | None = None
    origin: DataOrigin = field(default_factory=DataOrigin)
    model: str = TITLES["model"]
    notes: tuple[str, ...] = ()


def render_report(
    context: ReportContext,
    events: pd.DataFrame,
    config: EvaluationConfig,
    results: Mapping[str, Any],
    figures: Mapping[str, bytes],
) -> str:
    """Render the page.

    results: summaries (list of MethodSummary), slices, benchmark and refined (tables), reference
    (best classical fit), sample (of refined events, or None).
    figures: name -> PNG; names that start with `event_` are displays. Returns HTML.
    """
    summaries: list[MethodSummary] = results["summaries"]
    displays = {name: png for name, png in figures.items() if name.startswith("event_")}
    of_model = model_estimates(events, config)
    verdict = verdict_sentences(events, summaries, results["reference"])
    if "kappa" in events:
        verdict.append(_likelihood_sentence(of_model["negative_log_likelihood"]))
    benchmark: pd.DataFrame = results["benchmark"]
    n_of_muon = {name: len(part) for name, part in muon_parts(events).items()}
    return render(
        "evaluation_report.html.j2",
        context=context,
        config=config,
        n_events=len(events),
        min_events=min(config.min_events_per_bin, MIN_EVENTS_DRAWN),
        summaries=summaries,
        reference_words=_reference_words(results["reference"]),
        has_sizes="n_pulses" in events,
        is_timed=summaries[0].seconds_per_event is not None,
        has_failures=any(summary.failed_share is not None for summary in summaries),
        verdict=[
            *verdict,
            *_muon_sentence(summaries[0], n_of_muon),
            *context.origin.sentences(),
            *context.notes,
        ],
        n_of_muon=n_of_muon,
        tiles=first_screen(summaries, context.model),
        benchmark=benchmark_blocks(benchmark, COMPARED) if len(benchmark) else [],
        published=context.origin.published,
        source=SOURCE,
        refined=refined_blocks(results["refined"]),
        refined_words=refined_words(results["sample"]) if len(results["refined"]) else "",
        refined_methods=REFINED_METHODS,
        refined_claim=refined_claim(results["refined"]),
        muon_titles=MUON_PARTS,
        figures={name: png for name, png in figures.items() if name not in displays},
        displays=displays,
        captions=CAPTIONS,
        wide=[name for name, png in figures.items() if _aspect(png) > WIDE_FROM],
        slices=group_slices(results["slices"]),
        coverages=coverage_rows(events),
        widths=width_rows(events),
        of_model=of_model,
        settings=yaml.safe_dump(_plain(context.settings), sort_keys=False),
        pm=plus_minus,
        pmv=lambda value, error, scale: plus_minus(Estimate(value, error, value, value), scale),
    )


def _reference_words(reference: str) -> str:
    if reference == "constant":
        return "the best constant direction, as no fit was made"
    return f"the best classical fit on all events ({TITLES[reference]})"


def verdict_sentences(
    events: pd.DataFrame, summaries: list[MethodSummary], reference: str
) -> list[str]:
    """Say in words what the headline table shows: accuracy, best rival, calibration.

    One event has no errors, so nothing is judged by it, and that is said.
    """
    model = summaries[0].estimates
    if len(events) < MIN_EVENTS_OF_SPLIT:
        return [
            f"Opening angle {plus_minus(model['mean'])} deg, of one test event: no figure has an"
            " error, and nothing is compared or judged. Two events would have errors, a few"
            " thousand tell models apart."
        ]
    sentences = [
        f"Mean opening angle {plus_minus(model['mean'])} deg, median {plus_minus(model['median'])}"
        f" deg, on {len(events):,} test events."
    ]
    for rival in dict.fromkeys((reference, "constant")):
        gain = next(summary.gain for summary in summaries if summary.name == rival)
        if gain is not None:
            sentences.append(_gain_sentence(_in_sentence(TITLES[rival]), gain))
    if "kappa" in events:
        sentences.append(_calibration_sentence(pit_of(events)))
    return sentences


def _muon_sentence(model: MethodSummary, n_of_muon: Mapping[str, int]) -> list[str]:
    """Say what an atmospheric muon in the readout costs, where events with and without are known.

    n_of_muon: events of each of MUON_PARTS.
    """
    if len(model.by_muon) < len(MUON_PARTS):
        return []
    clean, muon = (plus_minus(model.by_muon[name]["mean"]) for name in MUON_PARTS)
    return [
        f"Mean {clean} deg without an atmospheric muon in the readout ({n_of_muon['nomuon']:,}"
        f" events), {muon} deg with one ({n_of_muon['muon']:,})."
    ]


COMPARED = ("line_fit", "ensemble_fit", "likelihood_fit")
"""Fits that the first screen shows beside the model: the plainest, and the two to be beaten."""


def first_screen(summaries: list[MethodSummary], model: str) -> list[tuple[str, str, str]]:
    """Choose what is seen first: (title, mean angle with error, paired gain of the model)."""
    by_name = {summary.name: summary for summary in summaries}
    shown = [by_name[name] for name in ("model", *COMPARED) if name in by_name]
    tiles = []
    for summary in shown if len(shown) > 1 else [*shown, by_name["constant"]]:
        title = model if summary.name == "model" else summary.title
        gain = "mean opening angle" if summary.gain is None else _gain_words(summary.gain)
        tiles.append((title, plus_minus(summary.estimates["mean"]), gain))
    return tiles


def _gain_words(gain: Estimate) -> str:
    if not abs(gain.value) >= 2 * gain.error:
        return f"not distinguishable: gain {plus_minus(gain)}°"
    size = Estimate(abs(gain.value), gain.error, gain.low, gain.high)
    return f"the model is {plus_minus(size)}° {'better' if gain.value > 0 else 'worse'}"


def _likelihood_sentence(nats: Estimate) -> str:
    """Say what direction and kappa together are worth, against knowing nothing."""
    useless = "" if nats.value < NATS_OF_IGNORANCE else ", and would be better"
    return (
        f"Negative log-likelihood {plus_minus(nats)} nats per event; claiming nothing has"
        f" {NATS_OF_IGNORANCE:.3f}{useless}."
    )


def _calibration_sentence(pit: np.ndarray) -> str:
    found = coverage(pit)
    levels = " / ".join(f"{100 * one.level:.0f}" for one in found)
    shares = " / ".join(f"{100 * one.share:.1f} ± {100 * one.error:.1f}" for one in found)
    pulls = [(one.share - one.level) / one.error for one in found]
    if all(abs(pull) <= MAX_PULL for pull in pulls):
        claim = f"κ is calibrated within {MAX_PULL:.0f}σ"
    elif all(pull > 0 for pull in pulls):
        claim = "claimed errors are too large (underconfident)"
    elif all(pull < 0 for pull in pulls):
        claim = "claimed errors are too small (overconfident)"
    else:
        claim = "the errors do not have the shape that κ claims"
    return f"{shares} % of events lie in their {levels} % regions: {claim}."


def coverage_rows(events: pd.DataFrame) -> list[tuple[str, int, list[Coverage]]]:
    """Count the events inside their own regions, also by topology and by atmospheric muons.

    Returns (title, events, levels); nothing without kappa.
    """
    if "kappa" not in events:
        return []
    parts = {"All events": np.ones(len(events), bool)}
    if "topology" in events:
        topology = events["topology"].to_numpy()
        parts |= {f"{name.capitalize()}s": topology == name for name in TOPOLOGIES}
    if "coincident_muon" in events:
        has_muon = events["coincident_muon"].to_numpy(bool)
        parts |= {MUON_PARTS["nomuon"]: ~has_muon, MUON_PARTS["muon"]: has_muon}
    pit = pit_of(events)
    chosen = {title: pit[inside] for title, inside in parts.items()}
    return [(title, len(part), coverage(part)) for title, part in chosen.items() if len(part)]


def width_rows(events: pd.DataFrame) -> list[WidthPart]:
    """Compare claimed and found widths in tenths of the events by kappa; nothing without kappa."""
    if "kappa" not in events:
        return []
    return width_parts(np.deg2rad(angles_of(events, "model")), events["kappa"].to_numpy())


def refined_blocks(table: pd.DataFrame) -> list[tuple[str, list[dict[str, Any]]]]:
    """Group the rows of `refined_table` by part: (title, rows of the two methods)."""
    return group_slices(table) if len(table) else []


def refined_words(sample: RefinedSample) -> str:
    """Say which events were refined, as what, and what it cost."""
    n, kinds = len(sample.events), sample.events["refined_as"].value_counts()
    which = "all" if n == sample.n_bright else f"{n:,}, chosen by a hash of event_id,"
    as_what = ", ".join(f"{kinds.get(name, 0):,} as {name}" for name in NAMES[1:])
    return (
        f"{which} of the {sample.n_bright:,} test events with at least {sample.min_charge_pe:g}"
        f" p.e. that triggered, the default in {sample.medium} ({sample.n_events:,} were looked"
        f" at): {as_what}, {1e3 * sample.seconds / n:.0f} ms of one core each"
    )


MIN_CLAIMED = 10
"""Refined events with a muon, from which on the report concludes from them."""


def refined_claim(table: pd.DataFrame) -> str:
    """Say what the refined kappa is worth with and without an atmospheric muon in the readout.

    table: see `refined_table`.  Returns '' where nothing was refined or the truth has no muons.
    """
    if not len(table):
        return ""
    rows = table[table["method"] == "refined"].set_index("part").to_dict("index")
    if not set(MUON_PARTS) <= set(rows):
        return ""
    words = {}
    for name in MUON_PARTS:
        share, error = (100 * rows[name][f"coverage_68{suffix}"] for suffix in ("", "_error"))
        words[name] = f"{share:.0f} ± {error:.0f} % of the {rows[name]['n_events']:,}"
    muon = rows["muon"]
    too_much = (
        muon["n_events"] >= MIN_CLAIMED
        and muon["coverage_68"] + 2 * muon["coverage_68_error"] < 0.68
    )
    return (
        f"In their 68 % region lie {words['muon']} refined events with an atmospheric muon in the"
        f" readout, {words['nomuon']} without"
        + (": where a muon crosses, a refined answer claims too much" if too_much else "")
    )


def group_slices(slices: pd.DataFrame) -> list[tuple[str, list[dict[str, Any]]]]:
    """Group the rows of a slice table by dimension: (title, rows)."""
    return [
        (str(title), [{str(k): v for k, v in row.items()} for row in part.to_dict("records")])
        for title, part in slices.groupby("title", sort=False)
    ]


def plus_minus(estimate: Estimate, scale: float = 1.0) -> str:
    """Write value ± error with as many digits as the error deserves; no error is a dash."""
    value, error = scale * estimate.value, scale * estimate.error
    if not np.isfinite(error) or error == 0:
        return f"{value:.2f}".replace("-", "−")
    digits = int(np.clip(1 - np.floor(np.log10(error)), 0, 4))
    return f"{value:.{digits}f} ± {error:.{digits}f}".replace("-", "−")


MARKDOWN_GAP = "&nbsp;&nbsp;"
"""Behind a cell: MLflow sets the cells of a table side by side without one."""
_MARKDOWN_LINE = "&nbsp;"
"""A line of nothing: MLflow leaves no room between a table and what follows."""


def benchmark_markdown(table: pd.DataFrame, origin: DataOrigin, n_events: int) -> str:
    """Lay the model's figures out in Markdown, with the published rows of its set beside them.

    table: see `benchmark_table`.  Returns '' where nothing is published of these events' detector.
    """
    published = origin.published
    if published is None or not len(table):
        return ""
    lines = []
    for block in benchmark_blocks(table, ()):
        heads = [
            f"{title}, {n:,} event{'s' * (n != 1)}{MARKDOWN_GAP}" for title, n in block["bands"]
        ]
        lines += [_MARKDOWN_LINE, "", f"**{block['title']}**: median, within 1°, within 5°", ""]
        lines.append(f"| {' | '.join((MARKDOWN_GAP, *heads))} |")
        lines.append("|---" * (1 + len(heads)) + "|")
        for line in block["lines"]:
            cells = [_benchmark_cell(row) for row in line["cells"]]
            title = f"*{line['title']}*" if line["published"] else line["title"]
            row = " | ".join(f"{cell}{MARKDOWN_GAP}" for cell in (title, *cells))
            lines.append(f"| {row} |")
        lines.append("")
    said = (
        f"Rows in italics are published, of NuBench's {published.name}, without errors: {SOURCE}."
    )
    text = " ".join([said, origin.scored_words(n_events), *origin.sentences()])
    return "\n".join([*lines, _MARKDOWN_LINE, "", text])


def _benchmark_cell(row: Mapping[str, Any] | None) -> str:
    """Write median and shares within 1 and 5 degrees."""
    if row is None:
        return "–"
    words = []
    for name, sign, scale in (
        ("median_deg", "°", 1),
        ("within_1deg", " %", 100),
        ("within_5deg", " %", 100),
    ):
        one = Estimate(row[name], row[f"{name}_error"], row[name], row[name])
        words.append("–" if np.isnan(one.value) else f"{plus_minus(one, scale)}{sign}")
    return ", ".join(words)


def _aspect(png: bytes) -> float:
    # the header of a PNG holds width and height as big-endian integers
    width, height = struct.unpack(">II", png[16:24])
    return float(width / height)


def _in_sentence(title: str) -> str:
    return title if title.startswith("Pandel") else title[0].lower() + title[1:]


def _gain_sentence(rival: str, gain: Estimate) -> str:
    sigma = abs(gain.value) / gain.error if gain.error > 0 else float("inf")
    if gain.value == 0 or sigma < 2:
        return f"Not distinguishable from the {rival}: paired gain {plus_minus(gain)} deg."
    word = "Better" if gain.value > 0 else "Worse"
    size = Estimate(abs(gain.value), gain.error, gain.low, gain.high)
    return f"{word} than the {rival} by {plus_minus(size)} deg (paired, {sigma:.0f}σ)."


def _plain(settings: Any) -> Any:
    if isinstance(settings, Mapping):
        return {str(key): _plain(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [_plain(value) for value in settings]
    return settings if isinstance(settings, (str, int, float, bool, type(None))) else str(settings)
