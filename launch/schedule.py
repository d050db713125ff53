"""Schedules: create or replace a recurring run idempotently, list and delete.

The API has no update and display names are not unique, so replacing means: create the new one, then
disable and delete every older one of that name. A hash of the specification, kept in the
description, tells an unchanged schedule from a changed one.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

import kfp

from iceaggr.errors import ConfigError
from launch.kfp_api import api_errors
from launch.submission import PipelineVersion

_HASH_LABEL = "iceaggr-spec:"
# Source: robfig/cron v1, the parser of the scheduled-workflow controller: seconds come first.
_CRON_RANGES = (
    ("second", 0, 59),
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of month", 1, 31),
    ("month", 1, 12),
    ("day of week", 0, 6),
)
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")


@dataclass(frozen=True)
class Schedule:
    """What to run and when: one run at a time, missed slots are not caught up."""

    name: str
    cron: str
    experiment: str
    version: PipelineVersion
    values: dict[str, Any] = field(default_factory=dict)

    def spec_hash(self) -> str:
        """Hash everything that a change of must replace the schedule."""
        spec = [self.cron, self.experiment, self.version.version_id, self.values]
        return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ScheduleEntry:
    """One recurring run as the API lists it."""

    recurring_run_id: str
    name: str
    cron: str
    enabled: bool
    spec_hash: str


def check_cron(cron: str) -> None:
    """Check a six-field cron expression: second minute hour day-of-month month day-of-week.

    Raises: ConfigError naming the field that is wrong.
    """
    fields = cron.split()
    if len(fields) != len(_CRON_RANGES):
        raise ConfigError(
            "bad cron expression",
            where=f"--cron {cron!r}",
            found=f"{len(fields)} fields",
            expected="6: second minute hour day-of-month month day-of-week",
            remedy='Sundays at 03:00 are "0 0 3 * * 0"',
        )
    for text, (name, low, high) in zip(fields, _CRON_RANGES, strict=True):
        if not all(_is_cron_part(part, name, low, high) for part in text.split(",")):
            raise ConfigError(
                "bad cron expression",
                where=f"--cron {cron!r}",
                found=f"{name} {text!r}",
                expected=f"*, a number in {low}..{high}, a range a-b or a step */n",
            )


def _is_cron_part(part: str, name: str, low: int, high: int) -> bool:
    body, slash, step = part.partition("/")
    if slash and not (step.isdigit() and int(step) > 0):
        return False
    if body == "*" or (body == "?" and name.startswith("day") and not slash):
        return True
    match = re.fullmatch(r"(\w+)(?:-(\w+))?", body)
    if not match:
        return False
    names = {"month": (_MONTHS, 1), "day of week": (_DAYS, 0)}.get(name, ((), 0))
    ends = [_cron_number(end, *names) for end in match.groups() if end is not None]
    return all(end is not None and low <= end <= high for end in ends) and ends == sorted(
        end for end in ends if end is not None
    )


def _cron_number(text: str, names: tuple[str, ...], first: int) -> int | None:
    if text.isdigit():
        return int(text)
    return names.index(text.upper()) + first if text.upper() in names else None


def list_schedules(client: kfp.Client, name: str = "") -> list[ScheduleEntry]:
    """List the recurring runs, all or those of one name."""
    wanted = json.dumps(
        {"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]}
    )
    entries: list[ScheduleEntry] = []
    token = ""
    with api_errors("schedules"):
        while True:
            page = client.list_recurring_runs(
                page_token=token, page_size=100, filter=wanted if name else None
            )
            entries += [_entry(run) for run in page.recurring_runs or []]
            token = page.next_page_token or ""
            if not token:
                return entries


def _entry(run: Any) -> ScheduleEntry:
    schedule = run.trigger.cron_schedule if run.trigger else None
    description = run.description or ""
    return ScheduleEntry(
        recurring_run_id=str(run.recurring_run_id),
        name=str(run.display_name),
        cron=str(schedule.cron) if schedule else "",
        enabled=str(run.status) == "ENABLED",
        spec_hash=description.partition(_HASH_LABEL)[2].split(" ")[0],
    )


def replace_schedule(client: kfp.Client, schedule: Schedule) -> tuple[ScheduleEntry, bool]:
    """Make the schedule what is asked; returns it and whether anything was changed.

    The new one exists before the old ones go, so a failure half-way leaves two, never none, and
    the next call cleans up.  Raises: ConfigError for a bad cron expression; SubmissionError.
    """
    check_cron(schedule.cron)
    present = list_schedules(client, schedule.name)
    same = [e for e in present if e.enabled and e.spec_hash == schedule.spec_hash()]
    keep = same[0] if same else _create(client, schedule)
    stale = [e for e in present if e.recurring_run_id != keep.recurring_run_id]
    for entry in stale:
        _remove(client, entry)
    return keep, not same or bool(stale)


def _create(client: kfp.Client, schedule: Schedule) -> ScheduleEntry:
    with api_errors("schedule creation"):
        experiment_id = client.create_experiment(schedule.experiment).experiment_id
        made = client.create_recurring_run(
            experiment_id=experiment_id,
            job_name=schedule.name,
            description=f"{_HASH_LABEL}{schedule.spec_hash()} {schedule.version.name}",
            cron_expression=schedule.cron,
            max_concurrency=1,
            no_catchup=True,
            params=schedule.values,
            pipeline_id=schedule.version.pipeline_id,
            version_id=schedule.version.version_id,
        )
    return _entry(made)


def delete_schedule(client: kfp.Client, name: str) -> int:
    """Delete every schedule of a name. Returns their number."""
    entries = list_schedules(client, name)
    for entry in entries:
        _remove(client, entry)
    return len(entries)


def _remove(client: kfp.Client, entry: ScheduleEntry) -> None:
    # disabled first: deleting an enabled schedule could race with a run that it is just starting
    with api_errors("schedule removal"):
        client.disable_recurring_run(entry.recurring_run_id)
        client.delete_recurring_run(entry.recurring_run_id)
