"""Container step: training, resumable, with checkpoints in object storage."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.image import IMAGE
from components.parameters import described


@dsl.component(base_image=IMAGE, install_kfp_package=False)
@described(
    metrics="Validation figures of the trained model.",
)
def train_model(
    manifest: Input[Dataset],
    normalization: Input[Dataset],
    work_uri: str,
    experiment_name: str,
    run_id: str,
    run_name: str,
    config: dict,
    max_train_minutes: float,
    start_from: str,
    gpu_count: str,
    model: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Train the configured model; a retry goes on from the last checkpoint."""
    from pathlib import Path

    from iceaggr.steps.context import make_context
    from iceaggr.steps.train_here import run_train_here
    from iceaggr.steps.training_choices import TrainingChoices

    context = make_context(run_id, experiment_name, work_uri, config, run_name)
    facts = run_train_here(
        context,
        (Path(manifest.path), Path(normalization.path)),
        model_path=Path(model.path),
        choices=TrainingChoices(max_train_minutes, gpu_count, start_from),
    )
    model.metadata.update(facts.labels)
    for name, value in facts.figures.items():
        metrics.log_metric(name, value)
