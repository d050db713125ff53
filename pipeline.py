"""The pipeline: raw events -> shards -> statistics -> learning check -> training -> verdict.

python pipeline.py compile --output F.yaml       the graph as KFP IR YAML
python pipeline.py run --raw-uri URI             the same graph on this machine
python pipeline.py submit --set raw_uri=URI      the same graph on a cluster
python pipeline.py schedule --cron "0 0 3 * * 0" the same graph every Sunday
"""

from pathlib import Path
from typing import Any

import yaml
from kfp import dsl

from components.check_learning import check_learning
from components.close_run import close_run
from components.cluster import place_training, settle
from components.compute_statistics import compute_statistics
from components.evaluate_model import evaluate_model
from components.plan_shards import plan_shards
from components.promote_model import promote_model
from components.shard_events import shard_events
from components.train_model import train_model

PIPELINE_NAME = "iceaggr-direction"
DEFAULT_CONFIG: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parent / "configs" / "laptop.yaml").read_text()
)
PARALLEL_SHARD_TASKS = 16
RUN_DEADLINE_HOURS = 14 * 24


def make_pipeline(cluster: bool) -> Any:
    """Draw the graph: the same steps here and on a cluster.

    cluster: also resources, retries, credentials and placement, which the local runner ignores.
    """

    def on_cluster(task: Any, **needs: Any) -> None:
        # KFP's own cache is off everywhere. Its key holds neither data nor code version (contents
        # of raw files, digest behind an image tag), a hit is never checked against storage, and
        # each run wants its own MLflow run. What is expensive is found again by content instead:
        # shards by raw file, settings and format version, checkpoints by run.
        task.set_caching_options(False)
        if cluster:
            settle(task, **needs)

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
        shard_memory: str = "8Gi",
        train_cpu: str = "4",
        train_gpu_count: str = "0",
        train_gpu_type: str = "nvidia.com/gpu",
        train_max_minutes: float = 0.0,
        train_memory: str = "16Gi",
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
            shard_memory: Memory of each sharding task, such as "8Gi".
            train_cpu: Cores of the training, such as "4".
            train_gpu_count: GPUs for training, as text since the backend drops numbers; "0" = CPU.
            train_gpu_type: Kubernetes resource name of the GPU.
            train_max_minutes: Wall-clock limit of training in minutes; 0 = as configured.
            train_memory: Memory of the training, such as "16Gi"; /dev/shm counts (up to 8Gi).
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
        closing = close_run(**run)
        on_cluster(closing, cpu="500m", memory="2Gi")
        with dsl.ExitHandler(closing, name="direction"):
            plan = plan_shards(raw_uri=raw_uri, **run)
            on_cluster(plan, cpu="1", memory="8Gi")
            with dsl.ParallelFor(
                plan.output, name="shard", parallelism=PARALLEL_SHARD_TASKS
            ) as work_unit:
                sharded = shard_events(work_unit=work_unit, **run)
                on_cluster(sharded, cpu=shard_cpu, memory=shard_memory)
            statistics = compute_statistics(
                unit_manifests=dsl.Collected(sharded.outputs["unit_manifest"]), **run
            )
            on_cluster(statistics, cpu="1", memory="8Gi")
            data = {
                "manifest": statistics.outputs["manifest"],
                "normalization": statistics.outputs["normalization"],
            }
            checked = check_learning(**data, **run)
            on_cluster(checked, cpu="2", memory="8Gi")
            trained = train_model(
                **data, **run, max_train_minutes=train_max_minutes, gpu_count=train_gpu_count
            ).after(checked)
            # more attempts than the others: nodes with GPUs come and go
            on_cluster(trained, cpu=train_cpu, memory=train_memory, n_retries=6)
            if cluster:
                place_training(
                    trained, train_gpu_count, train_gpu_type, train_node_selector, train_tolerations
                )
            evaluated = evaluate_model(
                manifest=statistics.outputs["manifest"],
                model=trained.outputs["model"],
                raw_uri=raw_uri,
                **run,
            )
            on_cluster(evaluated, cpu=evaluate_cpu, memory=evaluate_memory)
            promoted = promote_model(
                manifest=statistics.outputs["manifest"],
                model=trained.outputs["model"],
                evaluation=evaluated.outputs["evaluation"],
                **run,
            )
            on_cluster(promoted, cpu="2", memory="8Gi")

    return direction_pipeline


if __name__ == "__main__":
    from launch.commands import main

    main(make_pipeline)
