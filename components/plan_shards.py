"""Container step: list the raw files and cut them into work units."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_shards(
    raw_uri: str,
    work_uri: str,
    experiment_name: str,
    run_id: str,
    config: dict,
) -> list[str]:
    """List the raw files and cut them into work units of about equal size.

    Args:
        raw_uri: Folder of the raw events: train/batch_N.parquet, train_meta.parquet.
        work_uri: Folder in object storage for everything the pipeline makes.
        experiment_name: MLflow experiment.
        run_id: Identity of the pipeline run.
        config: Settings, see configs/.

    Returns:
        One short string per work unit.
    """
    from iceaggr.steps.context import make_context
    from iceaggr.steps.plan_shards import run_plan_shards

    context = make_context(run_id, experiment_name, work_uri, config)
    return run_plan_shards(context, raw_uri)
