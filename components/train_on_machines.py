"""Container step: training on several machines; this pod only launches, follows and cleans up."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.image import IMAGE
from components.parameters import described


@dsl.component(base_image=IMAGE, install_kfp_package=False)
@described(
    n_nodes="Machines, as text.",
    gpu_type="Kubernetes resource name of the GPU.",
    cpu="Cores of each machine.",
    memory="Memory of each machine.",
    node_selector="Labels of the nodes that may train.",
    tolerations="Taints that training tolerates.",
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
    from iceaggr.steps.train_on_machines import parse_machines, run_train_on_machines
    from iceaggr.steps.training_choices import TrainingChoices

    context = make_context(run_id, experiment_name, work_uri, config, run_name)
    facts = run_train_on_machines(
        context,
        (Path(manifest.path), Path(normalization.path)),
        model_path=Path(model.path),
        choices=TrainingChoices(max_train_minutes, gpu_count, start_from),
        machines=parse_machines(
            n_nodes, gpu_count, gpu_type, (cpu, memory), (node_selector, tolerations)
        ),
        image=image,
    )
    model.metadata.update(facts.labels)
    for name, value in facts.figures.items():
        metrics.log_metric(name, value)
