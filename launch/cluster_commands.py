"""The verbs of pipeline.py that talk to a cluster: submit, follow and schedule."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from kfp import Client
from rich.console import Console

from iceaggr.cli_options import with_fields_as_options
from iceaggr.config import parse_config
from iceaggr.errors import ConfigError
from launch.compilation import (
    check_display_name,
    check_namespace,
    check_run_name,
    check_service_account,
    name_run,
)
from launch.display import print_cluster_results
from launch.following import Followed, RunFailedError, follow_run
from launch.kfp_api import (
    Connection,
    address,
    check_address,
    check_version,
    connect,
    run_link,
    ui_address,
)
from launch.schedule import (
    Changes,
    LastRun,
    Schedule,
    ScheduleEntry,
    check_cron,
    delete_schedule,
    last_runs,
    list_schedules,
    replace_schedule,
)
from launch.settings import run_values
from launch.submission import (
    CompiledPipeline,
    RunOrder,
    check_images,
    compile_text,
    start_run,
    upload_version,
)

MakePipeline = Callable[..., Any]
_NAME = "iceaggr-weekly"

Ui = Annotated[
    str,
    typer.Option(
        help="Address of KFP's UI, for links; empty = KF_PIPELINES_UI_ENDPOINT, else --host"
    ),
]
RunName = Annotated[
    str,
    typer.Option(help="Name of the run; empty = preset, events, start of the weights and time"),
]


@dataclass(frozen=True)
class Asked:
    """What the user asks of a run on a cluster, now or by a schedule."""

    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE, or config.SECTION.FIELD=VALUE; may be repeated"),
    ] = None
    set_file: Annotated[
        Path | None, typer.Option(help="File with one NAME=VALUE per line; --set wins")
    ] = None
    config: Annotated[Path | None, typer.Option(help="Settings, YAML")] = None
    experiment: Annotated[str, typer.Option(help="KFP experiment that lists the runs")] = "iceaggr"
    service_account: Annotated[
        str, typer.Option(help="Service account of the pods; empty = the default")
    ] = ""
    accept_older_kfp: Annotated[
        bool,
        typer.Option("--accept-older-kfp", help="Accept a server that is too old"),
    ] = False


def add_cluster_commands(app: typer.Typer, make_pipeline: MakePipeline) -> None:
    """Add the verbs submit, follow and schedule to a command line."""
    _add_submit(app, make_pipeline)
    _add_follow(app, make_pipeline)
    _add_schedule(app, make_pipeline)


def _add_submit(app: typer.Typer, make_pipeline: MakePipeline) -> None:
    @app.command()
    @with_fields_as_options
    def submit(
        asked: Asked,
        connection: Connection,
        ui: Ui = "",
        run_name: RunName = "",
        wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end")] = False,
    ) -> None:
        """Start a run on a cluster; the graph is uploaded if its content is new."""
        # all that can be wrong here is found before anything is sent
        _check_names(connection, asked)
        check_run_name(run_name, where="--run-name")
        page_address = ui_address(connection, ui)
        client, compiled, order = _order(make_pipeline, connection, asked)
        name = run_name or _name_of(compiled, order.values)
        run_id = start_run(client, order, name)
        page = run_link(page_address, run_id) if page_address else ""
        print(f"run      {name}\n         {page or run_id}", flush=True)
        if not page:
            print(f"         no link: {address(connection)} is the API; name the UI with --ui")
        if wait:
            _follow(client, _followed(compiled, connection, run_id, page))


def _add_follow(app: typer.Typer, make_pipeline: MakePipeline) -> None:
    @app.command()
    @with_fields_as_options
    def follow(
        run_id: Annotated[str, typer.Argument(help="Id of a run, as submit printed it")],
        connection: Connection,
        ui: Ui = "",
    ) -> None:
        """Follow a run on a cluster to its end, or tell how it ended."""
        check_address(connection)
        check_namespace(connection.namespace, where="--namespace")
        page_address = ui_address(connection, ui)
        compiled = compile_text(make_pipeline(cluster=True), "followed")
        page = run_link(page_address, run_id) if page_address else ""
        _follow(connect(connection), _followed(compiled, connection, run_id, page))


def _follow(client: Any, followed: Followed) -> None:
    try:
        finished = follow_run(client, followed, lambda words: print(words, flush=True))
    except RunFailedError as error:
        if error.summary:
            print_cluster_results(Console(file=sys.stdout), error.summary, followed.page)
        raise
    except KeyboardInterrupt:
        print(f"\nthe run goes on; look again: {followed.again}", file=sys.stderr)
        raise
    _warn(finished.caution)
    if finished.summary is None:
        print(f"the run succeeded; its figures: {followed.page or 'see evaluate-model in the UI'}")
        return
    print_cluster_results(Console(file=sys.stdout), finished.summary, followed.page)


def _followed(
    compiled: CompiledPipeline, connection: Connection, run_id: str, page: str
) -> Followed:
    return Followed(
        run_id,
        steps=compiled.executors,
        looped=compiled.looped_steps,
        page=page,
        again=f"python pipeline.py follow {run_id}{connection.as_options()}",
        namespace=connection.namespace,
    )


def _name_of(compiled: CompiledPipeline, values: dict[str, Any]) -> str:
    """Name a run by its settings, where these are not given by their defaults."""
    defaults = {name: field.get("defaultValue") for name, field in compiled.parameters.items()}
    form = {**defaults, **values}
    return name_run(parse_config(form["config"]), form["raw_uri"], form["train_start_from"])


def _order(
    make_pipeline: MakePipeline, connection: Connection, asked: Asked
) -> tuple[Client, CompiledPipeline, RunOrder]:
    """Check what is asked, then connect and upload the graph."""
    pipeline = make_pipeline(cluster=True)
    compiled = compile_text(pipeline, pipeline.name)
    check_images(compiled)
    values = run_values(compiled.parameters, asked.settings or [], asked.config, asked.set_file)
    _warn_without_runtime(values)
    client = connect(connection)
    _warn(check_version(client, accept_older=asked.accept_older_kfp))
    version = upload_version(client, compiled)
    print(f"pipeline {version.name} ({'uploaded' if version.uploaded else 'was there'})")
    default = compiled.parameters.get("experiment_name", {}).get("defaultValue", "")
    tracking = values.get("experiment_name", default)
    order = RunOrder(version, asked.experiment, values, asked.service_account, tracking)
    return client, compiled, order


def _warn(words: str) -> None:
    if words:
        print(f"warning: {words}", file=sys.stderr, flush=True)


def _add_schedule(app: typer.Typer, make_pipeline: MakePipeline) -> None:
    @app.command()
    @with_fields_as_options
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
        *,
        asked: Asked,
        connection: Connection,
    ) -> None:
        """Create or replace a schedule: one run at a time, missed times are not caught up."""
        has_values = bool(asked.settings or asked.set_file or asked.config)
        _check_one_thing(cron, list_, delete, has_values=has_values)
        _check_names(connection, asked)
        if name is not None:
            check_display_name(name, where="--name")
        if list_:
            client = connect(connection)
            entries = list_schedules(client, name)
            steps = compile_text(make_pipeline(cluster=True), "listed").executors if entries else {}
            again = f"python pipeline.py follow {{}}{connection.as_options()}"
            _show(entries, last_runs(client, entries, steps), again)
        elif cron is None:
            _tell(name or _NAME, delete_schedule(connect(connection), name or _NAME))
        else:
            check_cron(cron)
            client, _, order = _order(make_pipeline, connection, asked)
            _tell(name or _NAME, replace_schedule(client, Schedule(name or _NAME, cron, order)))


def _warn_without_runtime(values: dict[str, Any]) -> None:
    """Say that a training on several machines cannot begin, if kubectl's cluster says so.

    It is no error: kubectl may know another cluster than the one that runs the pipeline.
    """
    if str(values.get("train_nodes", "1")) == "1":
        return
    # Trainer's classes take half a second to import, which no other verb needs
    from iceaggr.machines.job_api import cluster_without_runtime
    from iceaggr.machines.train_job import RUNTIME

    if cluster := cluster_without_runtime(RUNTIME):
        print(
            f"warning: train_nodes is {values['train_nodes']}, but the cluster of kubectl's context"
            f" {cluster} has no ClusterTrainingRuntime {RUNTIME}: if the run goes there, its"
            " training will fail. See docs/runbook.md, section 3",
            flush=True,
        )


def _check_one_thing(cron: str | None, list_: bool, delete: bool, *, has_values: bool) -> None:
    asked = {"--cron": cron is not None, "--list": list_, "--delete": delete}
    found = [option for option, given in asked.items() if given]
    if len(found) != 1:
        raise ConfigError(
            "schedule needs exactly one action",
            found=" and ".join(found) or "none",
            expected="one of --cron, --list and --delete",
        )
    if has_values and cron is None:
        raise ConfigError(
            "only a new schedule takes settings",
            where=found[0],
            found="--set, --set-file or --config",
            expected="these options together with --cron",
        )


def _show(entries: list[ScheduleEntry], runs: dict[str, LastRun], again: str) -> None:
    if not entries:
        print("no schedules")
    for entry in entries:
        state = "enabled" if entry.enabled else "disabled"
        print(f"{entry.name:<30} {entry.cron:<20} {state}")
        run = runs.get(entry.recurring_run_id)
        if run is None:
            print("    no run yet")
            continue
        started = f" {run.started.astimezone():%Y-%m-%d %H:%M}" if run.started else ""
        print(f"    last run{started}: {run.ended}")
        print(f"    {run.name}")
        print(f"    {again.format(run.run_id)}")


def _check_names(connection: Connection, asked: Asked) -> None:
    check_address(connection)
    check_namespace(connection.namespace, where="--namespace")
    check_display_name(asked.experiment, where="--experiment")
    check_service_account(asked.service_account, where="--service-account")


def _tell(name: str, changes: Changes) -> None:
    if changes.current is not None:
        done = "created" if changes.created else "unchanged"
        print(f"schedule {name} {done}: {changes.current.cron}")
    if changes.n_deleted:
        print(f"deleted  {changes.n_deleted} of the same name")
    if changes.n_kept:
        print(
            f"disabled {changes.n_kept} of the same name: a run of it is active, and deleting would"
            " end that run. Call again after it"
        )
