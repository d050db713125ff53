"""What the learning check and training share: the documents of the statistics step, loaded."""

from __future__ import annotations

from pathlib import Path

from iceaggr.interfaces import Tracker
from iceaggr.normalization_document import parse_normalization
from iceaggr.shards.manifest import ShardManifest, parse_manifest
from iceaggr.shards.reading import load_recorded_detector
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import read_file
from iceaggr.training import TrainingInputs


def read_manifest(path: Path) -> ShardManifest:
    """Read the manifest of the statistics step. Raises: IceaggrError if it is missing."""
    return parse_manifest(_read(path), where=str(path))


def load_training_inputs(
    context: RunContext, manifest_path: Path, normalization_path: Path, tracker: Tracker
) -> TrainingInputs:
    """Load what a training run is given. Raises: IceaggrError, ShardError, NormalizationError."""
    store = context.open_store()
    manifest = read_manifest(manifest_path)
    detector = load_recorded_detector(store, manifest)
    return TrainingInputs(
        config=context.config,
        store=store,
        manifest=manifest,
        detector=detector,
        geometry_csv=detector.to_csv(),
        normalization=parse_normalization(_read(normalization_path), str(normalization_path)),
        tracker=tracker,
        output_uri=context.paths.training.uri,
    )


def _read(path: Path) -> bytes:
    return read_file(
        path, "document of an earlier step", "Run compute_statistics (`iceaggr stats`) first"
    )
