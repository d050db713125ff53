"""Container step: list the raw files and cut them into work units."""

from kfp import dsl

from components.image import IMAGE
from components.parameters import described


@dsl.component(base_image=IMAGE, install_kfp_package=False)
@described()
def plan_shards(
    raw_uri: str,
    work_uri: str,
    experiment_name: str,
    run_id: str,
    run_name: str,
    config: dict,
    gpu_count: str,
) -> list[str]:
    """List the raw files and cut them into work units of about equal size, a short string each."""
    from iceaggr.steps.context import make_context
    from iceaggr.steps.plan_shards import run_plan_shards

    context = make_context(run_id, experiment_name, work_uri, config, run_name)
    return run_plan_shards(context, raw_uri, gpu_count)
