"""The values of a run: from --config, --set-file and --set, checked against the compiled graph."""

from __future__ import annotations

import copy
import difflib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from iceaggr.addresses import without_credentials
from iceaggr.config import load_config, parse_config
from iceaggr.errors import ConfigError
from launch.run_form import check_allowed
from launch.value_checks import check_device, check_folders, check_values

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
    _check_folders(parameters, values, sources)
    _check_device(parameters, values, sources)
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


def _check_folders(
    parameters: dict[str, Any], values: dict[str, Any], sources: dict[str, str]
) -> None:
    raw, work = (
        str(values.get(name, parameters.get(name, {}).get("defaultValue", "")))
        for name in ("raw_uri", "work_uri")
    )
    # the one of both that was stated
    where = sources.get("work_uri") or sources.get("raw_uri", "defaults")
    check_folders(raw, work, where=where)


def _check_device(
    parameters: dict[str, Any], values: dict[str, Any], sources: dict[str, str]
) -> None:
    gpu_count, config = (
        values.get(name, parameters.get(name, {}).get("defaultValue"))
        for name in ("train_gpu_count", _CONFIG)
    )
    if gpu_count is not None:
        stated = sources.get("train_gpu_count", "default of train_gpu_count")
        where = f"{stated} and training.device"
        check_device(parse_config(config or {}), str(gpu_count), where=where)


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
            expected="a text file with one NAME=VALUE a line",
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
                expected="one line of it",
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
    except (ValueError, RecursionError):
        return None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
