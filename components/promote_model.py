"""Container step: champion or not, with the reason."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Markdown, Model, Output

from components.image import IMAGE
from components.parameters import described


@dsl.component(base_image=IMAGE, install_kfp_package=False)
@described(
    summary="The figures of the whole run.",
    verdict="Promoted or not, and why.",
)
def promote_model(
    manifest: Input[Dataset],
    model: Input[Model],
    evaluation: Input[Dataset],
    work_uri: str,
    experiment_name: str,
    run_id: str,
    run_name: str,
    config: dict,
    summary: Output[Dataset],
    verdict: Output[Markdown],
) -> None:
    """Register the model and compare it with the champion on the same events."""
    from pathlib import Path

    from iceaggr.progress import say_summary
    from iceaggr.steps.context import make_context
    from iceaggr.steps.promote_model import run_promote_model

    context = make_context(run_id, experiment_name, work_uri, config, run_name)
    try:
        facts = run_promote_model(
            context,
            Path(manifest.path),
            Path(model.path),
            Path(evaluation.path),
            summary_path=Path(summary.path),
            verdict_path=Path(verdict.path),
        )
    finally:
        # a promotion that fails leaves figures, too
        say_summary(Path(summary.path))
    summary.metadata.update(facts)
