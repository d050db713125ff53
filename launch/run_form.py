"""The run form: what each parameter of the pipeline means, and which values it may have.

The form lists parameters by their names, so names begin with the step that reads them, and carry
the unit where there is one. For an enumerated parameter the UI shows a list and the backend refuses
other values, both from `literals` in the compiled graph. The SDK cannot write these yet, so they
are added after compiling. The local runner ignores them: what steps are given, they check.
"""

from __future__ import annotations

from typing import Any

from iceaggr.errors import ConfigError

MEANINGS = {
    "config": "Settings of data, model, training, evaluation and promotion; see configs/.",
    "evaluate_cpu": 'Cores of the evaluation, such as "4".',
    "evaluate_memory": 'Memory of the evaluation, such as "16Gi".',
    "experiment_name": "MLflow experiment that this run appears in.",
    "raw_uri": "Folder of the raw events: train/batch_N.parquet, train_meta.parquet.",
    "shard_cpu": 'Cores of each sharding task, such as "2".',
    "shard_memory": 'Memory of each sharding task, such as "4Gi".',
    "train_cpu": 'Cores of each training machine, such as "4".',
    "train_gpu_count": "GPUs of each training machine, as text: KFP drops numbers; 0 = CPU, which"
    " training.device of config must allow.",
    "train_gpu_type": "Kubernetes resource name of the GPU.",
    "train_max_minutes": "Wall-clock limit of training in minutes; 0 = as configured.",
    "train_memory": 'Memory of each training machine, such as "16Gi"; /dev/shm counts.',
    "train_node_selector": 'Labels of the nodes that may train, {"label": "value"}.',
    "train_nodes": "Machines that train together, as text; from 2 on by a TrainJob.",
    "train_start_from": "Weights to begin with: the champion's, random ones (scratch), or what"
    " training.start_from of config says (configured).",
    "train_tolerations": 'Taints that training tolerates, [{"key": ..., "operator": ...}].',
    "work_uri": "Folder in object storage for shards, checkpoints and models.",
}

DROPDOWNS: dict[str, tuple[str, ...]] = {
    "train_gpu_count": ("0", "1", "2", "4", "8"),
    "train_nodes": ("1", "2", "4", "8"),
    "train_start_from": ("configured", "scratch", "champion"),
}


def add_dropdowns(root: dict[str, Any], dropdowns: dict[str, tuple[str, ...]]) -> None:
    """Write the allowed values into the root of a compiled graph.

    Raises: ConfigError if the graph lacks such a text parameter or its default is not allowed.
    """
    parameters = root.get("inputDefinitions", {}).get("parameters", {})
    for name, allowed in dropdowns.items():
        parameter = parameters.get(name, {})
        if parameter.get("parameterType") != "STRING":
            raise ConfigError(
                "a dropdown needs a text parameter",
                where=name,
                found=parameter.get("parameterType", "no such parameter"),
                expected="STRING",
            )
        check_allowed(name, parameter.get("defaultValue"), allowed, where="default")
        parameter["literals"] = list(allowed)


def check_allowed(name: str, value: Any, allowed: tuple[str, ...], where: str) -> None:
    """Check one value. Raises: ConfigError naming the allowed ones."""
    if value not in allowed:
        raise ConfigError(
            f"{name} has another value than allowed",
            where=where,
            found=repr(value),
            expected=f"one of {', '.join(map(repr, allowed))}",
        )
