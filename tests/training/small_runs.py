"""Small real runs for tests: tracks in real shards, a small real model, everything on the CPU."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iceaggr.angles import azimuth_zenith
from iceaggr.config import ExperimentConfig, parse_config
from iceaggr.detector import icecube86
from iceaggr.events.dom_events import DomEvents, take_range
from iceaggr.interfaces import NullTracker, ObjectStore, Tracker
from iceaggr.normalization_document import Normalization
from iceaggr.shards.encoding import encode_shard, shard_hash
from iceaggr.shards.manifest import ShardEntry, ShardManifest
from iceaggr.storage.file_store import FileStore
from iceaggr.training import TrainingInputs
from iceaggr.training.checkpoint import CheckpointFolder
from tests.batches.batch_builder import Event, assemble, track_events

SMALL: dict[str, Any] = {
    "name": "small",
    "batches": {"n_events": 16, "n_workers": 0, "max_doms_per_event": 64},
    "model": {"d_model": 16, "n_heads": 2, "n_dom_layers": 1, "n_event_layers": 1, "dropout": 0.1},
    "training": {"n_epochs": 2, "learning_rate": 1e-3, "log_every_n_steps": 2, "device": "cpu"},
}


def small_config(**sections: dict[str, Any]) -> ExperimentConfig:
    """Build a small configuration; keyword arguments add to or replace fields of sections."""
    merged = {name: dict(v) if isinstance(v, dict) else v for name, v in SMALL.items()}
    for name, fields in sections.items():
        merged[name] = {**merged.get(name, {}), **fields}
    return parse_config(merged)


def dom_events(events: list[Event]) -> DomEvents:
    """Turn events into the content of a shard."""
    batch = assemble(events)
    assert batch.direction is not None
    azimuth, zenith = azimuth_zenith(batch.direction.double())
    return DomEvents(
        event_id=batch.event_id.numpy(),
        azimuth=azimuth.numpy(),
        zenith=zenith.numpy(),
        event_dom_offsets=batch.event_dom_offsets.numpy(),
        sensor_id=icecube86().sensor_id[batch.sensor_idx.numpy()].astype(np.int32),
        dom_pulse_offsets=batch.dom_pulse_offsets.numpy(),
        time_ns=batch.time_ns.numpy().astype(np.int64),
        charge_pe=batch.charge_pe.numpy(),
        auxiliary=batch.auxiliary.numpy(),
    )


def write_shard(store: ObjectStore, folder_uri: str, split: Any, events: DomEvents) -> ShardEntry:
    """Write one shard of one split."""
    data = encode_shard(events)
    blake3 = shard_hash(data)
    uri = f"{folder_uri}/{split}-{blake3[:16]}.arrow"
    store.write_bytes(uri, data)
    return ShardEntry(
        uri=uri,
        split=split,
        n_bytes=len(data),
        blake3=blake3,
        n_events=events.n_events,
        n_pulses=events.n_pulses,
        n_doms=events.n_doms,
    )


def manifest_of(shards: list[ShardEntry]) -> ShardManifest:
    """Put shards into a manifest."""
    return ShardManifest(
        geometry_uri="icecube86",
        detector_digest=icecube86().digest(),
        labelled=True,
        split_salt="test",
        validation_share=0.2,
        test_share=0.2,
        n_events_per_shard=1000,
        source_files=(),
        shards=tuple(shards),
    )


def small_inputs(
    folder: Path,
    config: ExperimentConfig,
    *,
    n_train: int = 64,
    n_validation: int = 32,
    tracker: Tracker | None = None,
) -> TrainingInputs:
    """Write shards of tracks below a folder and give the inputs of a run over them.

    Event ids are consecutive, train first.
    """
    store = FileStore()
    events = dom_events(track_events(n_train + n_validation, seed=3, noise_share=0.2))
    shards_uri = f"file://{folder}/shards"
    shards = [
        write_shard(store, shards_uri, "train", take_range(events, 0, n_train)),
        write_shard(
            store, shards_uri, "validation", take_range(events, n_train, n_train + n_validation)
        ),
    ]
    return TrainingInputs(
        config=config,
        store=store,
        manifest=manifest_of(shards),
        detector=icecube86(),
        geometry_csv=resources.files("iceaggr.resources").joinpath("icecube86.csv").read_text(),
        normalization=Normalization.seed(),
        tracker=tracker or NullTracker(),
        output_uri=f"file://{folder}/run",
    )


class RecordingTracker(NullTracker):
    """Keeps what a run tells, for tests to read."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []
        self.tags: dict[str, str] = {}

    def log_metrics(self, metrics: Any, step: int = 0) -> None:
        self.points.append((step, dict(metrics)))

    def set_tags(self, tags: Any) -> None:
        self.tags |= dict(tags)

    def curve(self, name: str) -> list[float]:
        """Give the points of one curve, in the order they were told."""
        return [metrics[name] for _, metrics in self.points if name in metrics]


def final_weights(inputs: TrainingInputs) -> dict[str, torch.Tensor]:
    """Read the weights of the newest checkpoint of a run."""
    checkpoint = CheckpointFolder(inputs.store, inputs.output_uri, 1).read_latest()
    assert checkpoint is not None
    return checkpoint.tensors["model"]


def same_weights(a: TrainingInputs, b: TrainingInputs) -> bool:
    """Tell whether two runs have ended with the same weights, bit for bit."""
    first, second = final_weights(a), final_weights(b)
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )
