"""Container step: score the model and the classical baselines on events nobody trained on."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from components.image import IMAGE
from components.parameters import described


@dsl.component(base_image=IMAGE, install_kfp_package=False)
@described(
    report="The page with all tables and plots.",
    metrics="Opening angles in degrees.",
)
def evaluate_model(
    manifest: Input[Dataset],
    model: Input[Model],
    raw_uri: str,
    work_uri: str,
    experiment_name: str,
    run_id: str,
    run_name: str,
    config: dict,
    evaluation: Output[Dataset],
    report: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Score model and baselines on the test split and write the report."""
    from pathlib import Path

    from iceaggr.steps.context import make_context
    from iceaggr.steps.evaluate_model import run_evaluate_model

    context = make_context(run_id, experiment_name, work_uri, config, run_name)
    figures = run_evaluate_model(
        context,
        Path(manifest.path),
        Path(model.path),
        raw_uri,
        evaluation_path=Path(evaluation.path),
        report_path=Path(report.path),
    )
    for name, value in figures.items():
        metrics.log_metric(name, value)
