"""The values of a run: from --config, --set-file and --set, checked against the compiled graph."""

from __future__ import annotations

import copy
import difflib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

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


class _Setting(NamedTuple):
    """One `name=value`, and the option or line of a file that says so."""

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
    sources = {_CONFIG: "--config"}
    if config_path is not None:
        values[_CONFIG] = load_config(config_path).model_dump(mode="json")
    stated = _read_settings(settings_file) if settings_file is not None else []
    for setting in [*stated, *(_Setting(text, f"--set {text}") for text in settings)]:
        name, equals, text = setting.text.partition("=")
        if not equals:
            raise ConfigError("not a setting", where=setting.where, expected="name=value")
        if name.startswith(f"{_CONFIG}."):
            default = parameters[_CONFIG].get("defaultValue", {})
            values[_CONFIG] = _with_field(values.get(_CONFIG, default), name, text, setting.where)
            name = _CONFIG
        else:
            values[name] = _typed(parameters, name, text, setting.where)
        sources[name] = setting.where
    if _CONFIG in values:
        where = sources[_CONFIG]
        values[_CONFIG] = parse_config(values[_CONFIG], where=where).model_dump(mode="json")
    check_values(values, sources)
    _check_folders(parameters, values, sources)
    return values


def _check_folders(
    parameters: dict[str, Any], values: dict[str, Any], sources: dict[str, str]
) -> None:
    raw, work = (
        str(values.get(name, parameters.get(name, {}).get("defaultValue", ""))).rstrip("/")
        for name in ("raw_uri", "work_uri")
    )
    if raw and raw == work:
        # the one of both that was stated
        where = sources.get("work_uri") or sources.get("raw_uri", "defaults")
        raise ConfigError(
            "raw events and results in one folder",
            where=where,
            found=f"raw_uri and work_uri {raw!r}",
            expected="two folders: nothing is written among the raw events",
        )


def _read_settings(path: Path) -> list[_Setting]:
    """Read one setting a line, blanks round = mean nothing; nor do empty lines and those with #."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot read the settings", where=f"{path}", found=str(error)) from None
    found: dict[str, _Setting] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        where = f"{path} line {number}: {text}"
        name, equals, value = (part.strip() for part in text.partition("="))
        if name in found:
            raise ConfigError(
                "the same parameter twice", where=where, found=repr(name), expected="one line of it"
            )
        found[name] = _Setting(f"{name}{equals}{value}", where)
    return list(found.values())


def _typed(parameters: dict[str, Any], name: str, text: str, where: str) -> Any:
    if name not in parameters:
        close = difflib.get_close_matches(name, parameters, 1)
        raise ConfigError(
            "unknown parameter",
            where=where,
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
        raise ConfigError("value of another type", where=where, expected=_WORDS[kind])
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
    except ValueError:
        return None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
