"""Step 7: register the model; champion or not, with the reason."""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch

from iceaggr.angles import opening_angle, unit_vector
from iceaggr.batches import EventBatch, EventLoader
from iceaggr.config import BatchConfig, ExperimentConfig, PromotionConfig
from iceaggr.errors import TrackingError
from iceaggr.evaluation.held_out import kept_for_testing, split_of
from iceaggr.evaluation.prediction import predict_batches
from iceaggr.evaluation.promotion import Verdict, decide_promotion
from iceaggr.interfaces import ObjectStore, Tracker
from iceaggr.models.bundle import LoadedModel, load_model
from iceaggr.progress import StepProgress
from iceaggr.shards.manifest import ShardManifest
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import EvaluationPointer, ModelPointer, read_document
from iceaggr.steps.summary import description, make_summary
from iceaggr.steps.training_inputs import read_manifest
from iceaggr.tracking.connection import PATIENCE_S, is_away
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
    Raises: TrackingError, ModelError, EvaluationError; nothing is promoted then.
    """
    with (
        StepProgress("promote_model", run_id=context.run_id) as progress,
        context.tracking("promote_model", end="FINISHED") as tracker,
    ):
        store = context.open_store()
        manifest = read_manifest(manifest_path)
        pointer = read_document(ModelPointer, model_path)
        headline = read_document(EvaluationPointer, evaluation_path)
        events = pd.read_parquet(io.BytesIO(store.read_bytes(headline.events_uri)))
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
        summary_path.write_text(text)
        verdict_path.write_text(f"**{model_uri}**\n\n{verdict.reason}\n")
        _track(tracker, model_uri, verdict, text)
        tracker.set_tags({"mlflow.note.content": description(summary)})
        progress.conclude(verdict.reason)
        return {name: summary[name] for name in ("model_uri", "promoted", "reason")}


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
            loaded = load_model(store, registry.fetch(rival.uri, Path(folder)))
        verdict = judge_against(loaded, store, manifest, events, settings)
    tags = {"verdict": verdict.reason, "data_digest": manifest.digest()}
    if verdict.compared_with:
        tags["margin_deg"] = f"{verdict.margin_deg:.4f} ± {verdict.margin_error_deg:.4f}"
    if verdict.promote:
        registry.set_champion(registered, champion, tags)
    else:
        registry.record_verdict(registered, tags)
    return verdict


def judge_against(
    champion: LoadedModel,
    store: ObjectStore,
    manifest: ShardManifest,
    events: pd.DataFrame,
    settings: PromotionConfig,
) -> Verdict:
    """Compare the challenger with the champion on the test events that neither was trained with.

    events: the challenger's table of test events, as evaluation wrote it.
    """
    split = split_of(champion.facts)
    if not split:
        return _not_comparable("the champion does not say by which split it was trained")
    fair = events[kept_for_testing(split, events["event_id"].to_numpy(np.int64))]
    if len(fair) == len(events):
        return decide_promotion(events, score_champion(champion, store, manifest, events), settings)
    other = f"the champion's split ({', '.join(f'{key} {split[key]}' for key in split)})"
    if len(fair) < settings.min_shared_events:
        return _not_comparable(
            f"only {len(fair):,} of {len(events):,} test events are test events of {other} too,"
            f" required are {settings.min_shared_events:,}"
        )
    rival = score_champion(champion, store, manifest, events)
    verdict = decide_promotion(fair, rival[rival["event_id"].isin(fair["event_id"])], settings)
    note = f"; left out are {len(events) - len(fair):,} that are no test events of {other}"
    return replace(verdict, reason=verdict.reason + note)


def _not_comparable(why: str) -> Verdict:
    remedy = "train with its split, or begin under another promotion.model_name"
    return Verdict(False, f"not promoted: {why}; {remedy}", math.nan, math.nan, 0, "")


def score_champion(
    champion: LoadedModel, store: ObjectStore, manifest: ShardManifest, events: pd.DataFrame
) -> pd.DataFrame:
    """Predict the challenger's test events with the champion, in the champion's own batches.

    events: the challenger's table, with event_id, true_azimuth, true_zenith in radians.
    Returns event_id, opening_angle_deg, kappa of the same events, as promotion compares them.
    """
    loader = EventLoader(store, manifest, "test", champion.detector, batches_of(champion))
    predicted = predict_batches(champion.model, _first_events(loader.epoch(0), len(events)))
    both = events[["event_id", "true_azimuth", "true_zenith"]].merge(
        predicted, on="event_id", validate="one_to_one"
    )
    angles = {name: torch.tensor(both[name].to_numpy(np.float64)) for name in both.columns[1:]}
    difference = opening_angle(
        unit_vector(angles["azimuth"], angles["zenith"]),
        unit_vector(angles["true_azimuth"], angles["true_zenith"]),
    )
    return pd.DataFrame(
        {
            "event_id": both["event_id"],
            "opening_angle_deg": torch.rad2deg(difference).numpy(),
            "kappa": both["kappa"],
        }
    )


def _first_events(batches: Iterator[EventBatch], n_events: int) -> Iterator[EventBatch]:
    """Stop once n_events have passed: the test split comes in one order, and evaluation may have
    scored only the beginning of it.
    """
    n_seen = 0
    for batch in batches:
        yield batch
        n_seen += batch.n_events
        if n_seen >= n_events:
            return


def batches_of(loaded: LoadedModel) -> BatchConfig:
    """Give the batch settings that a model was trained with: its caps are part of the model."""
    experiment = loaded.facts.get("experiment")
    return ExperimentConfig.model_validate(experiment).batches if experiment else BatchConfig()


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
