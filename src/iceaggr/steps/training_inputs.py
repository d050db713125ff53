"""What a training is given: what the statistics step wrote, and a model to start from."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel, ConfigDict

from iceaggr.interfaces import ObjectStore, Tracker
from iceaggr.models.bundle import DOCUMENT, GEOMETRY, WEIGHTS, load_model
from iceaggr.normalization_document import parse_normalization
from iceaggr.shards.manifest import ShardManifest, parse_manifest
from iceaggr.shards.reading import load_recorded_detector
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import parse_document, read_file
from iceaggr.storage import open_folder
from iceaggr.training import TrainingInputs, normalization_shift, start_from_model


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


# What a training starts from: decided once per run, so that a retry starts from the same.
#
# The first attempt asks the registry, copies the champion beside the run's checkpoints and writes
# training/start.json last. Every process of the training, on every machine, and every retry reads
# that: a champion that changes in between changes nothing, and a checkpoint wins over any start.


class TrainingStart(BaseModel):
    """The decision of a run.

    model: name of the model whose weights are taken, empty = from scratch
    folder_uri: this run's copy of it
    words: the decision for people, with its reason where it is not the obvious one
    """

    model_config = ConfigDict(frozen=True, extra="forbid", title="start of a training")

    model: str = ""
    folder_uri: str = ""
    words: str = "scratch"


def choose_start(context: RunContext) -> TrainingStart:
    """Find the decision of this run, or make it.

    Raises: ConfigError if the champion is wanted without a registry; TrackingError, StorageError;
    IceaggrError if the decision of an earlier attempt is damaged.
    """
    if context.config.training.start_from == "scratch":
        return TrainingStart()
    store = context.open_store()
    uri = context.paths.training.start_uri
    if store.stat(uri) is None:
        decided = _ask_registry(context, store)
        # of two attempts that decide at the same time the first one counts
        store.write_bytes_if_absent(uri, decided.model_dump_json(indent=1).encode())
    return parse_document(TrainingStart, store.read_bytes(uri), uri)


def begin_from(start: TrainingStart, inputs: TrainingInputs, tracker: Tracker) -> TrainingInputs:
    """Give a run the weights that its start decided on, and say so in the tracker.

    Raises: ModelError if the copy is damaged; TrainingError if the model does not fit the settings.
    """
    tracker.set_tags({"training/started_from": start.words})
    if not start.model:
        return inputs
    started = start_from_model(inputs, load_model(inputs.store, start.folder_uri), start.model)
    shift = normalization_shift(kept=started.normalization, fitted=inputs.normalization)
    tracker.log_metrics(
        {f"train_start/normalization_{name}": value for name, value in shift.items()}
    )
    return started


def _ask_registry(context: RunContext, store: ObjectStore) -> TrainingStart:
    name = context.config.promotion.model_name
    context.require_registry("training from the champion")
    from iceaggr.tracking.registry import ModelRegistry

    registry = ModelRegistry()
    champion = registry.champion(name)
    if champion is None:
        return TrainingStart(words=f"scratch, as {name} has no champion yet")
    folder_uri = f"{context.paths.training.started_from_uri}/{champion.version}"
    with TemporaryDirectory() as folder:
        fetched = registry.fetch(champion.uri, Path(folder))
        local = open_folder(Path(folder))
        for file in (WEIGHTS, GEOMETRY, DOCUMENT):
            store.write_bytes(f"{folder_uri}/{file}", local.read_bytes(f"{fetched}/{file}"))
    return TrainingStart(
        model=champion.uri, folder_uri=folder_uri, words=f"champion {champion.uri}"
    )
