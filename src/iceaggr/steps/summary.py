"""The figures of a whole run in one document, and their headline for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iceaggr.evaluation.promotion import Verdict
from iceaggr.shards.manifest import ShardManifest
from iceaggr.steps.documents import EvaluationPointer

# The counts of a run's data, as metrics, in its summary and in words.


def manifest_facts(manifest: ShardManifest) -> dict[str, float]:
    """Count what a manifest holds: events per split, pulses in, kept and rejected."""
    sources = manifest.source_files
    return {
        "n_events_train": float(manifest.n_events("train")),
        "n_events_validation": float(manifest.n_events("validation")),
        "n_events_test": float(manifest.n_events("test")),
        "n_events_rejected": float(sum(s.n_events_in - s.n_events_kept for s in sources)),
        "n_source_files": float(len(sources)),
        "n_source_files_reused": float(sum(s.reused for s in sources)),
        "n_shards": float(len(manifest.shards)),
        "pulses_in": float(sum(s.n_pulses_in for s in sources)),
        "pulses_kept": float(sum(s.n_pulses_kept for s in sources)),
        "pulses_rejected": float(sum(s.n_pulses_rejected for s in sources)),
    }


def reuse_words(facts: Mapping[str, float]) -> str:
    """Say what was sharded before and what is new, from `manifest_facts`."""
    n_files, n_reused = facts["n_source_files"], facts["n_source_files_reused"]
    return (
        f"{n_files:,.0f} raw files: {n_reused:,.0f} sharded before, {n_files - n_reused:,.0f} new"
    )


def make_summary(
    manifest: ShardManifest,
    headline: EvaluationPointer,
    model_uri: str,
    verdict: Verdict,
    mlflow_run_id: str,
) -> dict[str, Any]:
    """Collect the figures of a whole run, with stable names."""
    model, line_fit = headline.row("model"), headline.row("line_fit")
    compared = verdict.comparison
    counts = {name: int(value) for name, value in manifest_facts(manifest).items()}
    return {
        **counts,
        "n_events_test": headline.n_events,
        "mean_opening_angle_deg": model.mean_deg,
        "mean_opening_angle_error_deg": model.mean_error_deg,
        "median_opening_angle_deg": model.median_deg,
        "p68_opening_angle_deg": model.p68_deg,
        "line_fit_mean_opening_angle_deg": line_fit.mean_deg,
        "line_fit_median_opening_angle_deg": line_fit.median_deg,
        "constant_mean_opening_angle_deg": headline.row("constant").mean_deg,
        "data_digest": manifest.digest(),
        "mlflow_run_id": mlflow_run_id,
        "model_uri": model_uri,
        "promoted": verdict.promote,
        "promotion": verdict.outcome,
        "reason": verdict.reason,
        "margin_deg": compared.margin_deg if compared else None,
        "margin_error_deg": compared.error_deg if compared else None,
        "report_uri": headline.report_uri,
        "events_uri": headline.events_uri,
        "table": [row.model_dump() for row in headline.table],
    }


def description(summary: dict[str, Any]) -> str:
    """Write the headline as Markdown, which MLflow shows at the top of the run."""
    gap = "&nbsp;&nbsp;"  # MLflow sets the cells of a table side by side without one
    # MLflow folds all but the first lines: what matters most comes first, in two sentences
    model = summary["table"][0]
    headline = (
        f"Mean opening angle {model['mean_deg']:.2f} ± {model['mean_error_deg']:.2f}°, median"
        f" {model['median_deg']:.2f} ± {model['median_error_deg']:.2f}° on"
        f" {summary['n_events_test']:,} test events.\n"
    )
    rows = [
        f"| {row['title']}{gap} | {row['mean_deg']:.2f} ± {row['mean_error_deg']:.2f}°{gap} "
        f"| {row['median_deg']:.2f} ± {row['median_error_deg']:.2f}° |"
        for row in summary["table"]
    ]
    return "\n".join(
        [
            f"**{summary['reason']}**\n",
            headline,
            f"| opening angle, {summary['n_events_test']:,} test events | mean | median |",
            "|---|---|---|",
            *rows,
            f"\n{reuse_words(summary)}; training started from {summary['started_from']}",
            f"\n{summary['pulses_in']:,} pulses in = {summary['pulses_kept']:,} kept"
            f" + {summary['pulses_rejected']:,} rejected; report: artifact evaluation/report.html",
        ]
    )
