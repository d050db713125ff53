"""Step 7: register the model; champion or not, with the reason.

A registry that cannot be asked leaves the decision open. Then the figures are written all the same,
and the step fails: a run that could not decide must not look like one that decided against it.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from iceaggr.errors import IceaggrError, TrackingError
from iceaggr.evaluation.promotion import Verdict, decide_promotion, refuse_false_confidence
from iceaggr.evaluation.report import MARKDOWN_GAP
from iceaggr.interfaces import ObjectStore, Tracker
from iceaggr.losses import trains_kappa
from iceaggr.models.bundle import load_model
from iceaggr.paths import EVALUATION
from iceaggr.patience import may_pass
from iceaggr.progress import StepProgress
from iceaggr.shards.manifest import ShardManifest, manifest_facts, reuse_words
from iceaggr.steps.champion import judge_against
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import EvaluationPointer, ModelPointer, read_document, write_document
from iceaggr.steps.model_card import CARD_FILE, ModelCard, make_card
from iceaggr.steps.training_inputs import read_manifest
from iceaggr.storage import open_folder
from iceaggr.tracking.connection import PATIENCE_S, ServerAwayError
from iceaggr.tracking.registry import ChampionChangedError, ModelRegistry, RegisteredModel

logger = logging.getLogger(__name__)

MAX_DECISIONS = 5
"""A decision is made again when another run has promoted its model meanwhile."""


def run_promote_model(
    context: RunContext,
    manifest_path: Path,
    model_path: Path,
    evaluation_path: Path,
    *,
    summary_path: Path,
    verdict_path: Path,
) -> dict[str, Any]:
    """Register the model, compare it with the champion on the same events, decide, sum up.

    Returns the headline of the summary, which is also written to storage and to summary_path.
    Raises: ConfigError without a tracking server; EvaluationError if the evaluation is not of this
    model and data; PromotionError, after the summary was written, if the model could not be
    registered or compared. Nothing is promoted then.
    """
    context.require_registry("promotion")
    with (
        StepProgress("promote_model", run_id=context.run_id) as progress,
        context.tracking("promote_model", end="FINISHED") as tracker,
    ):
        store = context.open_store()
        manifest = read_manifest(manifest_path)
        pointer = read_document(ModelPointer, model_path)
        headline = read_document(EvaluationPointer, evaluation_path)
        loaded = load_model(store, pointer.model_uri)
        pointer.check_data(manifest.digest(), loaded.facts)
        headline.check_subject(pointer.model_uri, loaded.digest, manifest.digest())
        events = pd.read_parquet(io.BytesIO(headline.read_events(store)))
        # training may have had no server that named the run
        run_id = pointer.mlflow_run_id or tracker.run_id
        pointer = pointer.model_copy(update={"mlflow_run_id": run_id})
        name = context.config.promotion.model_name
        card = make_card(store, manifest, loaded, pointer, headline, events, name)
        model_uri, verdict, failure = _judge(context, store, manifest, pointer, events, card)
        summary = {
            **make_summary(manifest, headline, model_uri, verdict, tracker.run_id),
            "run_name": context.run_name,
            "started_from": pointer.started_from,
        }
        text = json.dumps(summary, indent=1, sort_keys=True)
        store.write_bytes(context.paths.summary_uri, text.encode())
        write_document(summary_path, text)
        write_document(verdict_path, f"**{model_uri}**\n\n{verdict.reason}\n")
        _track(tracker, model_uri, verdict, text)
        tracker.log_text(card.html, f"{EVALUATION}/{CARD_FILE}")
        tracker.set_tags({"mlflow.note.content": description(summary, headline.benchmark)})
        if failure is not None:
            raise failure
        progress.conclude(verdict.reason)
        return {name: summary[name] for name in ("model_uri", "promoted", "promotion", "reason")}


class PromotionError(TrackingError):
    """The model could not be registered, or not be compared: whether it is better stays open."""


def _judge(
    context: RunContext,
    store: ObjectStore,
    manifest: ShardManifest,
    pointer: ModelPointer,
    events: pd.DataFrame,
    card: ModelCard,
) -> tuple[str, Verdict, PromotionError | None]:
    """Register and decide. Returns the model's URI, the verdict, and what stood in the way."""
    model_uri = pointer.model_uri
    try:
        registry = ModelRegistry(patience_s=PATIENCE_S)
        registered = registry.register(
            store,
            pointer.model_uri,
            context.config.promotion.model_name,
            pointer.mlflow_run_id,
            {
                "data_digest": pointer.manifest_digest,
                "experiment": context.config.name,
                "started_from": pointer.started_from,
            },
            {CARD_FILE: card.html},
        )
        model_uri = registered.uri
        verdict = _settled(lambda: _decide(context, store, manifest, registered, events, registry))
        registry.describe(registered, f"{verdict.reason}\n\n{card.text}")
        return model_uri, verdict, None
    except IceaggrError as error:
        failure = _failure(context, pointer, error)
        verdict = Verdict(
            "not compared",
            context.config.promotion,
            obstacle=str(error).rstrip("."),
            remedy=_what_next(context, pointer, error),
        )
        if model_uri != pointer.model_uri and not may_pass(error):
            with suppress(TrackingError):
                registry.record_verdict(registered, {"verdict": verdict.reason})
        return model_uri, verdict, failure


def _failure(context: RunContext, pointer: ModelPointer, error: IceaggrError) -> PromotionError:
    failure = PromotionError(
        f"promotion did not happen: {error.what}",
        where=error.where,
        found=error.found,
        expected=error.expected,
        remedy=f"{error.remedy.rstrip('.')}. {_what_next(context, pointer, error)}",
    )
    failure.__cause__ = error
    return failure


def _what_next(context: RunContext, pointer: ModelPointer, error: IceaggrError) -> str:
    """Say where everything lies, and how the decision is made when the cause is mended."""
    text = f"The model lies in {pointer.model_uri}"
    if isinstance(error, ServerAwayError):
        text += f", what MLflow was not told in {context.unsent_uri}"
    return (
        f"{text}. When that is mended, run this step again: Retry in Kubeflow goes on here,"
        " `iceaggr promote --folder` does it by hand"
    )


def _settled(decide: Callable[[], Verdict]) -> Verdict:
    """Decide, and again if another run has promoted its model meanwhile."""
    for _ in range(MAX_DECISIONS - 1):
        try:
            return decide()
        except ChampionChangedError as error:
            logger.warning("deciding again: %s", error)
    return decide()


def _decide(
    context: RunContext,
    store: ObjectStore,
    manifest: ShardManifest,
    registered: RegisteredModel,
    events: pd.DataFrame,
    registry: ModelRegistry,
) -> Verdict:
    settings = context.config.promotion
    champion = rival = registry.champion(settings.model_name)
    if champion is not None and champion.version == registered.version:
        # a retry after a promotion that succeeded: it was decided against the champion before
        rival = registry.before(champion)
    if rival is None:
        verdict = decide_promotion(events, None, settings)
    else:
        with TemporaryDirectory() as folder:
            fetched = registry.fetch(rival.uri, Path(folder))
            loaded = load_model(open_folder(Path(folder)), fetched)
        verdict = judge_against(loaded, store, manifest, events, settings)
    if trains_kappa(context.config.loss):
        verdict = refuse_false_confidence(verdict, events, settings)
    tags = {"verdict": verdict.reason, "data_digest": manifest.digest()}
    if compared := verdict.comparison:
        tags["margin_deg"] = f"{compared.margin_deg:.4f} ± {compared.error_deg:.4f}"
    if verdict.promote:
        registry.set_champion(registered, champion, tags)
    else:
        registry.record_verdict(registered, tags)
    return verdict


def _track(tracker: Tracker, model_uri: str, verdict: Verdict, text: str) -> None:
    if verdict.outcome != "not compared":  # no figure would be true
        tracker.log_metrics({"verdict/promoted": float(verdict.promote)})
    if compared := verdict.comparison:
        tracker.log_metrics(
            {
                "verdict/margin_deg": compared.margin_deg,
                "verdict/margin_error_deg": compared.error_deg,
            }
        )
    tracker.set_tags(
        {
            "verdict": verdict.reason,
            "promoted": "undecided"
            if verdict.outcome == "not compared"
            else str(verdict.promote).lower(),
            "promotion": verdict.outcome,
            "model_version": model_uri,
        }
    )
    tracker.log_text(text, "summary.json")


# The figures of a whole run in one document, and their headline for people.


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


def description(summary: dict[str, Any], benchmark: str = "") -> str:
    """Write the headline as Markdown, which MLflow shows at the top of the run.

    benchmark: Markdown as well, the figures beside published ones.
    """
    gap = MARKDOWN_GAP
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
            f"\n{benchmark}" if benchmark else "",
            f"\n{reuse_words(summary)}; training started from {summary['started_from']}",
            f"\n{summary['pulses_in']:,} pulses in = {summary['pulses_kept']:,} kept"
            f" + {summary['pulses_rejected']:,} rejected; report: artifact evaluation/report.html",
        ]
    )
