"""What an operator writes into settings.env and schedule.env, checked in the rendered objects."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from iceaggr.addresses import refuse_credentials
from iceaggr.config import load_config
from iceaggr.errors import ConfigError
from iceaggr.machines.credentials import SETTINGS_CONFIG_MAP, SETTINGS_ENVIRONMENT
from launch.cron import check_cron
from launch.kfp_api import Connection, check_address
from launch.names import check_display_name, check_namespace

_SCHEDULE = "iceaggr-schedule"
_CONFIGS = Path(__file__).parent.parent / "configs"
_PLACES = "allowed-uris"


def setting_problems(documents: list[dict[str, Any]]) -> Iterator[str]:
    """Compare the settings with what reads them: the steps, and the schedule's command line."""
    # what has no name is told by the check of its schema
    named = {(d.get("kind"), (d.get("metadata") or {}).get("name")): d for d in documents}
    settings = named.get(("ConfigMap", SETTINGS_CONFIG_MAP))
    if settings is not None:
        yield from _step_problems(settings.get("data") or {})
    job, schedule = named.get(("CronJob", _SCHEDULE)), named.get(("ConfigMap", _SCHEDULE))
    if job is not None and schedule is not None:
        yield from _schedule_problems(job, schedule.get("data") or {})


def _step_problems(settings: dict[str, str]) -> Iterator[str]:
    yield from _unread(SETTINGS_CONFIG_MAP, settings, SETTINGS_ENVIRONMENT)
    if _PLACES not in settings:
        # the steps take none for no limit, which must be said and not forgotten
        yield f"ConfigMap {SETTINGS_CONFIG_MAP}: {_PLACES} is missing; empty = every place"


def _schedule_problems(job: dict[str, Any], settings: dict[str, str]) -> Iterator[str]:
    try:
        (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        arguments = " ".join(container["args"])
    except (KeyError, TypeError, ValueError):
        yield f"CronJob {_SCHEDULE}: not one container with args"
        return
    read = set(re.findall(r"\$\((\w+)\)", arguments))
    yield from _unread(_SCHEDULE, settings, read)
    for name in sorted(read - set(settings)):
        yield f"ConfigMap {_SCHEDULE}: {name} is missing"
    for name in sorted(set(settings) & set(_VALUE_CHECKS)):
        try:
            _VALUE_CHECKS[name](settings[name])
        except ConfigError as error:
            yield f"ConfigMap {_SCHEDULE}: {name}: {error}"


def _unread(config_map: str, settings: dict[str, str], read: Iterable[str]) -> Iterator[str]:
    for name in sorted(set(settings) - set(read)):
        close = difflib.get_close_matches(name, read, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        yield f"ConfigMap {config_map}: nothing reads {name}{meant}"


def _check_config_name(name: str) -> None:
    known = sorted(path.name for path in _CONFIGS.glob("*.yaml"))
    if name not in known:
        raise ConfigError(
            "no such configuration",
            where="configs/",
            found=repr(name),
            expected=f"one of {', '.join(known)}",
        )
    load_config(_CONFIGS / name)


def _check_host(host: str) -> None:
    if host:
        check_address(Connection(host))
    refuse_credentials(host, where="schedule.env", remedy="The job has a token of its own")


_VALUE_CHECKS: dict[str, Callable[[str], None]] = {
    "CONFIG": _check_config_name,
    "EXPERIMENT": lambda name: check_display_name(name, where="schedule.env"),
    "KFP_HOST": _check_host,
    "RUN_NAMESPACE": lambda name: check_namespace(name, where="schedule.env"),
    "SCHEDULE_CRON": check_cron,
    "SCHEDULE_NAME": lambda name: check_display_name(name, where="schedule.env"),
}
