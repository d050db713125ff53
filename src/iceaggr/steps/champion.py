"""Judging a model against the champion, on test events that neither was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from iceaggr.angles import opening_angle, unit_vector
from iceaggr.batches import EventBatch, EventLoader
from iceaggr.config import BatchConfig, PromotionConfig
from iceaggr.detector import Detector
from iceaggr.evaluation.event_table import predict_batches
from iceaggr.evaluation.promotion import Verdict, decide_promotion
from iceaggr.interfaces import ObjectStore
from iceaggr.models.bundle import LoadedModel
from iceaggr.shards.manifest import ShardManifest
from iceaggr.shards.reading import load_recorded_detector
from iceaggr.shards.split import SPLIT_FIELDS, TEST, split_idx

# Which events a model has not been trained with, also if its split was another one than today's.
#
# A model that was trained with another salt or other shares has seen most of the events that are
# test events now: judged on those, it would win by what it remembers.


def split_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Read from a saved model's facts the split that it was trained with: salt and shares.

    Returns an empty dict if the model does not say all of it.
    """
    data = facts.get("experiment", {}).get("data", {})
    return {name: data[name] for name in SPLIT_FIELDS} if data.keys() >= {*SPLIT_FIELDS} else {}


def kept_for_testing(
    split: Mapping[str, Any], event_id: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Tell which events are test events of a split that `split_of` gave.

    event_id: (N,) int64. Returns (N,) bool.
    """
    return split_idx(event_id, *(split[name] for name in SPLIT_FIELDS)) == TEST


def judge_against(
    champion: LoadedModel,
    store: ObjectStore,
    manifest: ShardManifest,
    events: pd.DataFrame,
    settings: PromotionConfig,
) -> Verdict:
    """Compare the challenger with the champion on the test events that neither was trained with.

    A champion of another detector or split is not comparable, or only in part; the verdict says so.

    events: the challenger's table of test events, as evaluation wrote it.
    """
    difference = _detector_difference(champion.detector, store, manifest)
    if difference:
        return _not_comparable(
            settings,
            f"the champion was trained with another detector ({difference}) than the test events'",
            "train it on events of this detector",
        )
    split = split_of(champion.facts)
    if not split:
        return _not_comparable(settings, "the champion does not say by which split it was trained")
    if champion.facts.get("official_split"):
        if not manifest.official_split:
            return _not_comparable(
                settings, "the champion was trained with the split that its raw events brought"
            )
        fair = events
    else:
        fair = events[kept_for_testing(split, events["event_id"].to_numpy(np.int64))]
    if len(fair) == len(events):
        return decide_promotion(events, score_champion(champion, store, manifest, events), settings)
    rival_split = ", ".join(f"{key} {split[key]}" for key in split)
    if len(fair) < settings.min_shared_events:
        return _not_comparable(
            settings,
            f"only {len(fair):,} of {len(events):,} test events are test events of the champion's"
            f" split ({rival_split}) too, required are {settings.min_shared_events:,}",
        )
    rival = score_champion(champion, store, manifest, events)
    verdict = decide_promotion(fair, rival[rival["event_id"].isin(fair["event_id"])], settings)
    compared = verdict.comparison
    assert compared is not None
    n_left_out = len(events) - len(fair)
    return replace(
        verdict, comparison=replace(compared, n_left_out=n_left_out, rival_split=rival_split)
    )


def _detector_difference(detector: Detector, store: ObjectStore, manifest: ShardManifest) -> str:
    """Say in what a model's detector differs from the events', '' if it is the same."""
    if detector.digest() == manifest.detector_digest:
        return ""
    return detector.difference_from(load_recorded_detector(store, manifest))


def _not_comparable(
    settings: PromotionConfig, why: str, remedy: str = "train with its split"
) -> Verdict:
    remedy = f"{remedy}, or begin under another promotion.model_name"
    return Verdict("not comparable", settings, obstacle=why, remedy=remedy)


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
    """Give the batch settings that a model was trained with: its caps are part of the model.

    A cache folder is one of the machine that trained it, and is left out.
    """
    trained_with = loaded.experiment.batches if loaded.experiment else BatchConfig()
    return trained_with.model_copy(update={"cache_folder": ""})
