"""Schedules: create or replace a recurring run idempotently, list and delete.

The API has no update and display names are not unique, so replacing means: create the new one, then
disable and delete every older one of that name. A hash of the specification, kept in the
description, tells an unchanged schedule from a changed one. A schedule owns the workflows that it
started, and deleting it would end them: while one of its runs goes on, it stays, disabled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import kfp
from kfp_server_api import (
    RecurringRunMode,
    V2beta1CronSchedule,
    V2beta1RecurringRun,
    V2beta1Trigger,
)
from kfp_server_api.exceptions import ApiException

from iceaggr.errors import ConfigError
from launch.compilation import check_display_name
from launch.display import clock
from launch.following import failed_steps, get_run, has_result, was_stopped
from launch.kfp_api import all_pages, api_errors
from launch.submission import (
    FINAL_STATES,
    RunOrder,
    equals,
    find_or_create_experiment,
    without_plugins_if_refused,
)

# Six-field cron expressions, as the scheduled-workflow controller of KFP reads them.

# Source: robfig/cron v1, the parser of the scheduled-workflow controller: seconds come first.
_CRON_RANGES = (
    ("second", 0, 59),
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of month", 1, 31),
    ("month", 1, 12),
    ("day of week", 0, 6),
)
_NAMES = {
    "month": ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
    "day of week": ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
}
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def check_cron(cron: str) -> None:
    """Check a six-field cron expression: second minute hour day-of-month month day-of-week.

    Raises: ConfigError naming the field that is wrong, or if the time never comes.
    """
    fields = cron.split()
    if len(fields) != len(_CRON_RANGES):
        wanted = "6: second minute hour day-of-month month day-of-week"
        raise _bad_cron(cron, f"{len(fields)} fields", wanted)
    values: dict[str, set[int]] = {}
    for text, (name, low, high) in zip(fields, _CRON_RANGES, strict=True):
        parts = [_cron_values(part, name, low, high) for part in text.split(",")]
        if not all(parts):
            wanted = f"*, a number in {low}..{high}, a range a-b or a step */n"
            raise _bad_cron(cron, f"{name} {text!r}", wanted)
        values[name] = {value for part in parts for value in part}
    # where both kinds of day are given, either is enough: a weekday comes in every month; one star
    # in a list makes it none that is given
    by_weekday = not any(part[0] in "*?" for part in fields[5].split(","))
    first_day = min(values["day of month"])
    if not by_weekday and all(first_day > _LONGEST[month - 1] for month in values["month"]):
        raise ConfigError(
            "this time never comes",
            where=f"--cron {cron!r}",
            found=f"day {fields[3]} of month {fields[4]}",
            expected="a day that one of these months has",
        )


def _bad_cron(cron: str, found: str, expected: str) -> ConfigError:
    return ConfigError(
        "bad cron expression",
        where=f"--cron {cron!r}",
        found=found,
        expected=expected,
        remedy='Sundays at 03:00 are "0 0 3 * * 0", seconds first',
    )


def _cron_values(part: str, name: str, low: int, high: int) -> range:
    """Give the values that a part of a field stands for; none if it is wrong."""
    body, slash, step_text = part.partition("/")
    step = (_cron_number(step_text, [], 0) or 0) if slash else 1
    if not 0 < step <= max(high - low, 1):
        return range(0)
    if body == "*" or (body == "?" and name.startswith("day") and not slash):
        return range(low, high + 1, step)
    ends = [_cron_number(end, _NAMES.get(name, []), low) for end in body.split("-")]
    first, last = ends[0], ends[-1]
    if first is None or last is None or len(ends) > 2 or not low <= first <= last <= high:
        return range(0)
    # a number with a step goes on to the end, as * does
    return range(first, (high if slash and len(ends) == 1 else last) + 1, step)


def _cron_number(text: str, names: list[str], first: int) -> int | None:
    # \d would take digits of other scripts, too; no field needs more than two
    if re.fullmatch(r"0*[0-9]{1,2}", text):
        return int(text)
    return names.index(text.upper()) + first if text.upper() in names else None


# The schedules themselves, through the API.

_NOT_FOUND = 404
_PAGES_OF_RUNS = 5
_HASH_LABEL = "iceaggr-spec:"


@dataclass(frozen=True)
class Schedule:
    """What to run and when: one run at a time, missed slots are not caught up."""

    name: str
    cron: str
    order: RunOrder

    def spec_hash(self) -> str:
        """Hash everything that a change of must replace the schedule."""
        order = self.order
        where = [self.cron, order.experiment, order.version.version_id]
        spec = [*where, order.values, order.service_account, order.plugins_input]
        return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ScheduleEntry:
    """One recurring run as the API lists it."""

    recurring_run_id: str
    name: str
    cron: str
    enabled: bool
    spec_hash: str
    experiment_id: str


@dataclass(frozen=True)
class Changes:
    """What was done to the schedules of one name.

    current: the one that stays; None after a deletion
    n_kept: disabled ones that stay because a run of theirs goes on; the next call deletes them
    """

    current: ScheduleEntry | None
    created: bool
    n_deleted: int
    n_kept: int


def list_schedules(client: kfp.Client, name: str | None = None) -> list[ScheduleEntry]:
    """List the recurring runs, all (None) or those of one name. Raises: ConfigError if it is ''."""
    if name is not None:
        # the API takes an empty name for no filter: deleting would delete all schedules
        check_display_name(name, where="--name")
    filter_ = None if name is None else equals("display_name", name)
    ask = partial(client.list_recurring_runs, filter=filter_, **_own(client))
    with api_errors("schedules"):
        return [_entry(run) for run in all_pages(ask, "recurring_runs")]


def _own(client: kfp.Client) -> dict[str, str | None]:
    return {"namespace": client.get_user_namespace() or None}


@dataclass(frozen=True)
class LastRun:
    """How the newest run of a schedule ended, or that it goes on."""

    run_id: str
    name: str
    started: datetime | None
    ended: str


def last_runs(
    client: kfp.Client, entries: list[ScheduleEntry], steps: Collection[str]
) -> dict[str, LastRun]:
    """Find the newest run of each schedule, by the schedule's id; one that never ran has none.

    steps: names in the graph.  Only the newest runs of each experiment are looked at.
    """
    found: dict[str, Any] = {}
    for experiment_id in {entry.experiment_id for entry in entries}:
        newest = {"sort_by": "created_at desc", "experiment_id": experiment_id or None}
        ask = partial(client.list_runs, **newest, **_own(client))
        with api_errors("runs of the schedules"):
            for run in all_pages(ask, "runs", most=_PAGES_OF_RUNS):
                if run.recurring_run_id:
                    found.setdefault(run.recurring_run_id, run)
    asked = {entry.recurring_run_id for entry in entries}
    return {
        key: LastRun(
            run.run_id, run.display_name or "", run.created_at, _ending(client, run, steps)
        )
        for key, run in found.items()
        if key in asked
    }


def _ending(client: kfp.Client, run: Any, steps: Collection[str]) -> str:
    state = str(run.state)
    if state not in FINAL_STATES:
        return f"{state.lower()} now"
    took = ""
    if run.finished_at and run.created_at:
        took = f" after {clock((run.finished_at - run.created_at).total_seconds())}"
    if state == "SUCCEEDED":
        return f"succeeded{took}"
    # the list does not hold the steps
    whole = get_run(client, run.run_id)
    failed = ", ".join(dict.fromkeys(failed_steps(whole, steps)))
    if has_result(whole):
        return f"succeeded{took}, but {failed or 'its end'} failed"
    if was_stopped(whole, None):
        return f"terminated by somebody{took}"
    return f"failed{took}" + (f": {failed}" if failed else ", before its first step")


def _entry(run: Any) -> ScheduleEntry:
    schedule = run.trigger.cron_schedule if run.trigger else None
    description = run.description or ""
    return ScheduleEntry(
        recurring_run_id=str(run.recurring_run_id),
        name=str(run.display_name),
        cron=str(schedule.cron) if schedule else "",
        enabled=str(run.status) == "ENABLED",
        spec_hash=description.partition(_HASH_LABEL)[2].split(" ")[0],
        experiment_id=str(run.experiment_id or ""),
    )


def replace_schedule(client: kfp.Client, schedule: Schedule) -> Changes:
    """Make the schedule what is asked.

    The new one exists before the old ones go, so a failure half-way leaves two, never none, and
    the next call cleans up. Of two calls at once, each of which makes one, both keep the same.
    Raises: ConfigError for a bad cron expression or name, or a schedule of this name that we did
    not make; SubmissionError.
    """
    check_cron(schedule.cron)
    present = _ours(list_schedules(client, schedule.name), schedule.name)
    made = None
    if not _asked_for(schedule, present):
        made = _create(client, schedule)
        present = [made, *list_schedules(client, schedule.name)]
    # the one just made, should the server not say yet that it is enabled
    good = _asked_for(schedule, present) or present[:1]
    current = min(good, key=lambda entry: entry.recurring_run_id)
    stale = {
        e.recurring_run_id: e for e in present if e.recurring_run_id != current.recurring_run_id
    }
    n_deleted = sum(_remove(client, entry) for entry in stale.values())
    return Changes(current, made is not None, n_deleted, len(stale) - n_deleted)


def _ours(entries: list[ScheduleEntry], name: str) -> list[ScheduleEntry]:
    """Refuse to touch schedules that others made: names are not unique."""
    others = [entry.recurring_run_id for entry in entries if not entry.spec_hash]
    if others:
        raise ConfigError(
            "a schedule of this name was made by something else",
            where=f"--name {name}",
            found=f"recurring run {', '.join(others)} without our mark in its description",
            expected="schedules that `pipeline.py schedule` made",
            remedy="Give another --name, or delete that schedule in the UI",
        )
    return entries


def _asked_for(schedule: Schedule, present: list[ScheduleEntry]) -> list[ScheduleEntry]:
    return [e for e in present if e.enabled and e.spec_hash == schedule.spec_hash()]


def delete_schedule(client: kfp.Client, name: str) -> Changes:
    """Disable and delete every schedule of a name.

    Raises: ConfigError if there is none or no name, or one of them we did not make.
    """
    entries = _ours(list_schedules(client, name), name)
    if not entries:
        raise ConfigError(
            "no such schedule", where=f"--name {name}", remedy="`schedule --list` shows all"
        )
    n_deleted = sum(_remove(client, entry) for entry in entries)
    return Changes(None, False, n_deleted, len(entries) - n_deleted)


def _create(client: kfp.Client, schedule: Schedule) -> ScheduleEntry:
    order = schedule.order
    experiment_id = find_or_create_experiment(client, order.experiment)
    # not client.create_recurring_run(), which has no argument for plugins
    asked = V2beta1RecurringRun(
        experiment_id=experiment_id,
        display_name=schedule.name,
        description=f"{_HASH_LABEL}{schedule.spec_hash()} {order.version.name}",
        trigger=V2beta1Trigger(cron_schedule=V2beta1CronSchedule(cron=schedule.cron)),
        mode=RecurringRunMode.ENABLE,
        max_concurrency="1",
        no_catchup=True,
        **order.request(),
    )
    with api_errors("schedule creation"):
        service = client._recurring_run_api
        made = without_plugins_if_refused(service.recurring_run_service_create_recurring_run, asked)
    return _entry(made)


def _remove(client: kfp.Client, entry: ScheduleEntry) -> bool:
    # disabled first: an enabled schedule could start a run between the question and the deletion
    with api_errors("schedule removal"):
        try:
            client.disable_recurring_run(entry.recurring_run_id)
            if _has_live_run(client, entry):
                return False
            client.delete_recurring_run(entry.recurring_run_id)
        except ApiException as error:
            # another client removed it meanwhile
            if error.status != _NOT_FOUND:
                raise
        return True


def _has_live_run(client: kfp.Client, entry: ScheduleEntry) -> bool:
    ask = partial(client.list_runs, experiment_id=entry.experiment_id or None)
    return any(
        run.recurring_run_id == entry.recurring_run_id and str(run.state) not in FINAL_STATES
        for run in all_pages(ask, "runs")
    )
