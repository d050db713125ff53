"""Warm start: training begins with the weights of a saved model instead of random ones.

Weights mean something only for inputs that are scaled as they were when the weights were learned.
So the model keeps its own normalisation together with its weights; the statistics of the new data
are computed and shown all the same, and `normalization_shift` says how far the two are apart. Only
a run from scratch takes up new statistics. Optimiser, schedule and counters begin anew.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from iceaggr.errors import TrainingError
from iceaggr.models.bundle import LoadedModel
from iceaggr.normalization import INPUT_FEATURES, Normalization
from iceaggr.shards.split import SPLIT_FIELDS
from iceaggr.training.inputs import StartingPoint, TrainingInputs

# Neither changes what a weight means.
_FREE_MODEL_FIELDS = {"dropout", "max_rows_per_chunk", "max_rows_kept"}


def start_from_model(inputs: TrainingInputs, loaded: LoadedModel, name: str) -> TrainingInputs:
    """Let a run begin with a saved model: its weights, and with them its normalisation.

    name: how the model is called in reports, such as models:/iceaggr-direction/3
    Raises: TrainingError naming every setting in which the model and this run differ: those of the
    network, of the split (its train events could be test events here), of the normalisation, and
    the detector.
    """
    there, here = _settings_of(loaded), _settings_for(inputs)
    differing = [key for key in here if there.get(key, "nothing") != here[key]]
    if differing:
        raise TrainingError(
            "training cannot start from this model, it was made with other settings",
            where=name,
            found=", ".join(f"{key} {there.get(key, 'nothing')}" for key in differing),
            expected=", ".join(f"{key} {here[key]}" for key in differing),
            remedy="Take over these settings, or train from scratch (training.start_from)",
        )
    weights = {key: value.detach().clone() for key, value in loaded.model.state_dict().items()}
    return replace(
        inputs, normalization=loaded.model.normalization, start=StartingPoint(name, weights)
    )


def normalization_shift(kept: Normalization, fitted: Normalization) -> dict[str, float]:
    """Measure how far the normalisation that is kept is from the one fitted to the present data.

    Returns centre_shift, the largest distance of two centres in units of the kept scale, and
    scale_ratio, the largest ratio of two scales, at least 1: the extremes over all features.
    """
    pairs = [(kept.scaling(name), fitted.scaling(name)) for name in INPUT_FEATURES]
    ratios = [old.scale / new.scale for old, new in pairs]
    return {
        "centre_shift": max(abs(new.centre - old.centre) / old.scale for old, new in pairs),
        "scale_ratio": max(max(ratio, 1 / ratio) for ratio in ratios),
    }


def _settings_of(loaded: LoadedModel) -> dict[str, Any]:
    experiment = loaded.facts.get("experiment", {})
    return {
        **_model_settings(loaded.model.config.model_dump(mode="json")),
        **_split_settings(experiment.get("data", {})),
        "normalization.preset": loaded.model.normalization.preset,
        "detector": loaded.detector.digest()[:12],
    }


def _settings_for(inputs: TrainingInputs) -> dict[str, Any]:
    config = inputs.config.model_dump(mode="json")
    return {
        **_model_settings(config["model"]),
        **_split_settings(config["data"]),
        "normalization.preset": config["normalization"]["preset"],
        "detector": inputs.detector.digest()[:12],
    }


def _model_settings(model: dict[str, Any]) -> dict[str, Any]:
    return {f"model.{key}": model[key] for key in sorted(model.keys() - _FREE_MODEL_FIELDS)}


def _split_settings(data: dict[str, Any]) -> dict[str, Any]:
    # An event of the new test split may have been one of the old train split if these differ.
    return {f"data.{key}": data[key] for key in SPLIT_FIELDS if key in data}
