"""The verbs of pipeline.py that talk to a cluster: submit and schedule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from iceaggr.errors import ConfigError
from iceaggr.machines.job_api import cluster_without_runtime
from iceaggr.machines.train_job import RUNTIME
from launch.cron import check_cron
from launch.kfp_api import Connection, address, check_address, connect, run_link, ui_address
from launch.names import check_display_name, check_namespace, check_service_account
from launch.schedule import (
    Changes,
    Schedule,
    ScheduleEntry,
    delete_schedule,
    list_schedules,
    replace_schedule,
)
from launch.settings import run_values
from launch.submission import (
    CompiledPipeline,
    RunOrder,
    check_images,
    compile_text,
    follow_run,
    start_run,
    upload_version,
)

MakePipeline = Callable[..., Any]
_NAME = "iceaggr-weekly"

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE, or config.SECTION.FIELD=VALUE; may be repeated"),
]
SettingsFile = Annotated[
    Path | None, typer.Option("--set-file", help="File with one NAME=VALUE a line; --set wins")
]
ConfigPath = Annotated[Path | None, typer.Option("--config", help="Settings, YAML")]
Host = Annotated[
    str, typer.Option(help="Address of KFP; empty = KF_PIPELINES_ENDPOINT, else this cluster")
]
Ui = Annotated[
    str,
    typer.Option(
        help="Address of KFP's UI, for links; empty = KF_PIPELINES_UI_ENDPOINT, else --host"
    ),
]
Namespace = Annotated[str, typer.Option(help="Your namespace, where KFP has several users")]
Experiment = Annotated[str, typer.Option(help="KFP experiment that lists the runs")]
ServiceAccount = Annotated[str, typer.Option(help="Of the pods; empty = the installation's")]
TokenFile = Annotated[Path | None, typer.Option(help="File with a bearer token")]
AccountToken = Annotated[
    Path | None,
    typer.Option("--service-account-token-file", help="Projected service account token"),
]
CookiesFile = Annotated[Path | None, typer.Option(help="File with the cookie of a session")]
CaFile = Annotated[Path | None, typer.Option(help="Certificate authority of the server, PEM")]


def add_cluster_commands(app: typer.Typer, make_pipeline: MakePipeline) -> None:
    """Add the verbs submit and schedule to a command line."""
    _add_submit(app, make_pipeline)
    _add_schedule(app, make_pipeline)


def _add_submit(app: typer.Typer, make_pipeline: MakePipeline) -> None:
    @app.command()
    def submit(
        settings: Settings = None,
        set_file: SettingsFile = None,
        config: ConfigPath = None,
        host: Host = "",
        ui: Ui = "",
        namespace: Namespace = "",
        experiment: Experiment = "iceaggr",
        service_account: ServiceAccount = "",
        wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end")] = False,
        token_file: TokenFile = None,
        service_account_token_file: AccountToken = None,
        cookies_file: CookiesFile = None,
        ca_file: CaFile = None,
    ) -> None:
        """Start a run on a cluster; the graph is uploaded if its content is new."""
        connection = Connection(
            host, namespace, token_file, service_account_token_file, cookies_file, ca_file
        )
        # all that can be wrong here is found before anything is sent
        _check_names(connection, experiment, service_account)
        page_address = ui_address(connection, ui)
        compiled = _compiled(make_pipeline)
        values = run_values(compiled.parameters, settings or [], config, set_file)
        _warn_without_runtime(values)
        client = connect(connection)
        version = upload_version(client, compiled)
        print(f"pipeline {version.name} ({'uploaded' if version.uploaded else 'was there'})")
        run_id = start_run(client, RunOrder(version, experiment, values, service_account))
        print(f"run      {run_link(page_address, run_id) if page_address else run_id}", flush=True)
        if not page_address:
            print(f"         no link: {address(connection)} is the API; give --ui for the UI's")
        if wait:
            follow_run(client, run_id, lambda words: print(f"{run_id} {words}", flush=True))


def _add_schedule(app: typer.Typer, make_pipeline: MakePipeline) -> None:
    @app.command()
    def schedule(
        cron: Annotated[
            str | None,
            typer.Option(
                help='Six fields, seconds first: "0 0 3 * * 0" = Sundays at 03:00 UTC, unless KFP'
                " has CRON_SCHEDULE_TIMEZONE set"
            ),
        ] = None,
        name: Annotated[
            str | None,
            typer.Option(help=f"Name of the schedule; not given = {_NAME}, with --list all"),
        ] = None,
        list_: Annotated[bool, typer.Option("--list", help="Show the schedules")] = False,
        delete: Annotated[bool, typer.Option("--delete", help="Delete the schedule")] = False,
        settings: Settings = None,
        set_file: SettingsFile = None,
        config: ConfigPath = None,
        host: Host = "",
        namespace: Namespace = "",
        experiment: Experiment = "iceaggr",
        service_account: ServiceAccount = "",
        token_file: TokenFile = None,
        service_account_token_file: AccountToken = None,
        cookies_file: CookiesFile = None,
        ca_file: CaFile = None,
    ) -> None:
        """Create or replace a schedule: one run at a time, missed times are not caught up."""
        _check_one_thing(cron, list_, delete, has_values=bool(settings or set_file or config))
        connection = Connection(
            host, namespace, token_file, service_account_token_file, cookies_file, ca_file
        )
        _check_names(connection, experiment, service_account)
        if name is not None:
            check_display_name(name, where="--name")
        if list_:
            _show(list_schedules(connect(connection), name))
        elif cron is None:
            _tell(name or _NAME, delete_schedule(connect(connection), name or _NAME))
        else:
            check_cron(cron)
            compiled = _compiled(make_pipeline)
            values = run_values(compiled.parameters, settings or [], config, set_file)
            _warn_without_runtime(values)
            client = connect(connection)
            order = RunOrder(upload_version(client, compiled), experiment, values, service_account)
            _tell(name or _NAME, replace_schedule(client, Schedule(name or _NAME, cron, order)))


def _warn_without_runtime(values: dict[str, Any]) -> None:
    """Say that a training on several machines cannot begin, if kubectl's cluster says so.

    It is no error: kubectl may know another cluster than the one that runs the pipeline.
    """
    if str(values.get("train_nodes", "1")) == "1":
        return
    if cluster := cluster_without_runtime(RUNTIME):
        print(
            f"warning: train_nodes is {values['train_nodes']}, but the cluster of kubectl's context"
            f" {cluster} has no ClusterTrainingRuntime {RUNTIME}: if the run goes there, its"
            " training will fail. docs/runbook.md, section 3, installs it",
            flush=True,
        )


def _check_one_thing(cron: str | None, list_: bool, delete: bool, *, has_values: bool) -> None:
    asked = {"--cron": cron is not None, "--list": list_, "--delete": delete}
    found = [option for option, given in asked.items() if given]
    if len(found) != 1:
        raise ConfigError(
            "schedule does one thing",
            found=" and ".join(found) or "none",
            expected="one of --cron, --list and --delete",
        )
    if has_values and cron is None:
        raise ConfigError(
            "only a new schedule has values",
            where=found[0],
            found="--set, --set-file or --config",
            expected="these with --cron",
        )


def _show(entries: list[ScheduleEntry]) -> None:
    if not entries:
        print("no schedules")
    for entry in entries:
        state = "enabled" if entry.enabled else "disabled"
        print(f"{entry.name:<30} {entry.cron:<20} {state:<9} {entry.recurring_run_id}")


def _check_names(connection: Connection, experiment: str, service_account: str) -> None:
    check_address(connection)
    check_namespace(connection.namespace, where="--namespace")
    check_display_name(experiment, where="--experiment")
    check_service_account(service_account, where="--service-account")


def _compiled(make_pipeline: MakePipeline) -> CompiledPipeline:
    pipeline = make_pipeline(cluster=True)
    compiled = compile_text(pipeline, pipeline.name)
    check_images(compiled)
    return compiled


def _tell(name: str, changes: Changes) -> None:
    if changes.current is not None:
        done = "created" if changes.created else "unchanged"
        print(f"schedule {name} {done}: {changes.current.cron}")
    if changes.n_deleted:
        print(f"deleted  {changes.n_deleted} of the same name")
    if changes.n_kept:
        print(
            f"disabled {changes.n_kept} of the same name, whose run still goes on: deleting would"
            " end it. The next call deletes"
        )
