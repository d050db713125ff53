from datetime import timedelta

import pytest

from iceaggr.errors import ConfigError
from launch.kfp_api import Connection, ServerAwayError, SubmissionError, connect
from launch.schedule import (
    Schedule,
    check_cron,
    delete_schedule,
    last_runs,
    list_schedules,
    replace_schedule,
)
from launch.submission import RunOrder, start_run, upload_version
from tests.launch.argo_run import ArgoRun
from tests.launch.kfp_stand_in import KfpStandIn


@pytest.mark.parametrize(
    "cron",
    [
        "0 0 3 * * 0",
        "0 0 3 * * MON",
        "0 */15 * * * *",
        "30 5 1-5,10 ? JAN-MAR SUN",
        "0 0 0 1 1 ?",
        "5/10 * * * * 6",
        "0 0 3 29 2 *",
        "0 0 3 31 2,JAN *",
        "0 0 3 31 2 MON",
        "0 0 03 * * 6",
        "0 0 3 31 2/2 *",
        "0 0 3 30-31 FEB-APR *",
    ],
)
def test_check_cron_accepts_what_the_controller_accepts(cron):
    check_cron(cron)


@pytest.mark.parametrize(
    ("cron", "wrong"),
    [
        ("0 3 * * 0", "5 fields"),
        ("0 0 3 * * 0 2026", "7 fields"),
        ("", "0 fields"),
        ("60 0 3 * * 0", "second '60'"),
        ("0 0 24 * * 0", "hour '24'"),
        ("0 0 3 0 * 0", "day of month '0'"),
        ("0 0 3 * 13 0", "month '13'"),
        ("0 0 3 * * 7", "day of week '7'"),
        ("0 0 3 * * FOO", "day of week 'FOO'"),
        ("0 9-3 3 * * 0", "minute '9-3'"),
        ("0 */0 3 * * 0", r"minute '\*/0'"),
        ("0 ? 3 * * 0", r"minute '\?'"),
        ("0 0 -3 * * 0", "hour '-3'"),
        ("0 0 3 ² * 0", "day of month '²'"),
        ("0 */² * * * *", "minute"),
        ("0 0 3 * * " + "9" * 5000, "day of week '9"),
        ("0 */" + "9" * 5000 + " * * * *", "minute"),
        ("0 */99 * * * *", r"minute '\*/99'"),
    ],
)
def test_check_cron_names_the_field_that_is_wrong(cron, wrong):
    with pytest.raises(ConfigError, match=f"bad cron expression.*found {wrong}"):
        check_cron(cron)


@pytest.mark.parametrize(
    "cron", ["0 0 3 31 2 *", "0 0 3 30 FEB ?", "0 0 3 31 4,6,9,NOV *", "0 0 3 31 2 MON,*"]
)
def test_check_cron_refuses_a_day_that_never_comes(cron):
    with pytest.raises(ConfigError, match=r"this time never comes .*found day 3"):
        check_cron(cron)


SUNDAYS = "0 0 3 * * 0"
MONDAYS = "0 0 3 * * MON"


@pytest.fixture
def client(server):
    return connect(Connection(server.url))


@pytest.fixture
def order(client, compiled):
    return RunOrder(upload_version(client, compiled), "retraining", {"n": 4})


def test_replace_schedule_creates_one_as_asked(server, client, order):
    changes = replace_schedule(client, Schedule("weekly", SUNDAYS, order))
    assert changes.created
    made = server.schedules[0]
    assert (made.display_name, made.trigger.cron_schedule.cron) == ("weekly", SUNDAYS)
    assert (made.no_catchup, int(made.max_concurrency), made.status) == (True, 1, "ENABLED")
    assert made.pipeline_version_reference.pipeline_version_id == order.version.version_id
    assert made.runtime_config.parameters == {"n": 4}


def test_replace_schedule_leaves_an_equal_one_alone(server, client, order):
    first = replace_schedule(client, Schedule("weekly", SUNDAYS, order))
    before = len(server.requests)
    again = replace_schedule(client, Schedule("weekly", SUNDAYS, order))
    assert (again.created, again.n_deleted, again.current) == (False, 0, first.current)
    assert not [r for r in server.requests[before:] if not r.startswith("GET")]


def test_replace_schedule_replaces_when_time_values_or_version_change(
    server, client, order, changed
):
    replace_schedule(client, Schedule("weekly", SUNDAYS, order))
    orders = [
        Schedule("weekly", MONDAYS, order),
        Schedule("weekly", MONDAYS, RunOrder(order.version, order.experiment, {"n": 5})),
        Schedule("weekly", MONDAYS, RunOrder(upload_version(client, changed), "retraining", {})),
    ]
    for schedule in orders:
        changes = replace_schedule(client, schedule)
        assert (changes.created, changes.n_deleted) == (True, 1)
        assert len(server.schedules) == 1
        assert server.schedules[0].recurring_run_id == changes.current.recurring_run_id


def test_replace_schedule_creates_the_new_one_before_the_old_one_goes(server, client, order):
    replace_schedule(client, Schedule("weekly", SUNDAYS, order))
    before = len(server.requests)
    replace_schedule(client, Schedule("weekly", MONDAYS, order))
    writes = [r.split("/")[-1] for r in server.requests[before:] if not r.startswith("GET")]
    assert writes[0] == "recurringruns"
    assert writes[1].endswith(":disable")
    assert len(writes) == 3


def test_replace_schedule_cleans_up_after_a_crash_between_create_and_delete(server, client, order):
    replace_schedule(client, Schedule("weekly", SUNDAYS, order))
    server.fail("POST", ".*:disable", 500)
    with pytest.raises(ServerAwayError, match=r"schedule removal.*HTTP 500"):
        replace_schedule(client, Schedule("weekly", MONDAYS, order))
    assert len(server.schedules) == 2
    changes = replace_schedule(client, Schedule("weekly", MONDAYS, order))
    assert (changes.created, changes.n_deleted) == (False, 1)
    assert [s.trigger.cron_schedule.cron for s in server.schedules] == [MONDAYS]


def test_replace_schedule_removes_two_stale_ones(server, client, order):
    for cron in (SUNDAYS, MONDAYS, "0 0 4 * * *"):
        replace_schedule(client, Schedule(cron, cron, order))
    for stale in server.schedules[:2]:
        stale.display_name = "daily"
    server.schedules[2].display_name = "daily"
    changes = replace_schedule(client, Schedule("daily", "0 0 5 * * *", order))
    assert (changes.created, changes.n_deleted, len(server.schedules)) == (True, 3, 1)


def test_replace_schedule_replaces_an_equal_one_that_is_disabled(server, client, order):
    replace_schedule(client, Schedule("weekly", SUNDAYS, order))
    server.schedules[0].status = "DISABLED"
    changes = replace_schedule(client, Schedule("weekly", SUNDAYS, order))
    assert (changes.created, changes.n_deleted) == (True, 1)


def test_replace_schedule_agrees_with_somebody_who_makes_the_same_at_this_moment(
    server, client, order
):
    real, others = server.create_recurring_run, iter([True])

    def together(query, body):
        # the other call asked before ours was there, and makes its own
        if next(others, False):
            real(query, body)
        return real(query, body)

    server.create_recurring_run = together
    changes = replace_schedule(client, Schedule("weekly", SUNDAYS, order))
    (kept,) = server.schedules
    assert changes.current.recurring_run_id == kept.recurring_run_id
    assert changes.n_deleted == 1
    again = replace_schedule(client, Schedule("weekly", SUNDAYS, order))
    assert (again.created, again.n_deleted, again.current.recurring_run_id) == (
        False,
        0,
        kept.recurring_run_id,
    )


@pytest.mark.parametrize("late", ["disable_recurring_run", "delete_recurring_run"])
def test_replace_schedule_goes_on_when_somebody_else_removes_the_old_one(
    server, client, order, late
):
    replace_schedule(client, Schedule("weekly", SUNDAYS, order))
    real = getattr(server, late)

    def too_late(query, body, schedule_id):
        server.schedules.remove(server._schedule(schedule_id))
        return real(query, body, schedule_id)

    setattr(server, late, too_late)
    replace_schedule(client, Schedule("weekly", MONDAYS, order))
    assert [s.trigger.cron_schedule.cron for s in server.schedules] == [MONDAYS]


def test_replace_schedule_leaves_other_names_alone(server, client, order):
    replace_schedule(client, Schedule("daily", SUNDAYS, order))
    replace_schedule(client, Schedule("weekly", MONDAYS, order))
    assert {s.display_name for s in server.schedules} == {"daily", "weekly"}


def test_replace_schedule_keeps_an_old_one_whose_run_goes_on(server, client, order):
    old = replace_schedule(client, Schedule("weekly", SUNDAYS, order)).current
    # more runs than fit on one page, the live one last
    for _ in range(3):
        start_run(client, order, "night")
    for run in server.runs:
        run.state, run.recurring_run_id = "SUCCEEDED", old.recurring_run_id
    server.runs[-1].state = "RUNNING"
    changes = replace_schedule(client, Schedule("weekly", MONDAYS, order))
    assert (changes.n_deleted, changes.n_kept) == (0, 1)
    assert [s.status for s in server.schedules] == ["DISABLED", "ENABLED"]
    server.runs[-1].state = "FAILED"
    assert replace_schedule(client, Schedule("weekly", MONDAYS, order)).n_deleted == 1


def test_replace_schedule_changes_nothing_when_the_new_one_is_refused(server, client, order):
    replace_schedule(client, Schedule("weekly", SUNDAYS, order))
    server.fail("POST", ".*/recurringruns", 403)
    with pytest.raises(SubmissionError, match=r"schedule creation.*HTTP 403"):
        replace_schedule(client, Schedule("weekly", MONDAYS, order))
    assert [s.status for s in server.schedules] == ["ENABLED"]


def test_list_schedules_reads_every_page(server, client, order):
    for name in "abcde":
        replace_schedule(client, Schedule(name, SUNDAYS, order))
    assert [entry.name for entry in list_schedules(client)] == list("abcde")


def test_list_schedules_asks_in_the_namespace_of_the_user(compiled):
    with KfpStandIn(multi_user=True) as server:
        client = connect(Connection(server.url, namespace="ana"))
        order = RunOrder(upload_version(client, compiled), "retraining", {})
        replace_schedule(client, Schedule("weekly", SUNDAYS, order))
        assert [entry.name for entry in list_schedules(client)] == ["weekly"]


def test_delete_schedule_disables_and_deletes(server, client, order):
    replace_schedule(client, Schedule("weekly", SUNDAYS, order))
    changes = delete_schedule(client, "weekly")
    assert (changes.current, changes.n_deleted, server.schedules) == (None, 1, [])


@pytest.mark.parametrize("name", ["", " ", "weekly "])
def test_no_schedule_is_touched_without_a_name(server, client, order, name):
    for other in ("weekly", "of somebody else"):
        replace_schedule(client, Schedule(other, SUNDAYS, order))
    before = len(server.requests)
    calls = [
        lambda: list_schedules(client, name),
        lambda: delete_schedule(client, name),
        lambda: replace_schedule(client, Schedule(name, MONDAYS, order)),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=r"invalid name \[--name\]"):
            call()
    assert len(server.requests) == before
    assert [s.status for s in server.schedules] == ["ENABLED", "ENABLED"]


def test_delete_schedule_says_when_there_is_none(client):
    with pytest.raises(ConfigError, match=r"no such schedule \[--name weekly\]"):
        delete_schedule(client, "weekly")


@pytest.mark.parametrize(
    ("state", "argo", "ended"),
    [
        ("RUNNING", ArgoRun(), "running now"),
        ("SUCCEEDED", ArgoRun(), "succeeded after 1:30"),
        (
            "FAILED",
            ArgoRun().step("train-model", "Failed").end("Failed"),
            "failed after 1:30: train-model",
        ),
        ("FAILED", ArgoRun(), "failed after 1:30, before its first step"),
        ("CANCELED", ArgoRun(), "terminated by somebody after 1:30"),
        (
            "FAILED",
            ArgoRun().step("promote-model", "Succeeded").step("close-run", "Failed"),
            "succeeded after 1:30, but close-run failed",
        ),
    ],
)
def test_last_runs_tells_how_the_newest_run_ended(server, client, order, state, argo, ended):
    replace_schedule(client, Schedule("weekly", SUNDAYS, order))
    replace_schedule(client, Schedule("never", SUNDAYS, order))
    weekly, never = list_schedules(client)
    for number in range(3):
        start_run(client, order, f"weekly-{number}")
    # the newest is the middle one: the last was started by hand
    for run in server.runs[:2]:
        run.recurring_run_id = weekly.recurring_run_id
        run.state, run.finished_at = "FAILED", run.created_at + timedelta(seconds=90)
    server.runs[1].state = state
    server.workflows[server.runs[1].run_id] = argo
    found = last_runs(client, [weekly, never], ("train-model", "promote-model", "close-run"))
    assert list(found) == [weekly.recurring_run_id]
    assert (found[weekly.recurring_run_id].name, found[weekly.recurring_run_id].ended) == (
        "weekly-1",
        ended,
    )


def test_schedule_that_somebody_else_made_is_left_alone(server, client, order):
    replace_schedule(client, Schedule("weekly", SUNDAYS, order))
    # made in the UI, by others, for another pipeline: names are not unique
    server.schedules[0].description = "the calibration of the other group"
    before = len(server.requests)
    with pytest.raises(ConfigError, match=r"made by something else.*--name weekly"):
        delete_schedule(client, "weekly")
    with pytest.raises(ConfigError, match="Give another --name"):
        replace_schedule(client, Schedule("weekly", MONDAYS, order))
    assert not [r for r in server.requests[before:] if not r.startswith("GET")]
    assert server.schedules[0].status == "ENABLED"
