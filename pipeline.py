"""The pipeline: raw events -> shards -> statistics -> learning check -> training -> verdict.

python pipeline.py compile --output F.yaml       the graph as KFP IR YAML
python pipeline.py run --raw-uri URI             the same graph on this machine
python pipeline.py submit --set raw_uri=URI      the same graph on a cluster
python pipeline.py schedule --cron "0 0 3 * * 0" the same graph every Sunday
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from kfp import dsl

from components.check_learning import check_learning
from components.close_run import close_run
from components.cluster import place_training, settle
from components.compute_statistics import compute_statistics
from components.evaluate_model import evaluate_model
from components.image import IMAGE
from components.plan_shards import plan_shards
from components.promote_model import promote_model
from components.shard_events import shard_events
from components.train_model import train_model
from components.train_on_machines import train_on_machines

PIPELINE_NAME = "iceaggr-direction"
DEFAULT_CONFIG: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parent / "configs" / "laptop.yaml").read_text()
)
PARALLEL_SHARD_TASKS = 16
RUN_DEADLINE_HOURS = 14 * 24


def make_pipeline(cluster: bool) -> Any:
    """Draw the graph: the same steps here and on a cluster.

    cluster: also resources, retries, credentials and placement, which the local runner ignores,
    and the choice of several machines, which it cannot offer.
    """
    place = partial(_place, cluster)

    @dsl.pipeline(
        name=PIPELINE_NAME,
        description="Turns raw IceCube events into an evaluated and registered direction model.",
        pipeline_config=dsl.PipelineConfig(active_deadline_seconds=RUN_DEADLINE_HOURS * 3600),
    )
    def direction_pipeline(
        config: dict = DEFAULT_CONFIG,
        evaluate_cpu: str = "4",
        evaluate_memory: str = "16Gi",
        experiment_name: str = "iceaggr",
        raw_uri: str = "s3://iceaggr/raw",
        shard_cpu: str = "2",
        shard_memory: str = "4Gi",
        train_cpu: str = "4",
        train_gpu_count: str = "0",
        train_gpu_type: str = "nvidia.com/gpu",
        train_max_minutes: float = 0.0,
        train_memory: str = "16Gi",
        train_nodes: str = "1",
        train_node_selector: dict = {},  # noqa: B006 (KFP reads the default, nobody changes it)
        train_tolerations: list = [],  # noqa: B006
        work_uri: str = "s3://iceaggr/work",
    ) -> None:
        """Train, evaluate and register a direction model from raw events.

        Args:
            config: Settings of data, model, training, evaluation and promotion; see configs/.
            evaluate_cpu: Cores of the evaluation, such as "4".
            evaluate_memory: Memory of the evaluation, such as "16Gi".
            experiment_name: MLflow experiment that this run appears in.
            raw_uri: Folder of the raw events: train/batch_N.parquet, train_meta.parquet.
            shard_cpu: Cores of each sharding task, such as "2".
            shard_memory: Memory of each sharding task, such as "4Gi".
            train_cpu: Cores of each training machine, such as "4".
            train_gpu_count: GPUs of each training machine, as text: KFP drops numbers; "0" = CPU.
            train_gpu_type: Kubernetes resource name of the GPU.
            train_max_minutes: Wall-clock limit of training in minutes; 0 = as configured.
            train_memory: Memory of each training machine, such as "16Gi"; /dev/shm counts.
            train_nodes: Machines that train together, as text; from "2" on by a TrainJob.
            train_node_selector: Labels of the nodes that may train, {"label": "value"}.
            train_tolerations: Taints that training tolerates, [{"key": ..., "operator": ...}].
            work_uri: Folder in object storage for shards, checkpoints and models.
        """
        run: dict[str, Any] = {
            "work_uri": work_uri,
            "experiment_name": experiment_name,
            "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            "config": config,
        }
        placement = {"node_selector": train_node_selector, "tolerations": train_tolerations}
        machine = {"gpu_count": train_gpu_count, "gpu_type": train_gpu_type}
        closing = close_run(**run)
        place(closing, cpu="500m", memory="2Gi")
        with dsl.ExitHandler(closing, name="direction"):
            data = _data_steps(place, raw_uri, (shard_cpu, shard_memory), run)
            checked = check_learning(**data, **run)
            place(checked, cpu="2", memory="8Gi")
            training = {**data, **run, "max_train_minutes": train_max_minutes}
            if cluster:
                with dsl.If(train_nodes == "1", name="one-machine"):
                    here = train_model(**training, gpu_count=train_gpu_count).after(checked)
                    # more attempts than the others: nodes with GPUs come and go
                    place(here, cpu=train_cpu, memory=train_memory, n_retries=6)
                    place_training(here, **machine, **placement)
                with dsl.Else(name="several-machines"):
                    size = {"n_nodes": train_nodes, "cpu": train_cpu, "memory": train_memory}
                    spread = train_on_machines(
                        **training, **machine, **size, **placement, image=IMAGE
                    ).after(checked)
                    # this pod only launches and follows
                    place(spread, cpu="500m", memory="2Gi", n_retries=6)
                model = dsl.OneOf(here.outputs["model"], spread.outputs["model"])
            else:
                here = train_model(**training, gpu_count=train_gpu_count).after(checked)
                place(here)
                model = here.outputs["model"]
            evaluated = evaluate_model(
                manifest=data["manifest"], model=model, raw_uri=raw_uri, **run
            )
            place(evaluated, cpu=evaluate_cpu, memory=evaluate_memory)
            promoted = promote_model(
                manifest=data["manifest"],
                model=model,
                evaluation=evaluated.outputs["evaluation"],
                **run,
            )
            place(promoted, cpu="2", memory="8Gi")

    return direction_pipeline


def _place(cluster: bool, task: Any, **needs: Any) -> None:
    # KFP's own cache is off everywhere. Its key holds neither data nor code version (contents of
    # raw files, digest behind an image tag), a hit is never checked against storage, and each run
    # wants its own MLflow run. What is expensive is found again by content instead: shards by raw
    # file, settings and format version, checkpoints by run.
    task.set_caching_options(False)
    if cluster:
        settle(task, **needs)


def _data_steps(
    place: Callable[..., None], raw_uri: Any, shard_size: tuple[Any, Any], run: dict[str, Any]
) -> dict[str, Any]:
    """Draw the steps up to the statistics; gives manifest and normalisation."""
    plan = plan_shards(raw_uri=raw_uri, **run)
    place(plan, cpu="1", memory="8Gi")
    with dsl.ParallelFor(plan.output, name="shard", parallelism=PARALLEL_SHARD_TASKS) as work_unit:
        sharded = shard_events(work_unit=work_unit, **run)
        place(sharded, cpu=shard_size[0], memory=shard_size[1])
    statistics = compute_statistics(
        unit_manifests=dsl.Collected(sharded.outputs["unit_manifest"]), **run
    )
    place(statistics, cpu="1", memory="8Gi")
    return {name: statistics.outputs[name] for name in ("manifest", "normalization")}


if __name__ == "__main__":
    from launch.commands import main

    main(make_pipeline)
