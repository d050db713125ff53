"""What a step could not use, found before a run is sent: places, sizes, times, placement."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from iceaggr.errors import ConfigError

# Source: quantity.go of k8s.io/apimachinery: sign, digits, then a binary or decimal suffix
_QUANTITY = re.compile(r"(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[mkMGTPE]|[eE][+-]?\d+)?")
_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]*(/\S*)?")
# Source: Kubernetes, "Extended resources": a domain, then a name
_RESOURCE = re.compile(r"[a-z0-9.-]+\.[a-z0-9-]+/[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
_TOLERATION_FIELDS = ("key", "operator", "value", "effect", "tolerationSeconds")


def check_values(values: dict[str, Any], sources: Mapping[str, str]) -> None:
    """Check the values of a run by the endings of their names.

    sources: option or line of a file that a value comes from, by name.  Raises: ConfigError.
    """
    for name, value in values.items():
        for ending, (fits, expected) in _CHECKS.items():
            if name.endswith(ending) and not fits(value):
                raise ConfigError(
                    "value that no step can use",
                    where=sources[name],
                    found=repr(value),
                    expected=expected,
                )


def _is_place(value: Any) -> bool:
    # each step is a pod of its own: a file:// of one is not there in the next
    return _S3.fullmatch(str(value)) is not None


def _is_quantity(value: Any) -> bool:
    match = _QUANTITY.fullmatch(str(value))
    return match is not None and float(match[1]) > 0


def _is_resource(value: Any) -> bool:
    return _RESOURCE.fullmatch(str(value)) is not None


def _is_selector(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _are_tolerations(value: Any) -> bool:
    return isinstance(value, list) and all(_is_toleration(item) for item in value)


def _is_toleration(item: Any) -> bool:
    return isinstance(item, dict) and all(
        key in _TOLERATION_FIELDS
        and isinstance(value, (int, float) if key == "tolerationSeconds" else str)
        for key, value in item.items()
    )


_CHECKS: dict[str, tuple[Any, str]] = {
    "_uri": (_is_place, "s3://BUCKET or s3://BUCKET/FOLDER"),
    "_memory": (_is_quantity, 'a Kubernetes quantity such as "16Gi"'),
    "_cpu": (_is_quantity, 'a Kubernetes quantity such as "4" or "500m"'),
    "_gpu_type": (
        _is_resource,
        "the resource name of a device plugin such as nvidia.com/gpu, amd.com/gpu or"
        " nvidia.com/mig-3g.40gb",
    ),
    "_max_minutes": (lambda value: value >= 0, "0 or more minutes; 0 = as configured"),
    "_node_selector": (_is_selector, 'labels with text as values: {"label": "value"}'),
    "_tolerations": (
        _are_tolerations,
        f'[{{"key": "gpu", "operator": "Exists"}}], fields {", ".join(_TOLERATION_FIELDS)}',
    ),
}
