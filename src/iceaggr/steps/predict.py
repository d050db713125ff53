"""Prediction of raw events, labelled or not, by a registered model or a model folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from iceaggr.batches import iter_batches
from iceaggr.batches.event_batch import EventBatch
from iceaggr.detector import Detector
from iceaggr.errors import DetectorError
from iceaggr.evaluation.prediction import COLUMNS, PREDICTION_SCHEMA, stream_predictions
from iceaggr.events.cleaning import Account
from iceaggr.events.layout import RawLayout, find_layout, load_detector
from iceaggr.events.meta import count_events
from iceaggr.events.reading import missing_meta_rows, read_raw_events
from iceaggr.events.unique_ids import refuse_repeated_ids
from iceaggr.interfaces import ObjectStore
from iceaggr.models.bundle import LoadedModel, load_model
from iceaggr.progress import StepProgress
from iceaggr.steps.champion import batches_of
from iceaggr.steps.prediction_file import (
    UNPREDICTED_DIRECTION,
    check_output,
    refuse_raw_files,
    write_predictions,
)
from iceaggr.storage import open_folder, open_store


def run_predict(model_uri: str, raw_uri: str, output: Path) -> int:
    """Write the predicted direction of every raw event to a file.

    model_uri: `models:/name@champion`, `models:/name/3`, or the URI of a model folder.
    output: `.parquet` with event_id, azimuth, zenith, kappa, or `.csv` in the format that the
    public competition takes: event_id, azimuth, zenith. Angles in radians. An event without a
    valid pulse keeps its row, with UNPREDICTED_DIRECTION; events of the meta file whose raw file is
    missing have none, and are counted in the last line. Of a raw folder with test/ and train/ only
    test/ is predicted; the last line names the folder. Memory is bounded whatever the number of
    events; the file appears when it is complete.
    Returns the number of events.  Raises: ConfigError, ModelError, RawDataError, also for an
    event_id that two raw files share, DetectorError, TrackingError.
    """
    check_output(output, raw_uri)
    store = open_store()
    with StepProgress("predict") as progress, TemporaryDirectory() as folder:
        loaded = _load(store, model_uri, Path(folder))
        layout = find_layout(store, raw_uri)
        raw_files = (layout.meta, *(file.stored for file in layout.files))
        refuse_raw_files(output, (layout.geometry_uri, *(stored.uri for stored in raw_files)))
        _check_detector(load_detector(store, layout.geometry_uri), loaded, layout.geometry_uri)
        total, n_without_file = _count(store, layout)
        account = Account()
        chunks = read_raw_events(store, raw_uri, detector=loaded.detector, account=account)
        batches = iter_batches(chunks, loaded.detector, batches_of(loaded))
        batches = _reported(batches, account, lambda done: _say(progress, done, total))
        tables = stream_predictions(loaded.model, batches)
        n_events = write_predictions(_with_rejected(tables, account, output.suffix), output)
        left_out = f", {n_without_file:,} events have no raw file" if n_without_file else ""
        words = f"{_rejected(account, output.suffix)}{left_out}"
        progress.conclude(f"{n_events:,} events of {_folder(store, layout)} in {output}{words}")
        return n_events


def _folder(store: ObjectStore, layout: RawLayout) -> str:
    """Name the folder that was predicted, and the one beside it that was not."""
    if not layout.labelled and store.stat(f"{layout.raw_uri}/train_meta.parquet"):
        return f"{layout.folder}/ (train/ is left out)"
    return f"{layout.folder}/"


def _count(store: ObjectStore, layout: RawLayout) -> tuple[int, int]:
    """Count the events of the meta file that have a raw file, and those that have none.

    Raises: RawDataError if two raw files share an event_id, or the meta file does not know one.
    """
    counts = count_events(store, layout.meta.uri)
    for file in layout.files:
        if file.batch_id not in counts:
            raise missing_meta_rows(file.stored.uri, file.batch_id, layout.meta.uri)
    batch_ids = [file.batch_id for file in layout.files]
    refuse_repeated_ids(store, layout.meta.uri, batch_ids)
    n_with_file = sum(counts[batch_id] for batch_id in batch_ids)
    return n_with_file, sum(counts.values()) - n_with_file


def _check_detector(found: Detector, loaded: LoadedModel, geometry_uri: str) -> None:
    """Refuse events of a detector whose sensors stand elsewhere. Raises: DetectorError."""
    difference = found.difference_from(loaded.detector)
    if difference:
        raise DetectorError(
            "raw events are of another detector than the model",
            where=geometry_uri,
            found=difference,
            expected=f"the {loaded.detector.n_sensors} sensors of the model, within 1 cm",
            remedy="Predict with a model that was trained on this detector",
        )


def _reported(
    batches: Iterator[EventBatch], account: Account, on_progress: Callable[[int], None]
) -> Iterator[EventBatch]:
    """Pass minibatches on and report after each how many events are done, rejected ones too."""
    n_predicted = 0
    for batch in batches:
        yield batch
        n_predicted += batch.n_events
        on_progress(n_predicted + sum(account.rejected_events.values()))


def _say(progress: StepProgress, done: int, total: int) -> None:
    progress.update(done, total, f"{done:,} of {total:,} events")


def _with_rejected(tables: Iterator[pa.Table], account: Account, suffix: str) -> Iterator[pa.Table]:
    """Add a row for every event that was rejected, after those read before it."""
    for table in tables:
        yield pa.concat_tables([table, _take_rejected(account, suffix)])
    yield _take_rejected(account, suffix)


def _take_rejected(account: Account, suffix: str) -> pa.Table:
    """Make rows of the rejected ids and forget these, so that memory stays bounded."""
    event_id = np.array(account.rejected_event_ids, np.int64)
    account.rejected_event_ids.clear()
    azimuth, zenith = (np.full(len(event_id), angle) for angle in UNPREDICTED_DIRECTION[suffix])
    columns = (event_id, azimuth, zenith, np.full(len(event_id), math.nan))
    return pa.table(dict(zip(COLUMNS, columns, strict=True)), schema=PREDICTION_SCHEMA)


def _rejected(account: Account, suffix: str) -> str:
    """Say what could not be used, and what an event that could not be predicted has instead."""
    n_events = account.n_events_in - account.n_events_kept
    n_pulses = account.n_pulses_in - account.n_pulses_kept
    words = "no pulse rejected" if n_events else "nothing rejected"
    if n_pulses:
        words = f"{n_pulses:,} pulses rejected: {dict(account.rejected_pulses)}"
    if n_events:
        azimuth, zenith = UNPREDICTED_DIRECTION[suffix]
        instead = f"azimuth {azimuth:g}, zenith {zenith:g}"
        words = f"{n_events:,} of them without a valid pulse have {instead}; {words}"
    return f", {words}"


def _load(store: ObjectStore, model_uri: str, folder: Path) -> LoadedModel:
    if model_uri.startswith("models:/"):
        from iceaggr.tracking.registry import ModelRegistry

        return load_model(open_folder(folder), ModelRegistry().fetch(model_uri, folder))
    return load_model(store, model_uri)
