"""Step 1: list the raw files and cut them into work units."""

from __future__ import annotations

from pathlib import Path

from iceaggr.progress import StepProgress
from iceaggr.shards.planning import check_splits, load_work_unit, plan_shards
from iceaggr.steps.context import RunContext
from iceaggr.steps.planned_units import write_work_units
from iceaggr.steps.training_choices import AS_CONFIGURED, TrainingChoices
from iceaggr.storage.apart import refuse_among_raw, refuse_work_among_raw
from iceaggr.storage.uris import check_place, file_uri


def run_plan_shards(context: RunContext, raw_uri: str, gpu_count: str = AS_CONFIGURED) -> list[str]:
    """Plan the sharding of all raw files and open the run in the tracker.

    Returns one short string per work unit; the same list stays in the run's folder, by which
    compute_statistics tells that none is missing.
    gpu_count: of the training that follows, as `TrainingChoices` takes it
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
        work_units = plan_shards(store, raw_uri.rstrip("/"), context.config.data, context.work_uri)
        check_splits(store, work_units[0], context.config.data)
        write_work_units(store, context, work_units)
        notes = load_work_unit(store, work_units[0])[0].notes
        units = f"{len(work_units)} work unit{'s' * (len(work_units) > 1)}"
        progress.conclude("; ".join((units, *notes)))
        return work_units
