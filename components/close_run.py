"""Container step: runs after all others, whatever their end."""

from kfp import dsl

from components.image import IMAGE
from components.parameters import described


@dsl.component(base_image=IMAGE, install_kfp_package=False)
@described(
    status="How the run ended.",
)
def close_run(
    work_uri: str,
    experiment_name: str,
    run_id: str,
    run_name: str,
    config: dict,
    status: dsl.PipelineTaskFinalStatus,
) -> None:
    """Close the MLflow run and delete what only a run in progress needs."""
    from iceaggr.steps.close_run import run_close_run
    from iceaggr.steps.context import make_context

    context = make_context(run_id, experiment_name, work_uri, config, run_name)
    run_close_run(context, status.state)
