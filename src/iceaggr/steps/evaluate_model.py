"""Step 6: score the model and the classical baselines on events nobody trained on."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from iceaggr.batches import EventLoader
from iceaggr.config import EvaluationConfig
from iceaggr.detector import Detector
from iceaggr.errors import EvaluationError, RawDataError
from iceaggr.evaluation.evaluation import Evaluation, evaluate
from iceaggr.evaluation.event_table import with_facts
from iceaggr.evaluation.metrics import method_table, model_estimates
from iceaggr.evaluation.prediction_files import facts_of
from iceaggr.evaluation.published import EASY, DataOrigin, set_of
from iceaggr.evaluation.report import ReportContext, benchmark_markdown, refined_claim
from iceaggr.events.label_reading import LabelReading
from iceaggr.events.truth import read_truth
from iceaggr.interfaces import ObjectStore, Tracker
from iceaggr.models.bundle import LoadedModel, load_model
from iceaggr.paths import EVALUATION, EVENTS_FILE, REPORT_FILE
from iceaggr.progress import StepProgress
from iceaggr.shards.manifest import ShardManifest
from iceaggr.shards.reading import read_shard
from iceaggr.shards.split import MIN_EVENTS_OF_SPLIT
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import (
    AngleRow,
    EvaluationPointer,
    ModelPointer,
    read_document,
    write_document,
)
from iceaggr.steps.plan_shards import raw_uri_of
from iceaggr.steps.training_choices import chosen_words
from iceaggr.steps.training_inputs import read_manifest
from iceaggr.validation import read_json_object, sha256_of

METHODS_FILE, BINS_FILE, BENCHMARK_FILE, REFINED_FILE = (
    f"{name}.csv" for name in ("methods", "bins", "benchmark", "refined")
)
"""Every statistic with its interval: beside the report wherever that is."""


def run_evaluate_model(
    context: RunContext,
    manifest_path: Path,
    model_path: Path,
    raw_uri: str,
    *,
    evaluation_path: Path,
    report_path: Path,
) -> dict[str, float]:
    """Evaluate on the test split; write the headline, the report and the tables beside it.

    raw_uri: its truth/ side file is joined if there is one; of a set that was converted the
    converted events are taken.  Returns the headline figures.
    Raises: ModelError, ShardError, EvaluationError.
    """
    with (
        StepProgress("evaluate_model", run_id=context.run_id) as progress,
        context.tracking("evaluate_model") as tracker,
    ):
        raw_uri = raw_uri_of(context, raw_uri)
        manifest = read_manifest(manifest_path)
        _refuse_one_event(manifest.n_events("test"))
        pointer = read_document(ModelPointer, model_path)
        loaded = load_model(context.open_store(), pointer.model_uri)
        medium = loaded.detector.medium_words
        report_context = replace(
            context_of_report(context, pointer, manifest, raw_uri, tracker.run_id, loaded),
            detector=loaded.detector,
            origin=origin_of(context.open_store(), raw_uri, loaded.detector),
        )
        pointer.check_data(manifest.digest(), loaded.facts)
        evaluation = _evaluate(context, manifest, loaded, raw_uri, report_context, progress)
        settings = context.config.evaluation.model_dump(mode="json")
        reading = reading_of_set(context.open_store(), raw_uri)
        failed = {one.name: one.failed_share for one in evaluation.summaries}
        facts = facts_of(report_context.origin, settings, reading, failed)
        events = parquet_of(evaluation.events, facts)
        headline = EvaluationPointer(
            model_digest=loaded.digest,
            data_digest=manifest.digest(),
            events_uri=context.paths.events_uri,
            events_sha256=sha256_of(events),
            report_uri=context.paths.report_uri,
            n_events=len(evaluation.events),
            table=_angle_table(evaluation),
            benchmark=benchmark_markdown(
                evaluation.benchmark, report_context.origin, len(evaluation.events)
            ),
            refined=refined_claim(evaluation.refined),
        )
        tables = tables_of(evaluation, context.config.evaluation)
        context.open_store().write_bytes(headline.events_uri, events)
        _write_pages(context, headline, evaluation, tables, report_path)
        write_document(evaluation_path, headline.model_dump_json(indent=1))
        _track(tracker, evaluation, events, tables)
        model, line_fit = headline.row("model"), headline.row("line_fit")
        progress.conclude(
            f"mean {model.mean_deg:.2f} ± {model.mean_error_deg:.2f} deg,"
            f" line fit {line_fit.mean_deg:.2f} deg; fits take light through {medium}"
            f"{_easy_words(report_context.origin)}"
        )
        return _figures(headline)


def _refuse_one_event(n_events: int) -> None:
    """Refuse what has no errors: the headline could not be written. Raises: EvaluationError."""
    if n_events < MIN_EVENTS_OF_SPLIT:
        raise EvaluationError(
            "too few test events to evaluate",
            where="test split",
            found=f"{n_events} event{'s' * (n_events != 1)}",
            expected=f"at least {MIN_EVENTS_OF_SPLIT}: each figure of the headline has an error",
            remedy="Shard more raw events, or raise data.test_share, and train on them",
        )


def _evaluate(
    context: RunContext,
    manifest: ShardManifest,
    loaded: LoadedModel,
    raw_uri: str,
    report_context: ReportContext,
    progress: StepProgress,
) -> Evaluation:
    """Score the test split of a manifest with a model."""
    store = context.open_store()
    loader = EventLoader(store, manifest, "test", loaded.detector, context.config.batches)
    return evaluate(
        loaded.model,
        loader.epoch(0),
        read_truth(store, raw_uri),
        context.config.evaluation,
        on_progress=lambda done: progress.update(done, loader.n_events, f"{done:,} events"),
        context=report_context,
        # a minibatch may lack DOMs of its events
        chunks=(read_shard(store, entry) for entry in manifest.shards_of("test")),
    )


def _write_pages(
    context: RunContext,
    headline: EvaluationPointer,
    evaluation: Evaluation,
    tables: dict[str, str],
    report_path: Path,
) -> None:
    """Put report and tables into the run's storage, and beside the report of this machine."""
    store = context.open_store()
    store.write_bytes(headline.report_uri, evaluation.report_html.encode())
    write_document(report_path, evaluation.report_html)
    for name, text in tables.items():
        store.write_bytes(context.paths.evaluation_table(name), text.encode())
        write_document(report_path.with_name(name), text)


def _figures(headline: EvaluationPointer) -> dict[str, float]:
    model = headline.row("model")
    return {
        "mean_opening_angle_deg": model.mean_deg,
        "median_opening_angle_deg": model.median_deg,
        "p68_opening_angle_deg": model.p68_deg,
        "line_fit_mean_opening_angle_deg": headline.row("line_fit").mean_deg,
        "n_events_test": float(headline.n_events),
    }


def context_of_report(
    context: RunContext,
    pointer: ModelPointer,
    manifest: ShardManifest,
    raw_uri: str,
    mlflow_run_id: str,
    loaded: LoadedModel,
) -> ReportContext:
    """Say what the report tells of its run; its settings are those that were in force."""
    configured = context.config.model_dump(mode="json")
    # a run may choose otherwise for its training, and the model knows what it was trained with
    trained = loaded.experiment.training.model_dump(mode="json") if loaded.experiment else {}
    chosen = chosen_words(configured["training"], trained)
    return ReportContext(
        title=f"Direction reconstruction: {context.run_name}",
        facts={
            "model": pointer.model_uri,
            "data": f"{raw_uri}, digest {manifest.digest()}",
            "split": f"test, {manifest.n_events('test'):,} events that training never saw",
            "medium": loaded.detector.medium_words,
            "MLflow run": _run_words(context, mlflow_run_id),
            **({"chosen for this run": chosen} if chosen else {}),
        },
        settings=configured | ({"training": trained} if trained else {}),
    )


SIMULATION_FILE, CONVERSION_FILE = "simulation.json", "conversion.json"
"""Beside raw events: with which settings they were simulated, or converted."""


def origin_of(store: ObjectStore, raw_uri: str, detector: Detector) -> DataOrigin:
    """Find out what raw events are: of which set of the benchmark, or simulated here.

    Raises: StorageError; RawDataError if a note is damaged.
    """
    conversion = note_of(store, raw_uri, CONVERSION_FILE)
    is_set = conversion.get("layout") == "nubench"
    counts = conversion.get("n_events", {}) if is_set else {}
    simulated_at = str(conversion["root_uri"]) if is_set else raw_uri
    settings = note_of(store, simulated_at, SIMULATION_FILE)
    preset = str(settings.get("preset", EASY)) if settings else ""
    n_official, n_events = int(counts.get("test", 0)), sum(map(int, counts.values()))
    period_deg = detector.azimuth_period_deg
    return DataOrigin(set_of(detector), preset, n_official, n_events, period_deg)


def reading_of_set(store: ObjectStore, raw_uri: str) -> LabelReading:
    """Tell how the truth of a converted set of the benchmark was read; else as documented."""
    note = note_of(store, raw_uri, CONVERSION_FILE)
    return LabelReading.of(note["label_reading"] if note.get("layout") == "nubench" else [])


def note_of(store: ObjectStore, raw_uri: str, name: str) -> dict[str, Any]:
    """Read a JSON note beside raw events, {} if there is none.

    Raises: StorageError; RawDataError if it is damaged.
    """
    uri = f"{raw_uri.rstrip('/')}/{name}"
    if not store.stat(uri):
        return {}
    return read_json_object(
        store.read_bytes(uri),
        lambda found: RawDataError(
            "note beside the raw events is damaged",
            where=uri,
            found=found,
            expected="a JSON object",
            remedy="Write the events anew, or remove the file: nobody then knows what they are",
        ),
    )


def _easy_words(origin: DataOrigin) -> str:
    return "; easy simulation, real events are harder" if origin.preset == EASY else ""


def _run_words(context: RunContext, mlflow_run_id: str) -> str:
    if not context.tracked:
        return "not tracked"
    return f"{context.run_name}, id {mlflow_run_id}" if mlflow_run_id else context.run_name


def _angle_table(evaluation: Evaluation) -> tuple[AngleRow, ...]:
    rows = []
    for summary in evaluation.headline():
        figures: dict[str, Any] = {"name": summary.name, "title": summary.title}
        for name in ("mean", "median", "p68"):
            estimate = summary.estimates[name]
            figures[f"{name}_deg"] = estimate.value
            figures[f"{name}_error_deg"] = estimate.error
        rows.append(AngleRow(**figures))
    return tuple(rows)


def parquet_of(events: pd.DataFrame, facts: Mapping[str, Any] | None = None) -> bytes:
    """Write a table of events as parquet, with a checksum of each page.

    facts: what the table says of itself, see `facts_of`.
    """
    table = with_facts(pa.Table.from_pandas(events, preserve_index=False), facts or {})
    buffer = io.BytesIO()
    # whoever fetches the table from the tracking server has no hash of it
    pq.write_table(table, buffer, write_page_checksum=True)
    return buffer.getvalue()


def tables_of(evaluation: Evaluation, config: EvaluationConfig) -> dict[str, str]:
    """Write the statistics of methods, bins, benchmark and refinement as CSV: name -> text."""
    methods = method_table(evaluation.summaries, model_estimates(evaluation.events, config))
    tables = {METHODS_FILE: methods, BINS_FILE: evaluation.slices}
    if len(evaluation.benchmark):
        tables[BENCHMARK_FILE] = evaluation.benchmark
    if len(evaluation.refined):
        tables[REFINED_FILE] = evaluation.refined
    return {name: table.to_csv(index=False) for name, table in tables.items()}


def _track(tracker: Tracker, evaluation: Evaluation, events: bytes, tables: dict[str, str]) -> None:
    tracker.log_metrics(evaluation.metrics)
    tracker.log_text(evaluation.report_html, REPORT_FILE)
    with TemporaryDirectory() as folder:
        for name, png in evaluation.figures.items():
            path = Path(folder) / f"{name}.png"
            path.write_bytes(png)
            tracker.log_file(path, f"{EVALUATION}/figures")
        table = Path(folder) / Path(EVENTS_FILE).name
        table.write_bytes(events)
        tracker.log_file(table, EVALUATION)
    for name, text in tables.items():
        tracker.log_text(text, f"{EVALUATION}/{name}")  # MLflow shows them as tables
