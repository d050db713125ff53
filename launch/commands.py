"""The command line of pipeline.py: compile and run; submit and schedule are added to it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from components.form import DROPDOWNS, EXAMPLE_IMAGE, IMAGE, LAYOUTS, check_allowed
from iceaggr.cli_options import (
    MAX_SIMULATED_EVENTS,
    GpuCountOption,
    MaxTrainMinutes,
    StartFrom,
    with_fields_as_options,
)
from iceaggr.config import ExperimentConfig, load_config
from iceaggr.errors import ConfigError, IceaggrError
from iceaggr.events.simulation import DEFAULT_PRESET
from iceaggr.steps.documents import holds, refuse_other_content
from iceaggr.steps.training_choices import AS_CONFIGURED
from iceaggr.storage.uris import check_place, file_uri, refuse_among_raw
from launch.cluster_commands import RunName, add_cluster_commands
from launch.compilation import check_display_name, check_run_name, compile_pipeline, name_run
from launch.display import Addresses, RunDisplay, print_results
from launch.following import RunGoesOnError
from launch.local_run import (
    Ending,
    LocalRun,
    PipelineRunError,
    ensure_simulated_events,
    run_here,
    service_environment,
)
from launch.settings import check_device, check_folders, check_gpus_here, check_minutes

STATE_FOLDER = Path(os.environ.get("ICEAGGR_STATE_FOLDER") or ".iceaggr")
LOST_CONTACT = 3
N_EVENTS_AT_LEAST, N_EVENTS_PER_MINUTE = 100_000, 10_000
"""A model that sees the same events too often knows them by heart: on 100,000 an hour gives what
five minutes give, and a false confidence (docs/LOG.md)."""

DEFAULT_CONFIG_PATH = Path(__file__).parent.parent / "configs" / "laptop.yaml"


@dataclass(frozen=True)
class RunRequest:
    """What the user asked of a local run."""

    raw_uri: Annotated[
        str, typer.Option(help="Folder of raw events, file:// or s3://; empty = simulate")
    ] = ""
    raw_layout: Annotated[
        str, typer.Option(help="competition, or nubench: --raw-uri is converted first")
    ] = LAYOUTS[0]
    config: Annotated[Path, typer.Option(help="Settings, YAML")] = DEFAULT_CONFIG_PATH
    max_train_minutes: MaxTrainMinutes = 0.0
    gpu_count: GpuCountOption = AS_CONFIGURED
    start_from: StartFrom = AS_CONFIGURED
    summary: Annotated[Path | None, typer.Option(help="File to write the figures to, JSON")] = None
    experiment_name: Annotated[str, typer.Option(help="MLflow experiment")] = "iceaggr"
    work_uri: Annotated[str, typer.Option(help="Folder for shards, checkpoints and models")] = (
        "s3://iceaggr/work"
    )
    simulate_events: Annotated[
        int | None,
        typer.Option(
            min=100,
            max=MAX_SIMULATED_EVENTS,
            help="Events to simulate when no --raw-uri is given; without it 10,000 for each"
            " minute of training, at least 100,000",
        ),
    ] = None
    run_name: RunName = ""

    @cached_property
    def settings(self) -> ExperimentConfig:
        """Read the settings. Raises: ConfigError."""
        return load_config(self.config)

    @property
    def n_simulated_events(self) -> int:
        """Say how many events are simulated: those asked for, or enough for the training."""
        if self.simulate_events is not None:
            return self.simulate_events
        minutes = self.max_train_minutes or self.settings.training.max_minutes
        return int(min(max(N_EVENTS_AT_LEAST, minutes * N_EVENTS_PER_MINUTE), MAX_SIMULATED_EVENTS))


def main(make_pipeline: Callable[..., Any]) -> None:
    """Serve the verbs; every expected error ends in one line on stderr and exit code 1.

    3: a run on a cluster goes on, and only its server is away.
    """
    try:
        _app(make_pipeline)()
    except RunGoesOnError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(LOST_CONTACT)
    except IceaggrError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _app(make_pipeline: Callable[..., Any]) -> typer.Typer:
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

    @app.command("compile")
    def compile_(
        output: Annotated[Path, typer.Option(help="File to write, ends in .yaml")],
    ) -> None:
        """Compile the graph to KFP IR YAML."""
        print(f"wrote {compile_pipeline(make_pipeline(cluster=True), output)}")
        if IMAGE == EXAMPLE_IMAGE:
            print(
                f"warning: the steps have the example image {EXAMPLE_IMAGE}:"
                " set ICEAGGR_IMAGE to your image and compile again",
                file=sys.stderr,
            )

    @app.command()
    @with_fields_as_options
    def run(request: RunRequest) -> None:
        """Run the whole pipeline on this machine."""
        _check_request(request)
        _run(make_pipeline, request)

    add_cluster_commands(app, make_pipeline)
    return app


_IS_SUMMARY = holds('"mean_opening_angle_deg"', '"model_uri"')


def _check_request(request: RunRequest) -> None:
    if request.raw_uri:
        check_place(request.raw_uri, "--raw-uri")
    check_place(request.work_uri, "--work-uri")
    raw_uri, _ = _raw_events(request)
    check_folders(raw_uri, request.work_uri, where="--work-uri")
    refuse_among_raw(raw_uri, file_uri(STATE_FOLDER), where="ICEAGGR_STATE_FOLDER")
    check_display_name(request.experiment_name, where="--experiment-name")
    check_run_name(request.run_name, where="--run-name")
    check_allowed(
        "--start-from", request.start_from, DROPDOWNS["train_start_from"], where="command line"
    )
    check_allowed("--raw-layout", request.raw_layout, LAYOUTS, where="command line")
    if request.raw_layout != LAYOUTS[0] and not request.raw_uri:
        raise ConfigError(
            "nothing to convert",
            where=f"--raw-layout {request.raw_layout}",
            found="no --raw-uri: events are simulated in our own layout",
            expected="the folder of a set in that layout",
            remedy="Give it with --raw-uri",
        )
    check_minutes(request.max_train_minutes, where="--max-train-minutes")
    check_device(request.settings, request.gpu_count, where="--gpu-count and training.device")
    check_gpus_here(request.settings, request.gpu_count)
    if request.summary:
        refuse_among_raw(raw_uri, file_uri(request.summary), where="--summary")
        _check_writable(request.summary)
        refuse_other_content(request.summary, "--summary", _IS_SUMMARY)


def _check_writable(path: Path) -> None:
    """Find out before hours of work, not after them."""
    is_new = not path.exists()
    try:
        path.open("a", encoding="utf-8").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise ConfigError(
            "the figures cannot be written",
            where=f"--summary {path}",
            found=error.strerror or str(error),
            expected="a file in a folder that you may write to",
        ) from None


def _run(make_pipeline: Callable[..., Any], request: RunRequest) -> None:
    # bound now: KFP's output is redirected to its log while the run goes on
    console = Console(file=sys.stdout)
    with Ending() as ending, service_environment(STATE_FOLDER, console) as addresses:
        # named by its start: the id of the run is KFP's, and not known yet
        started = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}"
        folder = STATE_FOLDER.absolute() / "runs" / started
        raw_uri, prepare = _raw_events(request)
        for label, place in (("raw events", raw_uri), ("KFP log", f"{folder / 'kfp.log'}\n")):
            console.print(f"{label:<11} {place}", highlight=False, markup=False, soft_wrap=True)

        name = request.run_name or name_run(request.settings, raw_uri, request.start_from)

        def steps() -> None:
            with ending.taking_along():
                make_pipeline(cluster=False, run_name=name, here_layout=request.raw_layout)(
                    **_arguments(request, raw_uri)
                )

        try:
            run_here(steps, folder, RunDisplay(console), prepare)
        except PipelineRunError as error:
            # the figures are there once promotion began, and are shown all the same
            with suppress(PipelineRunError):
                _show(request, LocalRun(folder), console, addresses)
            if "promote_model" not in LocalRun(folder).finished_steps():
                raise
            # only what comes after the result failed
            print(f"warning: the result is complete, but {error}", file=sys.stderr)
            return
        _show(request, LocalRun(folder), console, addresses)


def _show(request: RunRequest, run: LocalRun, console: Console, addresses: Addresses) -> None:
    """Write the figures and print the last screen. Raises: PipelineRunError if there are none."""
    summary = json.loads(run.output("promote_model", "summary").read_text(encoding="utf-8"))
    report = STATE_FOLDER.absolute() / f"report-{summary['run_name']}.html"
    shutil.copyfile(run.output("evaluate_model", "report"), report)
    if request.summary:
        # before the screen, which a closed terminal or pipe may not take
        request.summary.write_text(
            json.dumps(summary, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
    print_results(console, summary, report, run.folder / "kfp.log", addresses)


def _arguments(request: RunRequest, raw_uri: str) -> dict[str, Any]:
    return {
        "config": request.settings.model_dump(mode="json"),
        "experiment_name": request.experiment_name,
        "train_gpu_count": request.gpu_count,
        "train_max_minutes": request.max_train_minutes,
        "train_start_from": request.start_from,
        "raw_uri": raw_uri,
        "work_uri": request.work_uri.rstrip("/"),
    }


def _raw_events(request: RunRequest) -> tuple[str, Callable[[], None] | None]:
    if request.raw_uri:
        return request.raw_uri.rstrip("/"), None
    n_events = request.n_simulated_events
    raw_uri = f"s3://iceaggr/raw/simulated-{DEFAULT_PRESET}-{n_events}"
    return raw_uri, lambda: ensure_simulated_events(raw_uri, n_events)
