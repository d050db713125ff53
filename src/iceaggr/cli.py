"""The command line: simulation, conversion, the steps one by one, prediction, benchmarks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from iceaggr.cli_convert import convert
from iceaggr.cli_options import (
    MAX_PROCESSES,
    MAX_SEED,
    MAX_SIMULATED_EVENTS,
    Benchmark,
    Unpredicted,
    Uri,
)
from iceaggr.cli_steps import check, evaluate, promote, shard, stats, train
from iceaggr.errors import IceaggrError
from iceaggr.machine_errors import as_machine_error
from iceaggr.progress import StepProgress
from iceaggr.signals import end_with_parent

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    """Run a command; every expected error ends in one line on stderr and exit code 1."""
    end_with_parent()
    try:
        app()
    except Exception as error:
        # what the machine refuses outside a step is told like what it refuses inside one
        told = error if isinstance(error, IceaggrError) else as_machine_error(error)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        # an interrupted training has a code of its own, which asks for a retry
        sys.exit(getattr(told, "exit_code", 1))


@app.command()
def simulate(
    out: Uri,
    events: Annotated[
        int, typer.Option(min=1, max=MAX_SIMULATED_EVENTS, help="Events to simulate")
    ],
    events_per_file: Annotated[
        int, typer.Option(min=1, max=MAX_SIMULATED_EVENTS, help="Events per raw file")
    ] = 10_000,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Same seed, same bytes")] = 0,
    processes: Annotated[int, typer.Option(min=0, max=MAX_PROCESSES, help="0 = one per core")] = 0,
    test: Annotated[bool, typer.Option("--test", help="Write test/ without labels")] = False,
) -> None:
    """Simulate raw events in the layout of the public competition set."""
    from iceaggr.events.simulation import SimulationConfig, simulate
    from iceaggr.storage import open_store

    config = SimulationConfig(
        n_events=events,
        n_events_per_file=events_per_file,
        seed=seed,
        n_processes=processes,
        labels=not test,
    )
    with StepProgress("simulate") as progress:
        simulate(
            open_store(),
            out.rstrip("/"),
            config,
            on_progress=lambda done: progress.update(done, events, f"{done:,} events"),
        )
        progress.conclude(f"{events:,} events in {out}")


app.command()(convert)
for _step in (shard, stats, check, train, evaluate, promote):
    app.command()(_step)


@app.command()
def predict(
    model: Annotated[str, typer.Option(help="models:/NAME@champion, or a model folder's URI")],
    raw_uri: Uri,
    output: Annotated[
        Path,
        typer.Option(
            help="File to write: .parquet (event_id, azimuth, zenith, kappa) or .csv (the"
            " competition's submission format: event_id, azimuth, zenith)"
        ),
    ],
    unpredicted: Annotated[
        Unpredicted | None,
        typer.Option(
            help="What an event without a valid pulse gets: nan; zero, that is straight down-going"
            " (azimuth 0, zenith 0); leave-out, no row. Without it .parquet has nan, and .csv, in"
            " which a competition wants a direction for every event, zero"
        ),
    ] = None,
    accept_doubtful: Annotated[
        bool,
        typer.Option(
            "--accept-doubtful",
            help="Predict files that are wrong as a whole or unlike the training data, with a"
            " warning",
        ),
    ] = False,
    same_detector: Annotated[
        bool,
        typer.Option(
            "--same-detector",
            help="Raw events without sensor_geometry.csv are of the model's detector",
        ),
    ] = False,
) -> None:
    """Predict the direction of every raw event, labelled or not.

    Files are held to what sharding asks of training data, and to the data
    that the model was trained on; nothing is written where one is refused.
    The last line counts the events without a valid pulse.
    """
    from iceaggr.steps.predict import run_predict

    run_predict(
        model, raw_uri.rstrip("/"), output, unpredicted or "", accept_doubtful, same_detector
    )


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(help="MLflow runs: names, ids or addresses; the first is the reference"),
    ],
    page: Annotated[Path | None, typer.Option(help="HTML page to write")] = None,
) -> None:
    """Compare runs, paired on the test events they share."""
    from iceaggr.steps.compare import run_compare

    run_compare(runs, page)


@app.command()
def bench(
    what: Annotated[Benchmark, typer.Argument(help="What to measure")],
    config: Annotated[Path | None, typer.Option(help="Settings of the model, for train")] = None,
) -> None:
    """Measure speed and memory; the last line is one JSON object."""
    result: dict[str, Any]
    if what is Benchmark.shard:
        from iceaggr.benchmarks.shard import bench_shard

        result = bench_shard()
    elif what is Benchmark.loader:
        from iceaggr.benchmarks.loader import bench_loader

        result = bench_loader()
    elif what is Benchmark.streaming:
        from iceaggr.benchmarks.streaming import bench_streaming

        result = bench_streaming()
    else:
        from iceaggr.benchmarks.train import bench_train

        result = bench_train(config)
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    from iceaggr.entry import begin, run

    begin()
    run(main)
