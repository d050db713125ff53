"""The values of a run's parameters: from --config and --set, checked against the compiled graph."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from iceaggr.config import load_config, parse_config
from iceaggr.errors import ConfigError
from launch.run_form import check_allowed
from launch.value_checks import check_values

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


def run_values(
    parameters: dict[str, Any], settings: list[str], config_path: Path | None
) -> dict[str, Any]:
    """Collect the values that differ from the defaults.

    parameters: of the compiled graph, by name
    settings: `name=value`, or `config.section.field=value` for one field of the configuration
    Raises: ConfigError for an unknown parameter, a value of another type or one that
    neither configuration nor steps allow.
    """
    values: dict[str, Any] = {}
    if config_path is not None:
        values[_CONFIG] = load_config(config_path).model_dump(mode="json")
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError("not a setting", where=f"--set {setting}", expected="name=value")
        if name.startswith(f"{_CONFIG}."):
            default = parameters[_CONFIG].get("defaultValue", {})
            values[_CONFIG] = _with_field(values.get(_CONFIG, default), name, text)
        else:
            values[name] = _typed(parameters, name, text, setting)
    if _CONFIG in values:
        values[_CONFIG] = parse_config(values[_CONFIG], where="--set").model_dump(mode="json")
    check_values(values)
    return values


def _typed(parameters: dict[str, Any], name: str, text: str, setting: str) -> Any:
    if name not in parameters:
        raise ConfigError(
            "unknown parameter",
            where=f"--set {setting}",
            found=repr(name),
            expected=f"one of {', '.join(sorted(parameters))}, config.SECTION.FIELD",
        )
    kind = parameters[name]["parameterType"]
    if kind == "STRING":
        if allowed := parameters[name].get("literals"):
            check_allowed(name, text, tuple(allowed), where=f"--set {setting}")
        return text
    value = _json(text)
    fits = isinstance(value, _PYTHON_TYPES[kind]) and (
        kind == "BOOLEAN" or not isinstance(value, bool)
    )
    if not fits:
        raise ConfigError("value of another type", where=f"--set {setting}", expected=_WORDS[kind])
    return value


def _with_field(config: dict[str, Any], name: str, text: str) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    *sections, field = name.split(".")[1:]
    here = changed
    for section in sections:
        here = here.setdefault(section, {})
        if not isinstance(here, dict):
            raise ConfigError("not a section of the configuration", where=f"--set {name}")
    value = _json(text)
    # a bare word is text: --set config.loss.kind=angle
    here[field] = text if value is None and text != "null" else value
    return changed


def _json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except json.JSONDecodeError:
        return None
