"""Step 1: list the raw files and cut them into work units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from iceaggr.errors import ShardError
from iceaggr.interfaces import ObjectStore
from iceaggr.progress import StepProgress
from iceaggr.shards.planning import SHARD_AGAIN, check_splits, load_work_unit, plan_shards
from iceaggr.shards.writing import shard_unit
from iceaggr.steps.context import RunContext, make_context
from iceaggr.steps.documents import parse_document, write_document
from iceaggr.steps.training_choices import AS_CONFIGURED, TrainingChoices
from iceaggr.storage import open_store
from iceaggr.storage.uris import check_place, file_uri, refuse_among_raw, refuse_work_among_raw

# What a run shards, noted in its folder: its work units, and the settings they have in common.
#
# Kubeflow keeps a whole run in one Kubernetes object of at most 1 MiB, of which each work unit
# takes its part. So a unit's task is told its run alone and reads the settings here. And what was
# planned must have been sharded, all of it.


class WorkUnits(BaseModel):
    """The work units of a run as plan_shards gave them, and what it was told of the run."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="list of work units")

    work_units: tuple[str, ...] = Field(min_length=1)
    experiment_name: str
    run_name: str = ""
    raw_uri: str = ""
    config: dict[str, Any]


def write_work_units(
    store: ObjectStore, context: RunContext, work_units: list[str], raw_uri: str
) -> None:
    """Note in the run's folder what is to be sharded. Raises: StorageError."""
    document = WorkUnits(
        work_units=tuple(work_units),
        experiment_name=context.experiment_name,
        run_name=context.name,
        raw_uri=raw_uri,
        config=context.config.model_dump(mode="json"),
    )
    store.write_bytes(context.paths.work_units_uri, document.model_dump_json(indent=1).encode())


def read_work_units(store: ObjectStore, context: RunContext) -> tuple[str, ...]:
    """Read what was to be sharded. Raises: ShardError if nothing was planned; StorageError."""
    return _read(store, context.paths.work_units_uri).work_units


def raw_uri_of(context: RunContext, given: str) -> str:
    """Name the raw events that this run sharded: of a converted set not those of the form.

    given: what the form says, which stands where nothing was planned. Raises: StorageError.
    """
    store, uri = context.open_store(), context.paths.work_units_uri
    planned = _read(store, uri).raw_uri if store.stat(uri) else ""
    return planned or given.rstrip("/")


def planned_context(run_id: str, work_uri: str) -> RunContext:
    """Build the context of a step that is told its run alone.

    Raises: ShardError if nothing was planned; ConfigError, StorageError.
    """
    place = make_context(run_id, "", work_uri, {})  # checks the folder before anything is read
    plan = _read(open_store(), place.paths.work_units_uri)
    return make_context(run_id, plan.experiment_name, work_uri, plan.config, plan.run_name)


def _read(store: ObjectStore, uri: str) -> WorkUnits:
    if store.stat(uri) is None:
        raise ShardError(
            "no plan of this run",
            where=uri,
            found="no such object",
            expected="the list of work units that plan_shards wrote",
            remedy=SHARD_AGAIN,
        )
    return parse_document(WorkUnits, store.read_bytes(uri), uri)


def run_plan_shards(
    context: RunContext,
    raw_uri: str,
    gpu_count: str = AS_CONFIGURED,
    conversion: Sequence[str] = (),
) -> list[str]:
    """Plan the sharding of all raw files and open the run in the tracker.

    Returns one short string per work unit; the same list stays in the run's folder, by which
    compute_statistics tells that none is missing.
    gpu_count: of the training that follows, as `TrainingChoices` takes it
    conversion: work units that converted raw_uri; what they made is completed and planned
    Raises: ConfigError if training could not be as chosen or results would lie among the raw
    events; StorageError, TrackingError; RawDataError, also if a split would have no event or one.
    """
    check_place(raw_uri.rstrip("/"), "raw_uri")
    refuse_work_among_raw(raw_uri, context.work_uri, "work_uri")
    cache_folder = context.config.batches.cache_folder
    if cache_folder:
        refuse_among_raw(raw_uri, file_uri(Path(cache_folder)), "batches.cache_folder")
    with (
        StepProgress("plan_shards", run_id=context.run_id) as progress,
        context.tracking("plan_shards") as tracker,
    ):
        # training comes hours later: what it would refuse of the form is refused now
        TrainingChoices(gpu_count=gpu_count).applied_to(context.config)
        tracker.log_params(context.config.model_dump(mode="json"))
        tracker.log_params({"raw_uri": raw_uri, "work_uri": context.work_uri})
        store = context.open_store()
        if conversion:
            # with it comes scipy, for a step that few runs have
            from iceaggr.events.conversion.nubench_groups import finish

            raw_uri = conversion[0].rpartition("#")[0]
            finish(store, raw_uri)
            tracker.log_params({"converted_uri": raw_uri})
        work_units = plan_shards(store, raw_uri.rstrip("/"), context.config.data, context.work_uri)
        check_splits(store, work_units[0], context.config.data)
        write_work_units(store, context, work_units, raw_uri.rstrip("/"))
        notes = load_work_unit(store, work_units[0])[0].notes
        units = f"{len(work_units)} work unit{'s' * (len(work_units) > 1)}"
        progress.conclude("; ".join((units, *notes)))
        return work_units


# Step 2: one work unit of raw files -> shards and sketches in object storage.


def run_shard_events(context: RunContext, work_unit: str, manifest_path: Path) -> dict[str, float]:
    """Shard one work unit and write its manifest to a local file.

    Returns counts of events and pulses, for the artifact's metadata.
    Raises: StorageError, RawDataError.
    """
    label = work_unit.rpartition("#")[2]
    with StepProgress("shard_events", task=label, run_id=context.run_id) as progress:
        manifest = shard_unit(
            context.open_store(),
            work_unit,
            context.work_uri,
            context.config.data,
            on_progress=progress.update,
        )
        write_document(manifest_path, manifest.to_json())
        facts = {
            "n_source_files": len(manifest.source_files),
            "n_source_files_reused": sum(source.reused for source in manifest.source_files),
            "n_events": sum(source.n_events_kept for source in manifest.source_files),
            "n_pulses": sum(source.n_pulses_kept for source in manifest.source_files),
            "n_pulses_rejected": sum(s.n_pulses_rejected for s in manifest.source_files),
        }
        progress.conclude(
            f"{facts['n_events']:,} events, {facts['n_pulses']:,} pulses, "
            f"{facts['n_source_files_reused']} of {facts['n_source_files']} files reused"
        )
        return {name: float(value) for name, value in facts.items()}
