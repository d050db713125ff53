"""The values of a run: from --config, --set-file and --set, checked against the compiled graph."""

from __future__ import annotations

import copy
import difflib
import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from kubernetes.utils import parse_quantity

from components.form import check_allowed
from iceaggr.config import ExperimentConfig, load_config, parse_config
from iceaggr.config.sections import MAX_MINUTES
from iceaggr.errors import ConfigError
from iceaggr.service_settings import without_credentials
from iceaggr.steps.training_choices import TrainingChoices
from iceaggr.storage.uris import refuse_work_among_raw
from launch.compilation import check_display_name

# What a step could not use, found before a run is sent: places, sizes, times, placement.

# Source: quantity.go of k8s.io/apimachinery: digits, then a binary or decimal suffix. The library
# that reads the value is laxer than any server: it takes 1_0, other scripts' digits, NaN and K
_QUANTITY = re.compile(r"(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[mkMGTPE]|[eE][+-]?\d{1,3})?", re.ASCII)
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
# Kubernetes caps what is more
_MOST_MEMORY = 2**63 - 1
_MINUTES = f"0 or more minutes, at most a year ({MAX_MINUTES:,.0f}); 0 = as configured"
_EFFECTS = ("", "NoSchedule", "PreferNoSchedule", "NoExecute")


def check_folders(raw_uri: str, work_uri: str, where: str) -> None:
    """Check that results have a folder outside the raw events. Raises: ConfigError."""
    if raw_uri:
        refuse_work_among_raw(raw_uri.rstrip("/"), work_uri.rstrip("/"), where)


def check_minutes(minutes: float, where: str) -> None:
    """Check a limit of training. Raises: ConfigError."""
    if not _is_limit(minutes):
        raise ConfigError(
            "invalid limit of training", where=where, found=minutes, expected=_MINUTES
        )


def check_device(config: ExperimentConfig, gpu_count: str, where: str) -> None:
    """Check that settings and number of GPUs do not contradict each other. Raises: ConfigError."""
    try:
        TrainingChoices(gpu_count=gpu_count).applied_to(config)
    except ConfigError as error:
        raise error.at(where) from None


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
                    "invalid value",
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


def _quantity(value: Any) -> Decimal:
    text = str(value)
    return parse_quantity(text) if _QUANTITY.fullmatch(text) else Decimal(0)


def _is_cpu(value: Any) -> bool:
    # a quantity of bytes is one, too: 4Gi would be four thousand million cores
    return str(value)[-1:] in "0123456789.m" and 0 < _quantity(value) <= _MOST_CORES


def _is_limit(value: Any) -> bool:
    return 0 <= float(value) <= MAX_MINUTES


def _is_selector(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _LABEL_KEY.fullmatch(key) and isinstance(item, str) and _LABEL_VALUE.fullmatch(item)
        for key, item in value.items()
    )


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
    "_memory": (
        lambda value: _LEAST_MEMORY <= _quantity(value) <= _MOST_MEMORY,
        'a Kubernetes quantity of at least 64Mi, such as "16Gi"',
    ),
    "_cpu": (_is_cpu, 'a Kubernetes quantity of cores, such as "4" or "500m"'),
    "_gpu_type": (
        lambda value: _RESOURCE.fullmatch(str(value)),
        "the resource name of a device plugin such as nvidia.com/gpu, amd.com/gpu or"
        " nvidia.com/mig-3g.40gb",
    ),
    "_max_minutes": (_is_limit, _MINUTES),
    "_node_selector": (_is_selector, 'Kubernetes labels with text as values: {"label": "value"}'),
    "_tolerations": (
        lambda value: isinstance(value, list) and all(map(_is_toleration, value)),
        f'[{{"key": "gpu", "operator": "Exists"}}], fields {", ".join(_TOLERATION_FIELDS)};'
        f" operator Exists, or Equal with a key; effect {', '.join(_EFFECTS[1:])} or none;"
        " tolerationSeconds a whole number, only with NoExecute",
    ),
}


# The values themselves, collected from the file of settings, a list of them and single ones.

_CONFIG = "config"
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "NUMBER_DOUBLE": (int, float),
    "NUMBER_INTEGER": (int,),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}
_WORDS = {
    "NUMBER_DOUBLE": "a number",
    "NUMBER_INTEGER": "a whole number",
    "BOOLEAN": "true or false",
    "LIST": "a JSON list",
    "STRUCT": "a JSON object",
}


class _Setting(NamedTuple):
    """One `name=value`, and the option or line of a file that says so."""

    name: str
    text: str
    where: str


def run_values(
    parameters: dict[str, Any],
    settings: list[str],
    config_path: Path | None,
    settings_file: Path | None = None,
) -> dict[str, Any]:
    """Collect the values that differ from the defaults.

    parameters: of the compiled graph, by name
    settings: `name=value`, or `config.section.field=value` for one field of the configuration;
    they win over settings_file, which has one of the same on each line, and this over config_path
    Raises: ConfigError for an unknown parameter, a value of another type or one that
    neither configuration nor steps allow.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    configs: list[tuple[dict[str, Any], str]] = []
    if config_path is not None:
        configs.append((load_config(config_path).model_dump(mode="json"), "--config"))
    stated = _read_settings(settings_file) if settings_file is not None else []
    for name, text, where in [*stated, *(_setting(text, "--set ") for text in settings)]:
        if name.startswith(f"{_CONFIG}."):
            default = parameters[_CONFIG].get("defaultValue", {})
            before = configs[-1][0] if configs else default
            configs.append((_with_field(before, name, text, where), where))
        elif name == _CONFIG:
            configs.append((_typed(parameters, name, text, where), where))
        else:
            values[name], sources[name] = _typed(parameters, name, text, where), where
    if configs:
        values[_CONFIG] = _checked_config(configs)
    check_values(values, sources)
    _check_together(parameters, values, sources)
    return values


def _checked_config(configs: list[tuple[dict[str, Any], str]]) -> dict[str, Any]:
    """Check the last of the configurations, each of which goes on from the one before it.

    Raises: ConfigError that blames the setting with which the mistake came in.
    """
    last, where = configs[-1]
    try:
        return parse_config(last, where=where).model_dump(mode="json")
    except ConfigError as error:
        for config, where in configs[:-1]:
            try:
                parse_config(config, where=where)
            except ConfigError as earlier:
                if _complaint(earlier) == _complaint(error):
                    raise earlier from None
        raise


def _complaint(error: ConfigError) -> tuple[object, ...]:
    return error.what, error.found, error.expected


def _check_together(
    parameters: dict[str, Any], values: dict[str, Any], sources: dict[str, str]
) -> None:
    """Check what two parameters must not say together, where at least one was stated."""
    defaults = {name: field.get("defaultValue") for name, field in parameters.items()}
    form = defaults | values
    where = sources.get("work_uri") or sources.get("raw_uri", "defaults")
    check_folders(str(form.get("raw_uri", "")), str(form.get("work_uri", "")), where=where)
    gpu_count = form.get("train_gpu_count")
    if gpu_count is not None:
        stated = sources.get("train_gpu_count", "default of train_gpu_count")
        where = f"{stated} and training.device"
        check_device(parse_config(form.get(_CONFIG) or {}), str(gpu_count), where=where)


def _setting(line: str, source: str) -> _Setting:
    """Take `name=value` apart. Raises: ConfigError."""
    name, equals, text = line.partition("=")
    where = f"{source}{without_credentials(line)}"
    if not equals:
        raise ConfigError("not a setting", where=where, expected="name=value")
    return _Setting(name, text, where)


def _lines_of(path: Path) -> list[str]:
    try:
        # some editors begin a file with a byte order mark
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(
            "cannot read the settings",
            where=str(path),
            found=getattr(error, "strerror", None) or str(error),
            expected="a text file with one NAME=VALUE per line",
        ) from None


def _read_settings(path: Path) -> list[_Setting]:
    """Read one setting a line, blanks round = mean nothing; nor do empty lines and those with #."""
    found: dict[str, _Setting] = {}
    for number, line in enumerate(_lines_of(path), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        setting = _setting(
            "".join(part.strip() for part in text.partition("=")), f"{path} line {number}: "
        )
        if setting.name in found:
            raise ConfigError(
                "the same parameter twice",
                where=setting.where,
                found=repr(setting.name),
                expected="one line for each parameter",
            )
        found[setting.name] = setting
    return list(found.values())


def _typed(parameters: dict[str, Any], name: str, text: str, where: str) -> Any:
    if name not in parameters:
        close = difflib.get_close_matches(name, parameters, 1)
        raise ConfigError(
            "unknown parameter",
            # without its value, of which nothing is known
            where=where.removesuffix(f"={without_credentials(text)}"),
            found=repr(name),
            expected=f"one of {', '.join(sorted(parameters))}, config.SECTION.FIELD",
            remedy=f"Did you mean {close[0]}?" if close else "",
        )
    kind = parameters[name]["parameterType"]
    if kind == "STRING":
        if allowed := parameters[name].get("literals"):
            check_allowed(name, text, tuple(allowed), where=where)
        return text
    value = _json(text)
    fits = isinstance(value, _PYTHON_TYPES[kind]) and (
        kind == "BOOLEAN" or not isinstance(value, bool)
    )
    if not fits:
        raise ConfigError("value of the wrong type", where=where, expected=_WORDS[kind])
    return value


def _with_field(config: dict[str, Any], name: str, text: str, where: str) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    *sections, field = name.split(".")[1:]
    here = changed
    for section in sections:
        here = here.setdefault(section, {})
        if not isinstance(here, dict):
            raise ConfigError(
                "not a section of the configuration", where=where, found=repr(section)
            )
    value = _json(text)
    # a bare word is text: --set config.loss.kind=angle
    here[field] = text if value is None and text != "null" else value
    return changed


def _json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        return None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
