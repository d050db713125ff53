"""Container step: training, resumable, with checkpoints in object storage."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_model(
    manifest: Input[Dataset],
    normalization: Input[Dataset],
    work_uri: str,
    experiment_name: str,
    run_id: str,
    config: dict,
    max_train_minutes: float,
    gpu_count: str,
    model: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Train the configured model; a retry goes on from the last checkpoint.

    Args:
        manifest: All shards of this run.
        normalization: Transform, centre and scale of each input.
        work_uri: Folder in object storage for everything the pipeline makes.
        experiment_name: MLflow experiment.
        run_id: Identity of the pipeline run.
        config: Settings, see configs/.
        max_train_minutes: Wall-clock limit of training; 0 = as configured.
        gpu_count: GPUs of this step as text, one process each; "0" = CPU.
        model: Where the trained model lies.
        metrics: Validation figures of the trained model.
    """
    from pathlib import Path

    from iceaggr.steps.context import make_context
    from iceaggr.steps.train_here import run_train_here

    context = make_context(run_id, experiment_name, work_uri, config)
    facts = run_train_here(
        context,
        (Path(manifest.path), Path(normalization.path)),
        model_path=Path(model.path),
        max_train_minutes=max_train_minutes,
        gpu_count=gpu_count,
    )
    model.metadata.update(facts.labels)
    for name, value in facts.figures.items():
        metrics.log_metric(name, value)
