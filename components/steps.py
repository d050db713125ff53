"""The container steps, in the order in which they run."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Markdown, Metrics, Model, Output

from components.form import IMAGE, described


@dsl.component(base_image=IMAGE, install_kfp_package=False)
@described()
def plan_conversion(
    raw_uri: str,
    work_uri: str,
    experiment_name: str,
    run_id: str,
    run_name: str,
    config: dict,
) -> list[str]:
    """Look at a set in another layout and cut its conversion into work units."""
    from iceaggr.steps.context import make_context
    from iceaggr.steps.convert import run_plan_conversion

    context = make_context(run_id, experiment_name, work_uri, config, run_name)
    return run_plan_conversion(context, raw_uri)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
@described(work_unit="One string of plan_conversion.")
def convert_events(work_unit: str) -> None:
    """Convert one work unit into raw events; what is already there stays."""
    from iceaggr.steps.convert import run_convert_events

    run_convert_events(work_unit)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
@described(conversion="Work units that converted raw_uri; none = it needs no conversion.")
def plan_shards(
    raw_uri: str,
    work_uri: str,
    experiment_name: str,
    run_id: str,
    run_name: str,
    config: dict,
    gpu_count: str,
    conversion: list = [],  # noqa: B006
) -> list[str]:
    """List the raw files and cut them into work units of about equal size, a short string each."""
    from iceaggr.steps.context import make_context
    from iceaggr.steps.plan_shards import run_plan_shards

    context = make_context(run_id, experiment_name, work_uri, config, run_name)
    return run_plan_shards(context, raw_uri, gpu_count, conversion)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
@described(
    work_unit="One string of plan_shards.",
    unit_manifest="What was written, and what was rejected and why.",
)
def shard_events(
    work_unit: str,
    work_uri: str,
    run_id: str,
    unit_manifest: Output[Dataset],
) -> None:
    """Write the shards of one work unit to object storage; what is already there is reused."""
    from pathlib import Path

    from iceaggr.steps.plan_shards import planned_context, run_shard_events

    context = planned_context(run_id, work_uri)
    facts = run_shard_events(context, work_unit, Path(unit_manifest.path))
    unit_manifest.metadata.update(facts)


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


@dsl.component(base_image=IMAGE, install_kfp_package=False)
@described(learning_table="First and last loss of each short run.")
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

    from iceaggr.steps.context import make_context
    from iceaggr.steps.train_model import run_check_learning

    context = make_context(run_id, experiment_name, work_uri, config, run_name)
    run_check_learning(
        context, Path(manifest.path), Path(normalization.path), Path(learning_table.path)
    )


@dsl.component(base_image=IMAGE, install_kfp_package=False)
@described(metrics="Validation figures of the trained model.")
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
    from iceaggr.steps.train_request import run_train_here
    from iceaggr.steps.training_choices import TrainingChoices

    context = make_context(run_id, experiment_name, work_uri, config, run_name)
    facts = run_train_here(
        context,
        Path(manifest.path),
        Path(normalization.path),
        model_path=Path(model.path),
        choices=TrainingChoices(max_train_minutes, gpu_count, start_from),
    )
    model.metadata.update(facts.labels)
    for name, value in facts.figures.items():
        metrics.log_metric(name, value)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
@described(
    image="Image of the training pods.",
    metrics="Validation figures of the trained model.",
)
def train_on_machines(
    manifest: Input[Dataset],
    normalization: Input[Dataset],
    work_uri: str,
    experiment_name: str,
    run_id: str,
    run_name: str,
    config: dict,
    max_train_minutes: float,
    start_from: str,
    n_nodes: str,
    gpu_count: str,
    gpu_type: str,
    cpu: str,
    memory: str,
    node_selector: dict,
    tolerations: list,
    image: str,
    model: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Train the configured model in a TrainJob; a retry adopts it or resumes."""
    from pathlib import Path

    from iceaggr.steps.context import make_context
    from iceaggr.steps.train_request import parse_machines, run_train_on_machines
    from iceaggr.steps.training_choices import TrainingChoices

    context = make_context(run_id, experiment_name, work_uri, config, run_name)
    facts = run_train_on_machines(
        context,
        Path(manifest.path),
        Path(normalization.path),
        model_path=Path(model.path),
        choices=TrainingChoices(max_train_minutes, gpu_count, start_from),
        machines=parse_machines(
            n_nodes, gpu_count, gpu_type, cpu, memory, node_selector, tolerations
        ),
        image=image,
    )
    model.metadata.update(facts.labels)
    for name, value in facts.figures.items():
        metrics.log_metric(name, value)


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


@dsl.component(base_image=IMAGE, install_kfp_package=False)
@described(status="How the run ended.")
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
