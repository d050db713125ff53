"""Container step: a few dozen training steps that must learn before an expensive run starts."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Output

from components.image import IMAGE
from components.parameters import described


@dsl.component(base_image=IMAGE, install_kfp_package=False)
@described(
    learning_table="First and last loss of each short run.",
)
def check_learning(
    manifest: Input[Dataset],
    normalization: Input[Dataset],
    work_uri: str,
    experiment_name: str,
    run_id: str,
    run_name: str,
    config: dict,
    learning_table: Output[HTML],
) -> None:
    """Train for a few steps on the real shards; fail when the loss does not fall."""
    from pathlib import Path

    from iceaggr.steps.check_learning import run_check_learning
    from iceaggr.steps.context import make_context

    context = make_context(run_id, experiment_name, work_uri, config, run_name)
    run_check_learning(
        context, Path(manifest.path), Path(normalization.path), Path(learning_table.path)
    )
