"""Container step: champion or not, with the reason."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Markdown, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote_model(
    manifest: Input[Dataset],
    model: Input[Model],
    evaluation: Input[Dataset],
    work_uri: str,
    experiment_name: str,
    run_id: str,
    config: dict,
    summary: Output[Dataset],
    verdict: Output[Markdown],
) -> None:
    """Register the model and compare it with the champion on the same events.

    Args:
        manifest: All shards of this run.
        model: Where the trained model lies.
        evaluation: Figures of the model on the test split.
        work_uri: Folder in object storage for everything the pipeline makes.
        experiment_name: MLflow experiment.
        run_id: Identity of the pipeline run.
        config: Settings, see configs/.
        summary: The figures of the whole run.
        verdict: Promoted or not, and why.
    """
    from pathlib import Path

    from iceaggr.steps.context import make_context
    from iceaggr.steps.promote_model import run_promote_model

    context = make_context(run_id, experiment_name, work_uri, config)
    facts = run_promote_model(
        context,
        Path(manifest.path),
        Path(model.path),
        Path(evaluation.path),
        summary_path=Path(summary.path),
        verdict_path=Path(verdict.path),
    )
    summary.metadata.update(facts)
