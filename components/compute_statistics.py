"""Container step: merge the sketches of the train split into normalisation and data card."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from components.image import IMAGE
from components.parameters import described


@dsl.component(base_image=IMAGE, install_kfp_package=False)
@described(
    unit_manifests="The manifests that shard_events wrote.",
    data_card="The page that describes the data.",
    metrics="Counts of events and pulses.",
)
def compute_statistics(
    unit_manifests: Input[list[Dataset]],
    work_uri: str,
    experiment_name: str,
    run_id: str,
    run_name: str,
    config: dict,
    manifest: Output[Dataset],
    normalization: Output[Dataset],
    data_card: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Merge the manifests of all work units and fit the normalisation on the train split."""
    from pathlib import Path

    from iceaggr.steps.compute_statistics import run_compute_statistics
    from iceaggr.steps.context import make_context

    context = make_context(run_id, experiment_name, work_uri, config, run_name)
    facts = run_compute_statistics(
        context,
        [Path(unit.path) for unit in unit_manifests],
        manifest_path=Path(manifest.path),
        normalization_path=Path(normalization.path),
        data_card_path=Path(data_card.path),
    )
    manifest.metadata.update(facts)
    for name, value in facts.items():
        metrics.log_metric(name, value)
