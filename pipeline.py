"""The pipeline: raw events -> shards -> statistics -> learning check -> training -> verdict.

python pipeline.py compile --output F.yaml       the graph as KFP IR YAML
python pipeline.py run --raw-uri URI             the same graph on this machine
"""

from pathlib import Path
from typing import Any

import yaml
from kfp import dsl

from components.check_learning import check_learning
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


@dsl.pipeline(
    name=PIPELINE_NAME,
    description="Turns raw IceCube events into an evaluated and registered direction model.",
)
def direction_pipeline(
    config: dict = DEFAULT_CONFIG,
    experiment_name: str = "iceaggr",
    gpu_count: str = "0",
    gpu_type: str = "nvidia.com/gpu",
    max_train_minutes: float = 0.0,
    raw_uri: str = "s3://iceaggr/raw",
    work_uri: str = "s3://iceaggr/work",
) -> None:
    """Train, evaluate and register a direction model from raw events.

    Args:
        config: Settings of data, model, training, evaluation and promotion; see configs/.
        experiment_name: MLflow experiment that this run appears in.
        gpu_count: GPUs for training, as text because the backend drops numbers; "0" = CPU.
        gpu_type: Kubernetes resource name of the GPU.
        max_train_minutes: Wall-clock limit of training in minutes; 0 = as configured.
        raw_uri: Folder of the raw events: train/batch_N.parquet, train_meta.parquet.
        work_uri: Folder in object storage for shards, checkpoints and models.
    """
    run: dict[str, Any] = {
        "work_uri": work_uri,
        "experiment_name": experiment_name,
        "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        "config": config,
    }
    plan = plan_shards(raw_uri=raw_uri, **run)
    # new raw files must be found although no parameter changed
    plan.set_caching_options(False)
    with dsl.ParallelFor(plan.output, name="shard", parallelism=PARALLEL_SHARD_TASKS) as work_unit:
        sharded = shard_events(work_unit=work_unit, **run)
    statistics = compute_statistics(
        unit_manifests=dsl.Collected(sharded.outputs["unit_manifest"]), **run
    )
    data = {
        "manifest": statistics.outputs["manifest"],
        "normalization": statistics.outputs["normalization"],
    }
    checked = check_learning(**data, **run)
    trained = train_model(
        **data, **run, max_train_minutes=max_train_minutes, gpu_count=gpu_count
    ).after(checked)
    trained.set_accelerator_type(gpu_type).set_accelerator_limit(gpu_count)
    evaluated = evaluate_model(
        manifest=statistics.outputs["manifest"],
        model=trained.outputs["model"],
        raw_uri=raw_uri,
        **run,
    )
    promoted = promote_model(
        manifest=statistics.outputs["manifest"],
        model=trained.outputs["model"],
        evaluation=evaluated.outputs["evaluation"],
        **run,
    )
    promoted.set_caching_options(False)


if __name__ == "__main__":
    from launch.commands import main

    main(direction_pipeline)
