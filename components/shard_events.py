"""Container step: turn one work unit of raw files into shards and their sketches."""

from kfp import dsl
from kfp.dsl import Dataset, Output

from components.image import IMAGE
from components.parameters import described


@dsl.component(base_image=IMAGE, install_kfp_package=False)
@described(
    work_unit="One string of plan_shards.",
    unit_manifest="What was written, and what was rejected and why.",
)
def shard_events(
    work_unit: str,
    work_uri: str,
    run_id: str,
    unit_manifest: Output[Dataset],
) -> None:
    """Write the shards of one work unit to object storage; what is already there is reused."""
    from pathlib import Path

    from iceaggr.steps.planned_units import planned_context
    from iceaggr.steps.shard_events import run_shard_events

    context = planned_context(run_id, work_uri)
    facts = run_shard_events(context, work_unit, Path(unit_manifest.path))
    unit_manifest.metadata.update(facts)
