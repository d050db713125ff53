"""The pipeline: raw events -> shards -> statistics -> learning check -> training -> verdict.

python pipeline.py compile --output F.yaml       the graph as KFP IR YAML
python pipeline.py run --raw-uri URI             the same graph on this machine
python pipeline.py submit --set raw_uri=URI      the same graph on a cluster
python pipeline.py schedule --cron "0 0 3 * * 0" the same graph every Sunday
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    # the library of this checkout, whatever PYTHONPATH holds
    sys.path.insert(1, str(Path(__file__).parent / "src"))
    from iceaggr.entry import begin

    # before the imports below, which take seconds
    begin()

from typing import Any

import yaml
from kfp import dsl, kubernetes
from kfp.dsl.pipeline_channel import PipelineChannel

from components.form import FORM_MEANINGS, IMAGE, LAYOUTS, described
from components.steps import (
    check_learning,
    close_run,
    compute_statistics,
    convert_events,
    evaluate_model,
    plan_conversion,
    plan_shards,
    promote_model,
    shard_events,
    train_model,
    train_on_machines,
)
from iceaggr.service_settings import (
    OBJECT_STORE_ENVIRONMENT,
    OBJECT_STORE_SECRET,
    SETTINGS_CONFIG_MAP,
    SETTINGS_ENVIRONMENT,
    TRACKING_ENVIRONMENT,
    TRACKING_SECRET,
)

PIPELINE_NAME = "iceaggr-direction"
DEFAULT_CONFIG: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parent / "configs" / "laptop.yaml").read_text(encoding="utf-8")
)
PARALLEL_SHARD_TASKS = 16
RUN_DEADLINE_HOURS = 14 * 24
"""After which Argo ends a run, whatever it does."""


def make_pipeline(
    cluster: bool,
    run_name: str = dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
    here_layout: str = LAYOUTS[0],
) -> Any:
    """Draw the graph: the same steps here and on a cluster.

    cluster: also resources, retries, credentials and placement, which the local runner ignores,
    and the choice of several machines, which it cannot offer.
    run_name: what MLflow calls the run; KFP puts its own name of the run there
    here_layout: of the raw events here, where the runner knows no branches; a cluster's form asks
    """

    @dsl.pipeline(
        name=PIPELINE_NAME,
        description="Turns raw neutrino events into an evaluated and registered direction model.",
        pipeline_config=dsl.PipelineConfig(active_deadline_seconds=RUN_DEADLINE_HOURS * 3600),
    )
    @described(FORM_MEANINGS)
    def direction_pipeline(
        config: dict = DEFAULT_CONFIG,
        evaluate_cpu: str = "4",
        evaluate_memory: str = "16Gi",
        experiment_name: str = "iceaggr",
        raw_layout: str = LAYOUTS[0],
        raw_uri: str = "s3://iceaggr/raw",
        shard_cpu: str = "2",
        shard_memory: str = "4Gi",
        train_cpu: str = "4",
        train_gpu_count: str = "0",
        train_gpu_type: str = "nvidia.com/gpu",
        train_max_minutes: float = 0.0,
        train_memory: str = "16Gi",
        train_node_selector: dict = {},  # noqa: B006 (KFP reads the default, nobody changes it)
        train_nodes: str = "1",
        train_start_from: str = "configured",
        train_tolerations: list = [],  # noqa: B006
        work_uri: str = "s3://iceaggr/work",
    ) -> None:
        """Train, evaluate and register a direction model from raw events."""
        # KFP reads the parameters above, one by one; from here on they are one form
        _draw(cluster, run_name, here_layout, locals())

    return direction_pipeline


def _draw(cluster: bool, run_name: str, here_layout: str, form: dict[str, Any]) -> None:
    place = partial(_place, cluster)
    run = {name: form[name] for name in ("work_uri", "experiment_name", "config")}
    run |= {"run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER, "run_name": run_name}
    closing = place(close_run(**run), cpu="500m", memory="2Gi")
    with dsl.ExitHandler(closing, name="direction"):
        work_units = _planned(place, "" if cluster else here_layout, form, run)
        data = _data_steps(place, work_units, form, run)
        checked = place(check_learning(**data, **run), cpu="2", memory="8Gi")
        model = _training_steps(place, cluster, form, {**data, **run}, checked)
        result = {"manifest": data["manifest"], "model": model, **run}
        evaluated = place(
            evaluate_model(raw_uri=form["raw_uri"], **result),
            cpu=form["evaluate_cpu"],
            memory=form["evaluate_memory"],
        )
        promoted = promote_model(evaluation=evaluated.outputs["evaluation"], **result)
        place(promoted, cpu="2", memory="8Gi")


def _place(cluster: bool, task: Any, **needs: Any) -> Any:
    # KFP's own cache is off everywhere: each step has side effects, in its run's MLflow run and
    # folder. Its key holds neither data nor code version (contents of raw files, digest behind an
    # image tag), and a hit is never checked against storage. What is expensive is found again by
    # explicit versions of both instead, see iceaggr.shards.writing; checkpoints by run.
    task.set_caching_options(False)
    return settle(task, **needs) if cluster else task


def _planned(
    place: Callable[..., Any], here_layout: str, form: dict[str, Any], run: dict[str, Any]
) -> Any:
    """Draw the plan of the shards, and before it the conversion of another layout.

    here_layout: '' draws both ways, of which the form chooses one.
    """
    planned = {
        "raw_uri": form["raw_uri"],
        # so that settings which need a GPU fail at once in a run that has none
        "gpu_count": form["train_gpu_count"],
        **run,
    }
    needs = {"cpu": "1", "memory": "8Gi"}
    if here_layout == "competition":
        return place(plan_shards(conversion=[], **planned), **needs).output
    if here_layout:
        return _converted(place, form, run, planned, needs).output
    with dsl.If(form["raw_layout"] == "nubench", name="other-layout"):
        of_others = _converted(place, form, run, planned, needs)
    with dsl.Else(name="own-layout"):
        own = place(plan_shards(conversion=[], **planned), **needs)
    return dsl.OneOf(of_others.output, own.output)


def _converted(
    place: Callable[..., Any],
    form: dict[str, Any],
    run: dict[str, Any],
    planned: dict[str, Any],
    needs: dict[str, str],
) -> Any:
    """Draw the conversion, and the plan of what it made."""
    conversion = place(plan_conversion(raw_uri=form["raw_uri"], **run), **needs)
    with dsl.ParallelFor(conversion.output, name="convert", parallelism=8) as unit:
        made = place(
            convert_events(work_unit=unit), cpu=form["shard_cpu"], memory=form["shard_memory"]
        )
    plan = plan_shards(conversion=conversion.output, **planned).after(made)
    return place(plan, **needs)


def _data_steps(
    place: Callable[..., Any], work_units: Any, form: dict[str, Any], run: dict[str, Any]
) -> dict[str, Any]:
    """Draw the steps up to the statistics; gives manifest and normalisation."""
    with dsl.ParallelFor(work_units, name="shard", parallelism=PARALLEL_SHARD_TASKS) as work_unit:
        # told its run alone: it reads the settings there, see iceaggr.steps.plan_shards
        sharded = shard_events(work_unit=work_unit, work_uri=run["work_uri"], run_id=run["run_id"])
        place(sharded, cpu=form["shard_cpu"], memory=form["shard_memory"])
    unit_manifests = dsl.Collected(sharded.outputs["unit_manifest"])
    statistics = place(
        compute_statistics(unit_manifests=unit_manifests, **run), cpu="1", memory="8Gi"
    )
    return {name: statistics.outputs[name] for name in ("manifest", "normalization")}


def _training_steps(
    place: Callable[..., Any],
    cluster: bool,
    form: dict[str, Any],
    inputs: dict[str, Any],
    checked: Any,
) -> Any:
    """Draw training with the choices of the form; gives the model."""
    training = {
        **inputs,
        "max_train_minutes": form["train_max_minutes"],
        "gpu_count": form["train_gpu_count"],
        "start_from": form["train_start_from"],
    }
    if cluster:
        return _training_on_cluster(place, form, training, checked)
    return place(train_model(**training).after(checked)).outputs["model"]


def _training_on_cluster(
    place: Callable[..., Any], form: dict[str, Any], training: dict[str, Any], checked: Any
) -> Any:
    """Draw training in one pod or, from two nodes on, in a TrainJob; gives the model."""
    size = {"cpu": form["train_cpu"], "memory": form["train_memory"]}
    where = {name: form[f"train_{name}"] for name in ("gpu_type", "node_selector", "tolerations")}
    nodes = form["train_nodes"]
    # more attempts than the other steps have: nodes with GPUs come and go
    n_retries = 6
    with dsl.If(nodes == "1", name="one-machine"):
        here = train_model(**training).after(checked)
        place(here, **size, n_retries=n_retries)
        place_training(here, gpu_count=training["gpu_count"], **where)
    with dsl.Else(name="several-machines"):
        spread = train_on_machines(**training, **size, **where, n_nodes=nodes, image=IMAGE)
        # this pod only launches and follows
        place(spread.after(checked), cpu="500m", memory="2Gi", n_retries=n_retries)
    return dsl.OneOf(here.outputs["model"], spread.outputs["model"])


# What only a cluster acts on: resources, retries, credentials, placement of the training pod. The
# local runner gets none of it: there a failing step ends the run at once, and credentials are those
# of the shell. Nothing here holds a value of a credential, only the names of its keys.


def settle(task: Any, cpu: Any, memory: Any, n_retries: int = 2) -> Any:
    """Give a step its resources, its retries and its credentials. Returns the step.

    cpu, memory: Kubernetes quantities such as "2" and "8Gi", or string parameters of the pipeline.
    """
    _bring(task, cpu, memory)
    task.set_cpu_request(cpu)
    # request = limit: a pod that may use more memory than it asked for is the first to be evicted
    task.set_memory_request(memory).set_memory_limit(memory)
    # all steps are idempotent, and training goes on from its last checkpoint. The longest duration
    # is no cap on a pause: Argo counts it from the step's first start and ends a pod that works
    # beyond it (retryStrategy.backoff.maxDuration), and a step that is not given one has an hour.
    # So it is the run's own deadline, which always comes first
    task.set_retry(
        n_retries,
        backoff_duration="30s",
        backoff_factor=2.0,
        backoff_max_duration=f"{RUN_DEADLINE_HOURS * 3600}s",
    )
    # network policies know our pods by it
    kubernetes.add_pod_label(task, "app.kubernetes.io/part-of", "iceaggr")
    # as the image does by itself; `restricted` pod security wants it said
    kubernetes.set_security_context(task, run_as_non_root=True)
    # optional: where something is missing the step says what, while Kubernetes would wait silently;
    # with workload identity there are no keys at all
    kubernetes.use_config_map_as_env(
        task, SETTINGS_CONFIG_MAP, dict(SETTINGS_ENVIRONMENT), optional=True
    )
    kubernetes.use_secret_as_env(
        task, OBJECT_STORE_SECRET, dict(OBJECT_STORE_ENVIRONMENT), optional=True
    )
    kubernetes.use_secret_as_env(task, TRACKING_SECRET, dict(TRACKING_ENVIRONMENT), optional=True)
    return task


def place_training(
    task: Any, gpu_count: Any, gpu_type: Any, node_selector: Any, tolerations: Any
) -> Any:
    """Put the training step on a node with GPUs. Returns the step.

    gpu_count: a string, never a number: the backend drops numbers without an error, and the pod
    would start without a GPU.
    """
    _bring(task, gpu_count, gpu_type)
    task.set_accelerator_type(gpu_type).set_accelerator_limit(gpu_count)
    kubernetes.add_node_selector_json(task, node_selector)
    kubernetes.add_toleration_json(task, tolerations)
    # NCCL and gloo exchange data of one machine through shared memory, of which a pod has 64 MiB
    kubernetes.empty_dir_mount(
        task, volume_name="dshm", mount_path="/dev/shm", medium="Memory", size_limit="8Gi"
    )
    return task


def _bring(task: Any, *values: Any) -> None:
    # the compiler hands a parameter down into loops and exit handlers only if a step there is known
    # to read it, and it overlooks what is read for resources alone
    task.register_pipeline_channels([v for v in values if isinstance(v, PipelineChannel)])


if __name__ == "__main__":
    from iceaggr.entry import run
    from launch.commands import main

    run(lambda: main(make_pipeline))
