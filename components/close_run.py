"""Container step: runs after all others, whatever their end."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def close_run(
    work_uri: str,
    experiment_name: str,
    run_id: str,
    config: dict,
    status: dsl.PipelineTaskFinalStatus,
) -> None:
    """Close the MLflow run and delete what only a run in progress needs.

    Args:
        work_uri: Folder in object storage for everything the pipeline makes.
        experiment_name: MLflow experiment.
        run_id: Identity of the pipeline run.
        config: Settings, see configs/.
        status: How the run ended.
    """
    from iceaggr.steps.close_run import run_close_run
    from iceaggr.steps.context import make_context

    context = make_context(run_id, experiment_name, work_uri, config)
    run_close_run(context, status.state)
