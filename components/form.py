"""What the steps share: their image, what their parameters mean, which values the form allows."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from iceaggr import __version__
from iceaggr.errors import ConfigError
from iceaggr.steps.training_choices import STARTS

EXAMPLE_IMAGE = f"registry.example.org/iceaggr:{__version__}"
"""Stands for yours: no cluster can pull it. Makefile and manifests/image name the same."""
IMAGE = os.environ.get("ICEAGGR_IMAGE") or EXAMPLE_IMAGE
"""The one image of all steps; a deployment names its own, best by digest, in ICEAGGR_IMAGE."""


# The run form and the steps: what each parameter and artifact means, said once.
#
# The form lists parameters by their names, so names begin with the step that reads them, and carry
# the unit where there is one.

Step = TypeVar("Step", bound=Callable[..., object])

FORM_MEANINGS = {
    "config": "Settings of data, model, training, evaluation and promotion; see configs/.",
    "evaluate_cpu": 'Cores of the evaluation, such as "4".',
    "evaluate_memory": 'Memory of the evaluation, such as "16Gi".',
    "experiment_name": "MLflow experiment that this run appears in.",
    "raw_layout": "Layout of raw_uri: competition, or nubench, which is converted first.",
    "raw_uri": "Folder of the raw events: train/batch_N.parquet, train_meta.parquet.",
    "shard_cpu": 'Cores of each sharding task, such as "2".',
    "shard_memory": 'Memory of each sharding task, such as "4Gi".',
    "train_cpu": 'Cores of each training machine, such as "4".',
    "train_gpu_count": "GPUs of each training machine, one process each, as text: KFP drops"
    " numbers; 0 = CPU, which training.device of config must allow.",
    "train_gpu_type": "Kubernetes resource name of the GPU.",
    "train_max_minutes": "Wall-clock limit of training in minutes; 0 = as configured.",
    "train_memory": 'Memory of each training machine, such as "16Gi"; /dev/shm counts.',
    "train_node_selector": 'Labels of the nodes that may train, {"label": "value"}.',
    "train_nodes": "Machines that train together, as text; 2 or more by a TrainJob.",
    "train_start_from": "Weights to begin with: the champion's, random ones (scratch), or what"
    " training.start_from of config says (configured).",
    "train_tolerations": 'Taints that training tolerates, [{"key": ..., "operator": ...}].',
    "work_uri": "Folder in object storage for shards, checkpoints and models.",
}
"""A step that is given train_cpu calls it cpu, and so on."""

MEANINGS = {
    **{name.removeprefix("train_"): meaning for name, meaning in FORM_MEANINGS.items()},
    "max_train_minutes": FORM_MEANINGS["train_max_minutes"],
    "n_nodes": FORM_MEANINGS["train_nodes"],
    "run_id": "Identity of the pipeline run.",
    "run_name": "Name of the pipeline run, for people.",
    # artifacts of more than one step
    "manifest": "All shards of this run.",
    "normalization": "Transform, centre and scale of each input.",
    "model": "Where the trained model lies.",
    "evaluation": "Figures on the test split, and where the table of every test event lies.",
}


def described(own: Mapping[str, str] = MEANINGS, **others: str) -> Callable[[Step], Step]:
    """Add to a docstring what each parameter means: KFP reads it there and shows it.

    own: meanings by name.  others: those that only this function has.
    Raises: KeyError if a parameter has no meaning.
    """

    def decorate(step: Step) -> Step:
        known = {**own, **others}
        lines = [f"    {name}: {known[name]}" for name in inspect.signature(step).parameters]
        step.__doc__ = "\n".join([f"{inspect.getdoc(step)}\n", "Args:", *lines])
        return step

    return decorate


# For an enumerated parameter the UI shows a list and the backend refuses other values, both from
# `literals` in the compiled graph. The SDK cannot write these yet, so they are added after
# compiling. The local runner ignores them: what steps are given, they check.

LAYOUTS = ("competition", "nubench")
"""Layouts of raw events; the first is our own, the others are converted."""

DROPDOWNS: dict[str, tuple[str, ...]] = {
    "raw_layout": LAYOUTS,
    "train_gpu_count": ("0", "1", "2", "4", "8"),
    "train_nodes": ("1", "2", "4", "8"),
    "train_start_from": STARTS,
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
            f"{name} has a value that is not allowed",
            where=where,
            found=repr(value),
            expected=f"one of {', '.join(map(repr, allowed))}",
        )
