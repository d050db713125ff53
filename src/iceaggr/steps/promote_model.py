"""Step 7: register the model; champion or not, with the reason."""

from __future__ import annotations

import io
import json
import logging
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from iceaggr.errors import TrackingError
from iceaggr.evaluation.promotion import Verdict, decide_promotion, refuse_false_confidence
from iceaggr.interfaces import ObjectStore, Tracker
from iceaggr.losses import trains_kappa
from iceaggr.models.bundle import load_model
from iceaggr.progress import StepProgress
from iceaggr.shards.manifest import ShardManifest
from iceaggr.steps.champion import judge_against
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import (
    EvaluationPointer,
    ModelPointer,
    read_document,
    write_document,
)
from iceaggr.steps.summary import description, make_summary
from iceaggr.steps.training_inputs import read_manifest
from iceaggr.storage import open_folder
from iceaggr.tracking.connection import PATIENCE_S, is_away
from iceaggr.tracking.registered_model import ChampionChangedError, RegisteredModel
from iceaggr.tracking.registry import ModelRegistry

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
    model and data; TrackingError, ModelError. Nothing is registered or promoted then.
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
        _check_evaluated(store, manifest, pointer, headline)
        events = pd.read_parquet(io.BytesIO(headline.read_events(store)))
        try:
            registry = ModelRegistry(patience_s=PATIENCE_S)
            pointer = pointer.model_copy(update={"mlflow_run_id": _run_of(pointer, tracker)})
            registered, verdict = _judge(context, store, manifest, pointer, events, registry)
            model_uri = registered.uri
        except TrackingError as error:
            if not is_away(error):
                raise
            model_uri, verdict = pointer.model_uri, _without_registry(context, pointer, error)
        summary = {
            **make_summary(manifest, headline, model_uri, verdict, tracker.run_id),
            "run_name": context.run_name,
            "started_from": pointer.started_from,
        }
        text = json.dumps(summary, indent=1, sort_keys=True)
        store.write_bytes(f"{context.run_uri}/summary.json", text.encode())
        write_document(summary_path, text)
        write_document(verdict_path, f"**{model_uri}**\n\n{verdict.reason}\n")
        _track(tracker, model_uri, verdict, text)
        tracker.set_tags({"mlflow.note.content": description(summary)})
        progress.conclude(verdict.reason)
        return {name: summary[name] for name in ("model_uri", "promoted", "reason")}


def _check_evaluated(
    store: ObjectStore, manifest: ShardManifest, pointer: ModelPointer, headline: EvaluationPointer
) -> None:
    """Refuse figures of another model or other data. Raises: ModelError, EvaluationError."""
    loaded = load_model(store, pointer.model_uri)
    pointer.check_data(manifest.digest(), loaded.facts)
    headline.check_subject(pointer.model_uri, loaded.digest, manifest.digest())


def _run_of(pointer: ModelPointer, tracker: Tracker) -> str:
    """Name the run that trained the model, also if training could not ask the server for it."""
    return pointer.mlflow_run_id or tracker.run_id


def _without_registry(context: RunContext, pointer: ModelPointer, error: TrackingError) -> Verdict:
    """Decide without a registry: nothing is promoted, and nothing that was computed is lost."""
    reason = (
        f"not promoted: the model registry was away for {PATIENCE_S:.0f} s ({error.where}). The"
        f" model lies in {pointer.model_uri}, the metrics in {context.unsent_uri}; send them with"
        f" `python -m iceaggr.tracking.replay {context.unsent_uri}` when the server is back"
    )
    return Verdict(False, reason, math.nan, math.nan, 0, "")


def _judge(
    context: RunContext,
    store: ObjectStore,
    manifest: ShardManifest,
    pointer: ModelPointer,
    events: pd.DataFrame,
    registry: ModelRegistry,
) -> tuple[RegisteredModel, Verdict]:
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
    )
    for _ in range(MAX_DECISIONS - 1):
        try:
            return registered, _decide(context, store, manifest, registered, events, registry)
        except ChampionChangedError as error:
            logger.warning("deciding again: %s", error)
    return registered, _decide(context, store, manifest, registered, events, registry)


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
    if verdict.compared_with:
        tags["margin_deg"] = f"{verdict.margin_deg:.4f} ± {verdict.margin_error_deg:.4f}"
    if verdict.promote:
        registry.set_champion(registered, champion, tags)
    else:
        registry.record_verdict(registered, tags)
    return verdict


def _track(tracker: Tracker, model_uri: str, verdict: Verdict, text: str) -> None:
    tracker.log_metrics({"verdict/promoted": float(verdict.promote)})
    if verdict.compared_with:
        tracker.log_metrics(
            {
                "verdict/margin_deg": verdict.margin_deg,
                "verdict/margin_error_deg": verdict.margin_error_deg,
            }
        )
    tracker.set_tags(
        {
            "verdict": verdict.reason,
            "promoted": str(verdict.promote).lower(),
            "model_version": model_uri,
        }
    )
    tracker.log_text(text, "summary.json")
