"""Container step: training on several machines; this pod only launches, follows and cleans up."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_on_machines(
    manifest: Input[Dataset],
    normalization: Input[Dataset],
    work_uri: str,
    experiment_name: str,
    run_id: str,
    config: dict,
    max_train_minutes: float,
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
    """Train the configured model in a TrainJob; a retry adopts it or goes on from its checkpoint.

    Args:
        manifest: All shards of this run.
        normalization: Transform, centre and scale of each input.
        work_uri: Folder in object storage for everything the pipeline makes.
        experiment_name: MLflow experiment.
        run_id: Identity of the pipeline run.
        config: Settings, see configs/.
        max_train_minutes: Wall-clock limit of training; 0 = as configured.
        n_nodes: Machines, as text.
        gpu_count: GPUs of each machine as text, "0" = CPU.
        gpu_type: Kubernetes resource name of the GPU.
        cpu: Cores of each machine.
        memory: Memory of each machine.
        node_selector: Labels of the nodes that may train.
        tolerations: Taints that training tolerates.
        image: Image of the training pods.
        model: Where the trained model lies.
        metrics: Validation figures of the trained model.
    """
    from pathlib import Path

    from iceaggr.steps.context import make_context
    from iceaggr.steps.train_on_machines import parse_machines, run_train_on_machines

    context = make_context(run_id, experiment_name, work_uri, config)
    facts = run_train_on_machines(
        context,
        (Path(manifest.path), Path(normalization.path)),
        model_path=Path(model.path),
        max_train_minutes=max_train_minutes,
        machines=parse_machines(
            n_nodes, gpu_count, gpu_type, (cpu, memory), (node_selector, tolerations)
        ),
        image=image,
    )
    model.metadata.update(facts.labels)
    for name, value in facts.figures.items():
        metrics.log_metric(name, value)
