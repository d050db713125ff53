"""Schedules: create or replace a recurring run idempotently, list and delete.

The API has no update and display names are not unique, so replacing means: create the new one, then
disable and delete every older one of that name. A hash of the specification, kept in the
description, tells an unchanged schedule from a changed one. A schedule owns the workflows that it
started, and deleting it would end them: while one of its runs goes on, it stays, disabled.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import kfp
from kfp_server_api.exceptions import ApiException

from iceaggr.errors import ConfigError
from launch.api_errors import api_errors
from launch.cron import check_cron
from launch.names import check_display_name
from launch.submission import FINAL_STATES, RunOrder, equals, find_or_create_experiment

_NOT_FOUND = 404
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
        spec = [self.cron, order.experiment, order.version.version_id, order.values]
        spec.append(order.service_account)
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
        # the API would take an empty name for no filter: whoever deletes would delete all
        check_display_name(name, where="--name")
    entries: list[ScheduleEntry] = []
    token = ""
    with api_errors("schedules"):
        while True:
            page = client.list_recurring_runs(
                page_token=token,
                page_size=100,
                namespace=client.get_user_namespace() or None,
                filter=None if name is None else equals("display_name", name),
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
        experiment_id=str(run.experiment_id or ""),
    )


def replace_schedule(client: kfp.Client, schedule: Schedule) -> Changes:
    """Make the schedule what is asked.

    The new one exists before the old ones go, so a failure half-way leaves two, never none, and
    the next call cleans up. Of two calls at once, each of which makes one, both keep the same.
    Raises: ConfigError for a bad cron expression or name; SubmissionError.
    """
    check_cron(schedule.cron)
    present = list_schedules(client, schedule.name)
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


def _asked_for(schedule: Schedule, present: list[ScheduleEntry]) -> list[ScheduleEntry]:
    return [e for e in present if e.enabled and e.spec_hash == schedule.spec_hash()]


def delete_schedule(client: kfp.Client, name: str) -> Changes:
    """Disable and delete every schedule of a name. Raises: ConfigError if none or no name."""
    entries = list_schedules(client, name)
    if not entries:
        raise ConfigError(
            "no such schedule", where=f"--name {name}", remedy="`schedule --list` shows all"
        )
    n_deleted = sum(_remove(client, entry) for entry in entries)
    return Changes(None, False, n_deleted, len(entries) - n_deleted)


def _create(client: kfp.Client, schedule: Schedule) -> ScheduleEntry:
    order = schedule.order
    experiment_id = find_or_create_experiment(client, order.experiment)
    with api_errors("schedule creation"):
        made = client.create_recurring_run(
            experiment_id=experiment_id,
            job_name=schedule.name,
            description=f"{_HASH_LABEL}{schedule.spec_hash()} {order.version.name}",
            cron_expression=schedule.cron,
            max_concurrency=1,
            no_catchup=True,
            params=order.values,
            pipeline_id=order.version.pipeline_id,
            version_id=order.version.version_id,
            service_account=order.service_account or None,
        )
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
            # somebody else removes it at this moment
            if error.status != _NOT_FOUND:
                raise
        return True


def _has_live_run(client: kfp.Client, entry: ScheduleEntry) -> bool:
    token = ""
    while True:
        page = client.list_runs(
            page_token=token, page_size=100, experiment_id=entry.experiment_id or None
        )
        for run in page.runs or []:
            own = run.recurring_run_id == entry.recurring_run_id
            if own and str(run.state) not in FINAL_STATES:
                return True
        token = page.next_page_token or ""
        if not token:
            return False
