"""Step 1: list the raw files and cut them into work units."""

from __future__ import annotations

from iceaggr.progress import StepProgress
from iceaggr.shards.planning import plan_shards
from iceaggr.steps.context import RunContext
from iceaggr.steps.training_choices import AS_CONFIGURED, TrainingChoices
from iceaggr.storage.uris import check_place


def run_plan_shards(context: RunContext, raw_uri: str, gpu_count: str = AS_CONFIGURED) -> list[str]:
    """Plan the sharding of all raw files and open the run in the tracker.

    Returns one short string per work unit.
    gpu_count: of the training that follows, as `TrainingChoices` takes it
    Raises: ConfigError if training could not be as chosen; StorageError, RawDataError,
    TrackingError.
    """
    check_place(raw_uri.rstrip("/"), "raw_uri")
    with (
        StepProgress("plan_shards", run_id=context.run_id) as progress,
        context.tracking("plan_shards") as tracker,
    ):
        # training comes hours later: what it would refuse of the form is refused now
        TrainingChoices(gpu_count=gpu_count).applied_to(context.config)
        tracker.log_params(context.config.model_dump(mode="json"))
        tracker.log_params({"raw_uri": raw_uri, "work_uri": context.work_uri})
        work_units = plan_shards(
            context.open_store(), raw_uri.rstrip("/"), context.config.data, context.work_uri
        )
        progress.conclude(f"{len(work_units)} work unit{'s' * (len(work_units) > 1)}")
        return work_units
