"""Files of predictions, of any model, and tracked runs: written, judged and compared."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iceaggr.angles import opening_angle
from iceaggr.batches.event_batch import EventBatch
from iceaggr.built_in_detectors import SET_TITLES, built_in_name
from iceaggr.config import DataConfig, EvaluationConfig
from iceaggr.errors import ConfigError, EvaluationError, naming
from iceaggr.evaluation.baselines import CLASSICAL_FITS
from iceaggr.evaluation.comparison import Comparison, compare_runs
from iceaggr.evaluation.evaluation import Evaluation, ScoredEvents, add_guesses, evaluate_scored
from iceaggr.evaluation.event_table import (
    PREDICTION_SCHEMA,
    directions,
    facts_in,
    join_truth,
    listing,
    reading_in,
)
from iceaggr.evaluation.prediction_files import (
    PredictionFile,
    check_name,
    facts_of,
    is_prediction_file,
    nubench_table,
    read_predictions,
)
from iceaggr.evaluation.published import benchmark_blocks
from iceaggr.evaluation.report import COMPARED, ReportContext, plus_minus
from iceaggr.evaluation.slices import Estimate
from iceaggr.events.label_reading import LabelReading
from iceaggr.events.layout import RawLayout
from iceaggr.events.meta import EventTable, read_event_tables
from iceaggr.events.truth import read_truth
from iceaggr.interfaces import ObjectStore
from iceaggr.models.bundle import LoadedModel
from iceaggr.paths import EVENTS_FILE
from iceaggr.progress import StepProgress
from iceaggr.shards.split import TEST, split_idx
from iceaggr.steps.documents import (
    EvaluationPointer,
    check_target_file,
    holds,
    read_document,
    write_document,
)
from iceaggr.steps.evaluate_model import origin_of, reading_of_set, tables_of
from iceaggr.steps.run_folder import RunFolder
from iceaggr.storage.file_store import partial_file, replace_durably
from iceaggr.tracking.run import fetch_run_file
from iceaggr.validation import shown

# Written in the benchmark's layout: the scored events of a run, or events predicted anew.


def run_export(folder: Path | None, run: str, output: Path) -> int:
    """Write a run's scored test events as a prediction file of the benchmark.

    Nothing is predicted again: whoever evaluates the file has the figures of the run.
    folder: of a run, None for the MLflow run that `run` names.
    Returns the number of events.  Raises: ConfigError, EvaluationError, TrackingError.
    """
    check_name(output)
    check_target_file(output, "--output", is_prediction_file)
    with StepProgress("predict") as progress:
        data, where = _events_of_folder(folder) if folder else _events_of_run(run)
        table = pq.read_table(io.BytesIO(data))
        facts = facts_in(table.schema)
        events = table.replace_schema_metadata(None).to_pandas()
        rows = nubench_table(events, facts, reading_in(facts, where))
        with naming(output), partial_file(output) as partial:
            pq.write_table(rows, partial, write_page_checksum=True)
            replace_durably(partial, output)
        progress.conclude(f"{len(events):,} test events of {where} in {output}")
        return len(events)


def _events_of_folder(folder: Path) -> tuple[bytes, str]:
    with RunFolder.open(folder).alone() as run:
        headline = read_document(EvaluationPointer, run.evaluation)
        return headline.read_events(run.context().open_store()), f"the run in {folder}"


def _events_of_run(run: str) -> tuple[bytes, str]:
    with TemporaryDirectory() as folder:
        file = fetch_run_file(run, EVENTS_FILE, Path(folder))
        read_event_table(file.path, file.run_name)  # or it is damaged
        return file.path.read_bytes(), f"run {file.run_name}"


QUICK_FITS = ("line_fit", "improved_line_fit", "tensor_of_inertia")
"""Classical fits that search for nothing: a file of predictions has them as rivals."""


class BenchmarkRows:
    """Joins predictions of raw events with their labels and truth, in the benchmark's columns.

    Only events that the model was not trained with: those of the official test selection, or of
    the test part of the model's own split. Memory holds labels and truth of all events.
    """

    def __init__(self, store: ObjectStore, layout: RawLayout, loaded: LoadedModel) -> None:
        """Read labels and truth.

        Raises: ConfigError if the events have no truth; RawDataError if it is damaged.
        """
        truth = read_truth(store, layout.raw_uri) if layout.labelled else None
        if truth is None:
            raise ConfigError(
                "events have no truth",
                where="--layout nubench",
                found=f"{layout.raw_uri}/{layout.folder}/ without labels or truth/",
                expected="simulated events: the benchmark's files hold their truth",
                remedy="Leave --layout out",
            )
        data = loaded.experiment.data if loaded.experiment else DataConfig()
        batch_ids = [file.batch_id for file in layout.files]
        meaning = LabelReading.of(data.label_reading)
        tables = read_event_tables(store, layout.meta.uri, batch_ids, True, meaning).values()
        self._test_ids = np.sort(np.concatenate([_test_ids(table, data) for table in tables]))
        labels = pd.DataFrame(
            {
                name: np.concatenate([getattr(table, ours) for table in tables])
                for name, ours in _LABELS.items()
            }
        )
        labels = labels[self.keep(labels["event_id"].to_numpy())]
        self._fitted: list[pd.DataFrame] = []
        self._truth = join_truth(labels, truth).set_index("event_id").sort_index()
        self._reading = reading_of_set(store, layout.raw_uri)
        origin = origin_of(store, layout.raw_uri, loaded.detector)
        settings = loaded.experiment.evaluation if loaded.experiment else EvaluationConfig()
        self._facts = facts_of(origin, settings.model_dump(mode="json"), self._reading)

    def keep(self, event_id: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Tell which events are test events: (B,) bool."""
        return np.isin(event_id, self._test_ids, assume_unique=True)

    def watch(self, batches: Iterator[EventBatch]) -> Iterator[EventBatch]:
        """Pass minibatches on, each fitted with QUICK_FITS, whose directions `rows` measures."""
        for batch in batches:
            found: dict[str, Any] = {"event_id": batch.event_id.numpy()}
            for name in QUICK_FITS:
                direction = CLASSICAL_FITS[name](batch).direction.to(torch.float64)
                found |= {f"{name}_{axis}": direction[:, k].numpy() for k, axis in enumerate("xyz")}
            self._fitted.append(pd.DataFrame(found))
            yield batch

    @property
    def n_events(self) -> int:
        """Count the test events."""
        return len(self._test_ids)

    @property
    def schema(self) -> pa.Schema:
        """Give the columns of the file, with what it says about itself."""
        return self.rows(PREDICTION_SCHEMA.empty_table()).schema

    def rows(self, table: pa.Table) -> pa.Table:
        """Lay predictions out for the file. table: of PREDICTION_SCHEMA; others are left out."""
        predicted = table.to_pandas()
        predicted = predicted[self.keep(predicted["event_id"].to_numpy())].set_index("event_id")
        events = self._measured(predicted.join(self._truth, how="left").reset_index())
        return nubench_table(events, self._facts, self._reading)

    def _measured(self, events: pd.DataFrame) -> pd.DataFrame:
        """Add the angles of the fits; what none has seen counts as straight down-going."""
        columns = [f"{name}_{axis}" for name in QUICK_FITS for axis in "xyz"]
        none = pd.DataFrame(columns=["event_id", *columns])
        fitted = pd.concat(self._fitted) if self._fitted else none
        fitted = fitted.set_index("event_id").reindex(events["event_id"])
        self._fitted = []
        true = directions(events, "true_azimuth", "true_zenith")
        for name in QUICK_FITS:
            found = torch.tensor(np.array(fitted[[f"{name}_{axis}" for axis in "xyz"]], np.float64))
            found = torch.where(found.isfinite(), found, torch.tensor([0.0, 0.0, 1.0]).double())
            found = found / torch.linalg.vector_norm(found, dim=-1, keepdim=True)
            angle_deg = torch.rad2deg(opening_angle(found, true)).numpy()
            events = events.assign(**{f"{name}_angle_deg": angle_deg})
        return events


_LABELS = {"event_id": "event_id", "true_azimuth": "azimuth", "true_zenith": "zenith"}


def _test_ids(table: EventTable, data: DataConfig) -> npt.NDArray[np.int64]:
    settings = (data.split_salt, data.validation_share, data.test_share)
    return table.event_id[split_idx(table.event_id, *settings, table.is_test) == TEST]


# One file of predictions: the report that a run of ours has, for anyone's model.


def run_evaluate_predictions(
    file: Path, report: Path | None = None, is_reversed: bool = False, set_name: str = ""
) -> Evaluation:
    """Judge a file of predictions: print the figures, write the page and its tables beside it.

    No model and no events are needed. A file that was exported from a run has the run's figures.
    report: HTML file to write, NAME.html beside the file if not given.  is_reversed: see
    `read_predictions`.  set_name: of the benchmark's set, where the file does not say.
    Raises: ConfigError; EvaluationError as `read_predictions`.
    """
    page = report or file.with_suffix(".html")
    check_page(page)
    read = read_predictions(file, is_reversed)
    config = _evaluation_config(read)
    context = _context(file, read, set_name)
    events = add_guesses(read.events, config.seed)
    scored = ScoredEvents(events, {}, dict(read.failed_share), [])
    evaluation = evaluate_scored(scored, config, context)
    publish(evaluation, config, context, page)
    return evaluation


LISTED = {"line_fit": "line fit", "ensemble_fit": "ensemble", "likelihood_fit": "likelihood"}
"""Titles of the fits of COMPARED, short enough for a table of events."""


def check_page(page: Path | None) -> None:
    """Refuse a page of `publish` that could not be written. Raises: ConfigError."""
    if page:
        check_target_file(page, "--report", holds('<table id="headline">'))


def publish(
    evaluation: Evaluation,
    config: EvaluationConfig,
    context: ReportContext,
    page: Path | None,
    listed: bool = False,
) -> None:
    """Print the figures; write the page and its tables beside it.

    page: see `check_page`, None for none.  listed: print a row for each event, too.
    """
    if page:
        write_document(page, evaluation.report_html)
        for name, text in tables_of(evaluation, config).items():
            write_document(page.with_name(f"{page.stem}.{name}"), text)
    print(_text(evaluation, context), flush=True)
    if listed:
        events, sample = evaluation.events, evaluation.sample
        titles = {name: LISTED[name] for name in COMPARED if f"{name}_angle_deg" in events}
        print(listing(events, titles, sample.events if sample else None), flush=True)
    if page:
        print(f"page {page}", flush=True)


def _evaluation_config(read: PredictionFile) -> EvaluationConfig:
    """Take the settings of the run that exported the file, where they are known here."""
    known = {
        name: read.settings[name] for name in EvaluationConfig.model_fields if name in read.settings
    }
    return EvaluationConfig.model_validate(known)


def _context(file: Path, read: PredictionFile, set_name: str) -> ReportContext:
    origin = read.origin
    if set_name:
        name = SET_TITLES.get(built_in_name(set_name))
        if name is None or (origin.set_name and name != origin.set_name):
            raise ConfigError(
                "another set than the file's" if name else "no set of the benchmark",
                where=f"--set {set_name}",
                found=shown(set_name),
                expected=origin.set_name or ", ".join(SET_TITLES),
                remedy="Leave --set out" if origin.set_name else "Give one of these names",
            )
        origin = origin.named(name)
    facts = {"predictions": str(file), "events": f"{len(read.events):,}, those of the file"}
    return ReportContext(
        title=f"Predictions: {file.stem}",
        facts=facts,
        origin=origin,
        model=file.stem,
        notes=tuple(f"{note[0].upper()}{note[1:]}." for note in read.notes),
    )


TEXT_WIDTH = 118


def _text(evaluation: Evaluation, context: ReportContext) -> str:
    """Write the headline, every method and the benchmark's figures for a terminal."""
    console = Console(file=io.StringIO(), width=TEXT_WIDTH, color_system=None)
    model = evaluation.summaries[0].estimates
    console.print(
        f"{context.model}: mean {plus_minus(model['mean'])} deg, median"
        f" {plus_minus(model['median'])} deg on {len(evaluation.events):,} events",
        markup=False,
    )
    for sentence in (*context.origin.sentences(), *context.notes):
        console.print(sentence, markup=False)
    methods = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    methods.add_column("opening angle [deg]", no_wrap=True)
    for head in ("mean", "median", "68 %"):
        methods.add_column(head, justify="right", no_wrap=True)
    for one in evaluation.summaries:
        title = context.model if one.name == "model" else one.title
        figures = (plus_minus(one.estimates[name]) for name in ("mean", "median", "p68"))
        methods.add_row(escape(title), *figures)
    console.print(methods)
    blocks = benchmark_blocks(evaluation.benchmark, COMPARED) if len(evaluation.benchmark) else []
    for block in blocks:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(block["title"], no_wrap=True)
        for head in ("energies", "events", "median [deg]", "within 1 deg [%]", "within 5 deg [%]"):
            table.add_column(head, justify="right", no_wrap=True)
        for place, (energies, n_events) in enumerate(block["bands"]):
            for line in block["lines"]:
                row = line["cells"][place]
                if row is not None:
                    title = context.model if line["method"] == "model" else line["title"]
                    count = "" if line["published"] else f"{n_events:,}"
                    table.add_row(escape(title), energies, count, *_figures(row))
            table.add_section()
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def _figures(row: dict[str, Any]) -> Iterator[str]:
    for name, scale in (("median_deg", 1), ("within_1deg", 100), ("within_5deg", 100)):
        one = Estimate(row[name], row[f"{name}_error"], row[name], row[name])
        yield "-" if math.isnan(row[name]) else plus_minus(one, scale)


# Two or more of them, paired: tracked runs and files.


def run_compare(
    names: list[str],
    page: Path | None,
    all_files: bool = False,
    reversed_files: Sequence[str] = (),
) -> Comparison:
    """Compare runs or files of predictions with the first one, print the tables, write the page.

    names: of MLflow runs (names, ids or addresses), or files that end in .parquet; two or more.
    page: HTML file to write.  all_files: every name is that of a file.
    reversed_files: those of the names whose vectors point the other way than their truth.
    Raises: ConfigError for fewer than two, one named twice, or a reversed file that is not among
    them; TrackingError, EvaluationError.
    """
    if len(names) < 2:
        raise ConfigError(
            "nothing to compare",
            where="iceaggr compare",
            found=", ".join(names) or "no run",
            expected="two or more runs or files of predictions, the first one the reference",
            remedy="Name another one",
        )
    for name in reversed_files:
        if name not in names:
            raise ConfigError(
                "not among the files to compare",
                where="--reversed",
                found=name,
                expected=" or ".join(names),
                remedy="Name it as among the files",
            )
    if page:
        check_target_file(page, "--page", holds("<h1>Paired comparison</h1>"))
    tables: dict[str, pd.DataFrame] = {}
    seen: set[str] = set()
    for name in names:
        is_file = all_files or name.endswith(".parquet")
        if is_file:
            identity, label, table = _table_of_file(Path(name), name in reversed_files)
        else:
            identity, label, table = _table_of_run(name)
        if identity in seen:
            raise ConfigError(
                f"the same {'file' if is_file else 'run'} twice",
                where=name,
                found=label,
                expected="different ones",
                remedy="Name each once",
            )
        seen.add(identity)
        # two runs may share a name, never an id
        tables[label if label not in tables else f"{label} ({identity[-20:]})"] = table
    comparison = compare_runs(tables, EvaluationConfig())
    if page:
        write_document(page, comparison.html)
    print(comparison.text(), flush=True)
    if page:
        print(f"page {page}", flush=True)
    return comparison


def _table_of_file(path: Path, is_reversed: bool) -> tuple[str, str, pd.DataFrame]:
    read = read_predictions(path, is_reversed)
    if not read.has_ids:
        raise EvaluationError(
            "events cannot be paired",
            where=str(path),
            found="no event numbers",
            expected="a column event_no or event_id",
            remedy="Write the file with its event numbers",
        )
    for note in read.notes:
        print(f"{path.name}: {note}", flush=True)
    return str(path.resolve()), path.stem, read.events


def _table_of_run(run: str) -> tuple[str, str, pd.DataFrame]:
    with TemporaryDirectory() as folder:
        file = fetch_run_file(run, EVENTS_FILE, Path(folder))
        return file.run_id, file.run_name, read_event_table(file.path, file.run_name)


def read_event_table(path: Path, run_name: str) -> pd.DataFrame:
    """Read the events of an evaluation, and the checksums of its pages where it has them.

    Raises: EvaluationError if the file is damaged.
    """
    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise EvaluationError(
            "table of test events is damaged",
            where=f"run {run_name} {EVENTS_FILE}",
            found=" ".join(str(error).split())[:200],
            expected="the table that evaluation wrote",
            remedy="Compare again; if it stays so, evaluate the run again",
        ) from error
