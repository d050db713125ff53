"""Raw events and a registered model or a model folder: predicted, or scored by their labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from iceaggr.batches import iter_batches
from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import DataConfig, ExperimentConfig
from iceaggr.errors import ConfigError, RawDataError
from iceaggr.evaluation.evaluation import Evaluation, evaluate
from iceaggr.evaluation.event_table import (
    COLUMNS,
    PREDICTION_SCHEMA,
    stream_predictions,
    write_predictions,
)
from iceaggr.evaluation.prediction_files import check_name, is_prediction_file
from iceaggr.evaluation.report import ReportContext
from iceaggr.events.cleaning import Account, merge_accounts
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.label_reading import LabelReading
from iceaggr.events.layout import RawLayout, check_same_detector, find_layout
from iceaggr.events.meta import count_events, refuse_repeated_ids
from iceaggr.events.reading import (
    check_sensor_width,
    missing_meta_rows,
    read_raw_events,
    read_raw_file,
)
from iceaggr.events.truth import read_truth
from iceaggr.interfaces import ObjectStore
from iceaggr.models.bundle import LoadedModel, load_model
from iceaggr.progress import StepProgress
from iceaggr.reconstruction.refinement import Refiner
from iceaggr.shards.plausibility import (
    doubtful_times,
    refuse_many_rejected,
    refuse_times_of_another_unit,
)
from iceaggr.shards.sketches import Sketch
from iceaggr.shards.sketching import empty_sketch, sketch_events
from iceaggr.shards.statistics import refuse_unlike_training
from iceaggr.steps.champion import batches_of, kept_for_testing, split_of
from iceaggr.steps.compare import BenchmarkRows, check_page, publish
from iceaggr.steps.documents import check_target_file, refuse_other_content
from iceaggr.steps.evaluate_model import origin_of
from iceaggr.storage import open_folder, open_store
from iceaggr.storage.uris import FILE_SCHEME, file_path, file_uri, refuse_among_raw

# The file that `predict` writes: what cannot be written is refused before the first event.

LEAVE_OUT = "leave-out"
UNPREDICTED = {"nan": (math.nan, math.nan), "zero": (0.0, 0.0), LEAVE_OUT: (math.nan, math.nan)}
"""Azimuth and zenith of an event without a valid pulse: none, straight down-going, or no row."""
UNPREDICTED_BY_FORMAT = {".parquet": "nan", ".csv": "zero"}
"""A competition's submission must name a direction for every event; it has that which the fits of
`evaluate` have where they fail."""


def check_output(output: Path, raw_uri: str) -> None:
    """Refuse a file that could not be written in the end, or that lies among the raw events.

    Raises: ConfigError; StorageError if the raw URI names no place.
    """
    if output.suffix not in UNPREDICTED_BY_FORMAT:
        raise ConfigError(
            "unknown format",
            where=f"--output {output}",
            found=repr(output.suffix),
            expected=".parquet, or .csv for a competition submission",
            remedy="Give the file one of these endings",
        )
    check_target_file(output, "--output", lambda _: True)
    if raw_uri.startswith(FILE_SCHEME):
        raw_folder = file_path(raw_uri).resolve()
        place = output.absolute().parent.resolve() / output.name
        if place.is_relative_to(raw_folder):
            raise _among_raw_events(output, f"{place} in {raw_folder}")


def _is_prediction(path: Path) -> bool:
    """Tell predictions, or a submission, from any other file."""
    try:
        if path.suffix == ".csv":
            with path.open("rb") as file:
                header = file.readline(1000).decode("utf-8", "replace")
            return header.replace('"', "").strip().split(",") == list(COLUMNS[:3])
        names = list(pq.read_schema(path).names)
        return names == list(COLUMNS) or is_prediction_file(path)
    except pa.ArrowException:
        return False


def refuse_raw_files(output: Path, uris: Iterable[str]) -> None:
    """Refuse an output that a link in the raw folder leads to, or that holds no predictions.

    Raises: ConfigError.
    """
    for uri in uris:
        with suppress(FileNotFoundError):  # of the output, mostly
            if uri.startswith(FILE_SCHEME) and output.samefile(file_path(uri)):
                raise _among_raw_events(output, f"the file of {uri}")
    refuse_other_content(output, "--output", _is_prediction)


def _among_raw_events(output: Path, found: str) -> ConfigError:
    return ConfigError(
        "predictions would be written among the raw events",
        where=f"--output {output}",
        found=found,
        expected="a file outside the raw folder",
        remedy="Raw events are never written to: give another place",
    )


# The raw events of a prediction, judged on their way: no directions for data that are wrong.
#
# A model answers whatever it is asked. So each raw file is held to what sharding and statistics ask
# of training data, in the same words, and to the normalisation that the model carries. A file too
# small to be judged alone is judged with the other small ones.

MIN_EVENTS_JUDGED = 30
"""Among fewer, three odd events are a tenth, and medians and spreads say little."""
_MEND = "mend the file"


class PredictionInput:
    """Reads the files of a layout for a model, counts what is rejected, judges what is kept."""

    def __init__(
        self,
        store: ObjectStore,
        layout: RawLayout,
        loaded: LoadedModel,
        accept_doubtful: bool,
        labels: LabelReading | None = None,
    ) -> None:
        """Take what is read, by whom, and how strictly.

        accept_doubtful: what would be refused is kept in mind as a doubt.  labels: how they are
        meant, where an event without one is rejected.
        """
        self._store, self._layout, self._loaded = store, layout, loaded
        self._accept_doubtful, self._labels = accept_doubtful, labels
        data = loaded.experiment.data if loaded.experiment else DataConfig()
        self._max_rejected_share = data.max_rejected_share
        self._accounts: list[Account] = []
        self._doubts: list[str] = []
        self._sketch = empty_sketch(loaded.detector)

    def account(self) -> Account:
        """Add up what was read, kept and rejected so far."""
        return merge_accounts(self._accounts)

    def take_rejected_ids(self) -> list[int]:
        """Hand out the ids of the events rejected since the last call, and forget them."""
        taken: list[int] = []
        for account in self._accounts:
            taken += account.rejected_event_ids
            account.rejected_event_ids = []
        return taken

    def chunks(self) -> Iterator[DomEvents]:
        """Read all files; whoever takes the last chunk knows that nothing was refused.

        Raises: RawDataError, also for a file that is wrong as a whole; DetectorError, StorageError.
        """
        layout, detector = self._layout, self._loaded.detector
        check_sensor_width(detector, layout.geometry_uri)
        small, small_sketch = [], empty_sketch(detector)
        for file in layout.files:
            account, sketch = Account(), empty_sketch(detector)
            self._accounts.append(account)
            chunks = read_raw_file(self._store, layout, file, detector, account, self._labels)
            for chunk in chunks:
                sketch = sketch.merge(sketch_events(chunk, detector))
                yield chunk
            self._sketch = self._sketch.merge(sketch)
            if account.n_events_in >= MIN_EVENTS_JUDGED:
                self._judge(account, sketch, file.stored.uri)
            else:
                small.append(account)
                small_sketch = small_sketch.merge(sketch)
        where = f"{layout.raw_uri}/{layout.folder}/, its {len(small):,} small files together"
        self._judge(merge_accounts(small), small_sketch, where)

    def doubts(self) -> tuple[str, ...]:
        """Say what is odd about the events that were read, for the last line of the step."""
        odd = doubtful_times(self._sketch, self._loaded.detector)
        n_more = len(self._doubts) - 1
        more = [f"and {n_more:,} more such files"] if n_more > 0 else []
        return (*self._doubts[:1], *more, *([odd] if odd else []))

    def _judge(self, account: Account, sketch: Sketch, where: str) -> None:
        """Refuse a file that is wrong as a whole. Raises: RawDataError naming it."""
        if account.n_events_in < MIN_EVENTS_JUDGED:
            return
        try:
            for kind in ("events", "pulses"):
                refuse_many_rejected(account, kind, self._max_rejected_share, where, _MEND)
            if sketch.n_events >= MIN_EVENTS_JUDGED:
                refuse_times_of_another_unit({"train": sketch}, self._loaded.detector)
                refuse_unlike_training(sketch, self._loaded.model.normalization, where)
        except RawDataError as error:
            if not self._accept_doubtful:
                raise RawDataError(
                    error.what,
                    where=error.where if where in str(error.where) else f"{where} time",
                    found=error.found,
                    expected=error.expected,
                    remedy=f"{error.remedy}; nothing was written, and --accept-doubtful predicts"
                    " all the same",
                ) from None
            self._doubts.append(f"{error.what} [{where}], {error.found}")


def run_predict(
    model_uri: str,
    raw_uri: str,
    output: Path,
    unpredicted: str = "",
    accept_doubtful: bool = False,
    same_detector: bool = False,
    layout_name: str = "",
    refine: bool = False,
    refine_above_pe: float | None = None,
) -> int:
    """Write the predicted direction of every raw event to a file.

    model_uri: `models:/name@champion`, `models:/name/3`, or the URI of a model folder.
    output: `.parquet` with event_id, azimuth, zenith, kappa, or `.csv` in the format that the
    public competition takes: event_id, azimuth, zenith. Angles in radians.
    unpredicted: one of UNPREDICTED, what an event without a valid pulse gets; '' is the format's
    own. Events of the meta file whose raw file is missing have no row. Both are counted in the last
    line. Of a raw folder with test/ and train/ only test/ is predicted; the last line names it.
    accept_doubtful: predict what `PredictionInput` would refuse, and say so in the last line.
    same_detector: raw events that bring no geometry are of the model's detector.
    refine: fit bright events photon by photon, with the prediction as a prior (`Refiner`); the last
    line says how many, as what and for how long.
    refine_above_pe: triggering charge that is bright; None = as pays in the detector's medium
    layout_name: `nubench` writes the test events as the benchmark's prediction files are.
    Memory is bounded whatever the number of events; the file appears when all is well.
    Returns the number of rows.  Raises: ConfigError, ModelError, RawDataError, also for an
    event_id that two raw files share, DetectorError, TrackingError.
    """
    is_benchmark = layout_name == "nubench"
    if is_benchmark:
        check_name(output)
    check_output(output, raw_uri)
    default = LEAVE_OUT if is_benchmark else UNPREDICTED_BY_FORMAT[output.suffix]
    instead = unpredicted or default
    store = open_store()
    with StepProgress("predict") as progress, TemporaryDirectory() as folder:
        loaded = _load(store, model_uri, Path(folder))
        layout = find_layout(store, raw_uri)
        raw_files = (layout.meta, *(file.stored for file in layout.files))
        refuse_raw_files(output, (layout.geometry_uri, *(stored.uri for stored in raw_files)))
        check_same_detector(store, layout, loaded.detector, same_detector)
        total, n_without_file = _count(store, layout)
        benchmark = BenchmarkRows(store, layout, loaded) if is_benchmark else None
        events = PredictionInput(store, layout, loaded, accept_doubtful)
        keep, total = (benchmark.keep, benchmark.n_events) if benchmark else (None, total)
        refiner = Refiner(loaded.detector, refine_above_pe) if refine else None
        chunks = refiner.watch(events.chunks()) if refiner else events.chunks()
        batches = iter_batches(chunks, loaded.detector, batches_of(loaded), keep)
        batches = benchmark.watch(batches) if benchmark else batches
        batches = _reported(batches, events, lambda done: _say(progress, done, total))
        tables = stream_predictions(loaded.model, batches, refiner=refiner)
        rows, schema = _with_rejected(tables, events, instead), PREDICTION_SCHEMA
        if benchmark:
            rows, schema = map(benchmark.rows, rows), benchmark.schema
        n_rows = write_predictions(rows, output, schema)
        left_out = f", {n_without_file:,} events have no raw file" if n_without_file else ""
        left_out += f", {layout.skipped_words}" if layout.skipped else ""
        words = f"{_rejected(events.account(), instead)}{left_out}"
        words += f"; {refiner.words()}" if refiner else ""
        doubts = f"; warning: {', '.join(events.doubts())}" if events.doubts() else ""
        if benchmark:
            words = f" of {benchmark.n_events:,} test events{words}"
        progress.conclude(
            f"{n_rows:,} events of {_folder(store, layout)} in {output}{words}{doubts}"
        )
        return n_rows


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


def _reported(
    batches: Iterator[EventBatch], events: PredictionInput, on_progress: Callable[[int], None]
) -> Iterator[EventBatch]:
    """Pass minibatches on and report after each how many events are done, rejected ones too."""
    n_predicted = 0
    for batch in batches:
        yield batch
        n_predicted += batch.n_events
        on_progress(n_predicted + sum(events.account().rejected_events.values()))


def _say(progress: StepProgress, done: int, total: int) -> None:
    progress.update(done, total, f"{done:,} of {total:,} events")


def _with_rejected(
    tables: Iterator[pa.Table], events: PredictionInput, instead: str
) -> Iterator[pa.Table]:
    """Add a row for every event that was rejected, after those read before it."""
    for table in tables:
        yield pa.concat_tables([table, _rejected_rows(events.take_rejected_ids(), instead)])
    yield _rejected_rows(events.take_rejected_ids(), instead)


def _rejected_rows(ids: list[int], instead: str) -> pa.Table:
    event_id = np.array([] if instead == LEAVE_OUT else ids, np.int64)
    azimuth, zenith = (np.full(len(event_id), angle) for angle in UNPREDICTED[instead])
    columns = (event_id, azimuth, zenith, np.full(len(event_id), math.nan))
    return pa.table(dict(zip(COLUMNS, columns, strict=True)), schema=PREDICTION_SCHEMA)


def _rejected(account: Account, instead: str) -> str:
    """Say what could not be used, and what an event that could not be predicted has instead."""
    n_events = account.n_events_in - account.n_events_kept
    n_pulses = account.n_pulses_in - account.n_pulses_kept
    words = "no pulse rejected" if n_events else "nothing rejected"
    if n_pulses:
        words = f"{n_pulses:,} pulses rejected: {dict(account.rejected_pulses)}"
    if n_events:
        azimuth, zenith = UNPREDICTED[instead]
        has = f"of them without a valid pulse have azimuth {azimuth:g}, zenith {zenith:g}"
        if instead == LEAVE_OUT:
            has = "more without a valid pulse are left out"
        words = f"{n_events:,} {has}; {words}"
    return f", {words}"


def _load(store: ObjectStore, model_uri: str, folder: Path) -> LoadedModel:
    if model_uri.startswith("models:/"):
        from iceaggr.tracking.registry import ModelRegistry

        return load_model(open_folder(folder), ModelRegistry().fetch(model_uri, folder))
    return load_model(store, model_uri)


# Labelled raw events scored: a model beside the fits, on whoever's events.

MAX_EVENTS_LISTED = 50
"""Of so few events each has a row of its own; more are told by their figures."""


def run_evaluate_raw(
    model_uri: str,
    raw_uri: str,
    report: Path | None = None,
    accept_doubtful: bool = False,
    same_detector: bool = False,
) -> Evaluation:
    """Score a model and the fits on labelled raw events; print the figures, of few events each.

    model_uri, accept_doubtful, same_detector: as `run_predict` takes them; labels are meant as the
    model's training was told.
    report: HTML file to write, its tables beside it; None writes nothing.
    Raises: ConfigError, ModelError, RawDataError, also if there are no labels; DetectorError,
    EvaluationError, TrackingError.
    """
    check_page(report)
    if report:
        refuse_among_raw(raw_uri, file_uri(report), "--report")
    store = open_store()
    with StepProgress("evaluate") as progress, TemporaryDirectory() as folder:
        loaded = _load(store, model_uri, Path(folder))
        layout = find_layout(store, raw_uri, "train")
        check_same_detector(store, layout, loaded.detector, same_detector)
        total, _ = _count(store, layout)
        settings = loaded.experiment or ExperimentConfig()
        labels = LabelReading.of(settings.data.label_reading)
        events = PredictionInput(store, layout, loaded, accept_doubtful, labels)
        batches = iter_batches(events.chunks(), loaded.detector, batches_of(loaded))
        origin = origin_of(store, raw_uri, loaded.detector)
        facts = {"model": model_uri, "events": raw_uri, "medium": loaded.detector.medium_words}
        context = ReportContext(
            f"Evaluation: {raw_uri}", facts, detector=loaded.detector, origin=origin
        )
        evaluation = evaluate(
            loaded.model,
            _reported(batches, events, lambda done: _say(progress, done, total)),
            read_truth(store, raw_uri),
            settings.evaluation.model_copy(update={"max_events": 0}),
            context=context,
            chunks=read_raw_events(store, raw_uri, "train", loaded.detector),
        )
        few = len(evaluation.events) <= MAX_EVENTS_LISTED
        publish(evaluation, settings.evaluation, context, report, listed=few)
        doubts = f"; warning: {', '.join(events.doubts())}" if events.doubts() else ""
        progress.conclude(
            f"{len(evaluation.events):,} events{_rejected(events.account(), LEAVE_OUT)}"
            f"{_memory_words(loaded, evaluation.events)}{doubts}"
        )
        return evaluation


def _memory_words(loaded: LoadedModel, events: pd.DataFrame) -> str:
    """Say which of the events the model cannot have been trained with, wherever they are from."""
    split = split_of(loaded.facts)
    if not split or loaded.facts.get("official_split"):
        return ""
    n_kept = int(kept_for_testing(split, events["event_id"].to_numpy(np.int64)).sum())
    return (
        f"; {n_kept:,} of them fall into the test part of the model's split: if it was trained with"
        " these files, only those are fair"
    )
