"""What a training run is given, what it reports on the way, and what it returns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from safetensors.torch import save as dump_tensors
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import ExperimentConfig
from iceaggr.detector import Detector
from iceaggr.errors import TrainingError
from iceaggr.interfaces import ObjectStore, Tracker
from iceaggr.models.bundle import LoadedModel
from iceaggr.normalization_document import INPUT_FEATURES, Normalization
from iceaggr.shards.manifest import ShardManifest
from iceaggr.shards.split import SPLIT_FIELDS


@dataclass(frozen=True)
class StartingPoint:
    """Weights that a new run begins with; a run that resumes has its own.

    name: of the saved model that they come from, such as models:/iceaggr-direction/3
    weights: every parameter and buffer of the network, normaliser included
    """

    name: str
    weights: Mapping[str, Tensor]

    def digest(self) -> str:
        """Hash names, shapes and values: 64 hex digits."""
        tensors = {key: value.cpu().contiguous() for key, value in self.weights.items()}
        return hashlib.sha256(dump_tensors(tensors)).hexdigest()


@dataclass(frozen=True)
class TrainingInputs:
    """Everything that a run needs.

    config: the experiment; the evaluation and promotion sections are not read
    store: object storage that holds the shards and takes checkpoints and model
    manifest: shards of all splits; train is learned from, validation is watched, test is not read
    detector: the sensor table of the shards; geometry_csv is its text, kept with the model
    normalization: fitted statistics or a preset; carried inside the model
    tracker: receives the curves
    output_uri: folder for checkpoints/ and model/; a run found there is resumed
    start: weights to begin with, set together with their normalisation; None = random ones
    """

    config: ExperimentConfig
    store: ObjectStore
    manifest: ShardManifest
    detector: Detector
    geometry_csv: str
    normalization: Normalization
    tracker: Tracker
    output_uri: str
    start: StartingPoint | None = None


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    model_uri: folder of the saved model: the last weights, averaged if so configured
    best_validation_opening_angle_deg, last_validation_opening_angle_deg: means, degrees; the last
        one belongs to the saved model, the best one is optimistic
    n_steps, n_events_seen: over all restarts
    stopped: "epochs" or "time", whichever ended first
    minutes: training and validation, over all restarts
    device: what computed in the last attempt, "cpu" or the model of the GPU
    n_processes: of the last attempt, over all machines
    """

    model_uri: str
    best_validation_opening_angle_deg: float
    last_validation_opening_angle_deg: float
    n_steps: int
    n_events_seen: int
    stopped: str
    minutes: float
    device: str
    n_processes: int


@dataclass(frozen=True)
class TrainingProgress:
    """One point of the training curves, also for a progress bar.

    share: of the run, in [0, 1]; what ends first of steps and time counts
    loss: mean over the events since the last point, in the unit of the configured loss
    opening_angle_deg: mean over the same events, train split, degrees
    validation_opening_angle_deg: last measured, NaN before the first validation
    gradient_norm: mean before clipping
    data_wait_share: share of the time that the loop waited for batches
    """

    share: float
    step: int
    n_steps_planned: int
    epoch: int
    n_epochs: int
    elapsed_s: float
    loss: float
    opening_angle_deg: float
    validation_opening_angle_deg: float
    learning_rate: float
    gradient_norm: float
    events_per_s: float
    data_wait_share: float


ProgressCallback = Callable[[TrainingProgress], None]


class BatchSource(Protocol):
    """What training needs from a loader; `iceaggr.batches.EventLoader` is the real one.

    position: where the epoch stands once the batch handed out last is used, as readable JSON
    """

    position: dict[str, int]

    def epoch(self, epoch: int, position: Mapping[str, int] | None = None) -> Iterator[EventBatch]:
        """Iterate over the batches of one epoch, from a position on."""

    def n_batches(self, epoch: int) -> int:
        """Count the batches of one epoch."""


# Warm start: training begins with the weights of a saved model instead of random ones.
#
# Weights mean something only for inputs that are scaled as they were when the weights were learned.
# So the model keeps its own normalisation together with its weights; the statistics of the new data
# are computed and shown all the same, and `normalization_shift` says how far the two are apart.
# Only a run from scratch takes up new statistics. Optimiser, schedule and counters begin anew.

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
        "official_split": bool(loaded.facts.get("official_split")),
        "normalization.preset": loaded.model.normalization.preset,
        "detector": loaded.detector.digest()[:12],
    }


def _settings_for(inputs: TrainingInputs) -> dict[str, Any]:
    config = inputs.config.model_dump(mode="json")
    return {
        **_model_settings(config["model"]),
        **_split_settings(config["data"]),
        "official_split": inputs.manifest.official_split,
        "normalization.preset": config["normalization"]["preset"],
        "detector": inputs.detector.digest()[:12],
    }


def _model_settings(model: dict[str, Any]) -> dict[str, Any]:
    return {f"model.{key}": model[key] for key in sorted(model.keys() - _FREE_MODEL_FIELDS)}


def _split_settings(data: dict[str, Any]) -> dict[str, Any]:
    # An event of the new test split may have been one of the old train split if these differ.
    return {f"data.{key}": data[key] for key in SPLIT_FIELDS if key in data}
