"""What a step could not use, found before a run is sent: places, sizes, times, placement."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from iceaggr.addresses import without_credentials
from iceaggr.config import ExperimentConfig
from iceaggr.errors import ConfigError
from iceaggr.steps.training_choices import TrainingChoices
from iceaggr.storage.apart import refuse_work_among_raw
from launch.names import check_display_name

# Source: quantity.go of k8s.io/apimachinery: sign, digits, then a binary or decimal suffix
_QUANTITY = re.compile(
    r"(?P<number>\d+(\.\d*)?|\.\d+)(?P<suffix>[KMGTPE]i|[mkMGTPE]|[eE][+-]?\d+)?", re.ASCII
)
_DECIMAL = {"m": 1e-3} | {suffix: 1000.0**power for power, suffix in enumerate("kMGTPE", start=1)}
_BINARY = {f"{suffix}i": 1024.0**power for power, suffix in enumerate("KMGTPE", start=1)}
# a Python interpreter with its libraries does not begin with less
_LEAST_MEMORY = 64 * 1024**2
# Source: Kubernetes, "Labels and Selectors": [domain/]name, each part of at most 63 characters
_LABEL_NAME = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = re.compile(rf"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_LABEL_NAME}")
_LABEL_VALUE = re.compile(rf"({_LABEL_NAME})?")
_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]*(/.*)?")
# Source: Kubernetes, "Extended resources": a domain, then a name
_RESOURCE = re.compile(r"[a-z0-9.-]+\.[a-z0-9-]+/[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
_TOLERATION_FIELDS = ("key", "operator", "value", "effect", "tolerationSeconds")
# more than any machine has
_MOST_CORES = 4096
_MINUTES = "0 or more minutes; 0 = as configured"
_EFFECTS = ("", "NoSchedule", "PreferNoSchedule", "NoExecute")


def check_folders(raw_uri: str, work_uri: str, where: str) -> None:
    """Check that results have a folder outside the raw events. Raises: ConfigError."""
    if raw_uri:
        refuse_work_among_raw(raw_uri.rstrip("/"), work_uri.rstrip("/"), where)


def check_minutes(minutes: float, where: str) -> None:
    """Check a limit of training. Raises: ConfigError."""
    if not _is_limit(minutes):
        raise ConfigError("not a limit of training", where=where, found=minutes, expected=_MINUTES)


def check_device(config: ExperimentConfig, gpu_count: str, where: str) -> None:
    """Check that settings and number of GPUs do not contradict each other. Raises: ConfigError."""
    try:
        TrainingChoices(gpu_count=gpu_count).applied_to(config)
    except ConfigError as error:
        raise ConfigError(
            error.what,
            where=where,
            found=error.found,
            expected=error.expected,
            remedy=error.remedy,
        ) from None


def check_gpus_here(config: ExperimentConfig, gpu_count: str) -> None:
    """Check that this machine has the GPUs that a run insists on. Raises: TrainingError."""
    choices = TrainingChoices(gpu_count=gpu_count)
    training = choices.applied_to(config).training
    if training.device == "cuda":
        # slow to import, and otherwise not needed here
        from iceaggr.training.device import check_gpus

        check_gpus(training, choices.n_processes)


def check_values(values: dict[str, Any], sources: Mapping[str, str]) -> None:
    """Check the values of a run by the endings of their names.

    sources: option or line of a file that a value comes from, by name.  Raises: ConfigError.
    """
    for name, value in values.items():
        if name == "experiment_name":
            check_display_name(value, where=sources[name])
        for ending, (fits, expected) in _CHECKS.items():
            if name.endswith(ending) and not fits(value):
                raise ConfigError(
                    "value that no step can use",
                    where=sources[name],
                    found=without_credentials(repr(value)),
                    expected=expected,
                )


def _is_place(value: Any) -> bool:
    # each step is a pod of its own: a file:// of one is not there in the next
    place = str(value)
    readable = place.isprintable() and place == place.strip()
    secretive = without_credentials(place) != place
    return (
        readable
        and not secretive
        and ".." not in place.split("/")
        and _S3.fullmatch(place) is not None
    )


def _quantity(value: Any) -> float:
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        return 0.0
    suffix = match["suffix"] or ""
    if suffix[1:] and suffix[0] in "eE" and suffix[1:] != "i":
        return float(match[0])
    return float(match["number"]) * ({"": 1.0} | _DECIMAL | _BINARY)[suffix]


def _is_memory(value: Any) -> bool:
    return _LEAST_MEMORY <= _quantity(value) < math.inf


def _is_cpu(value: Any) -> bool:
    # a quantity of bytes is one, too: 4Gi would be four thousand million cores
    return str(value)[-1:] in "0123456789.m" and 0 < _quantity(value) <= _MOST_CORES


def _is_limit(value: Any) -> bool:
    return 0 <= float(value) < math.inf


def _is_resource(value: Any) -> bool:
    return _RESOURCE.fullmatch(str(value)) is not None


def _is_selector(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _LABEL_KEY.fullmatch(key) and isinstance(item, str) and _LABEL_VALUE.fullmatch(item)
        for key, item in value.items()
    )


def _are_tolerations(value: Any) -> bool:
    return isinstance(value, list) and all(_is_toleration(item) for item in value)


def _is_toleration(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and all(
            key in _TOLERATION_FIELDS
            and (_is_whole(value) if key == "tolerationSeconds" else isinstance(value, str))
            for key, value in item.items()
        )
        and _tolerates(item)
    )


def _is_whole(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value == int(value)


def _tolerates(item: dict[str, Any]) -> bool:
    # Source: ValidateTolerations of Kubernetes' pkg/apis/core/validation
    key, operator = item.get("key", ""), item.get("operator", "") or "Equal"
    value, effect = item.get("value", ""), item.get("effect", "")
    if key and not _LABEL_KEY.fullmatch(key):
        return False
    if operator == "Exists":
        matches = not value
    else:
        matches = operator == "Equal" and bool(key) and bool(_LABEL_VALUE.fullmatch(value))
    timed = "tolerationSeconds" in item
    return matches and effect in _EFFECTS and (not timed or effect == "NoExecute")


_CHECKS: dict[str, tuple[Any, str]] = {
    "_uri": (_is_place, "s3://BUCKET or s3://BUCKET/FOLDER, without `..` and without keys"),
    "_memory": (_is_memory, 'a Kubernetes quantity of at least 64Mi, such as "16Gi"'),
    "_cpu": (_is_cpu, 'a Kubernetes quantity of cores, such as "4" or "500m"'),
    "_gpu_type": (
        _is_resource,
        "the resource name of a device plugin such as nvidia.com/gpu, amd.com/gpu or"
        " nvidia.com/mig-3g.40gb",
    ),
    "_max_minutes": (_is_limit, _MINUTES),
    "_node_selector": (_is_selector, 'Kubernetes labels with text as values: {"label": "value"}'),
    "_tolerations": (
        _are_tolerations,
        f'[{{"key": "gpu", "operator": "Exists"}}], fields {", ".join(_TOLERATION_FIELDS)};'
        f" operator Exists or, with a key, Equal; effect {', '.join(_EFFECTS[1:])} or none;"
        " tolerationSeconds whole, with NoExecute",
    ),
}
