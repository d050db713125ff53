"""The command line: simulation, conversion, the steps one by one, prediction, benchmarks."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from iceaggr.cli_convert import convert
from iceaggr.cli_options import (
    FOLDER,
    AcceptDoubtful,
    Benchmark,
    BenchmarkSet,
    DetectorOption,
    Energies,
    EventsPerFile,
    FlavourOption,
    Folder,
    GpuCountOption,
    Layout,
    MaxTrainMinutes,
    MediumOption,
    ModelUri,
    NumberOfEvents,
    PredictionFiles,
    PredictionLayout,
    PredictionOutput,
    Preset,
    Processes,
    Refine,
    RefineAbove,
    ReportPage,
    Reversed,
    ReversedFiles,
    SameDetector,
    ScoredEvents,
    ScoredFolder,
    ScoredModel,
    ScoredRun,
    SimulatedLayout,
    SimulationSeed,
    SpectralIndex,
    StartFrom,
    UnpredictedEvents,
    Uri,
    WithoutLabels,
)
from iceaggr.config import ExperimentConfig, PromotionConfig, load_config
from iceaggr.errors import ConfigError, IceaggrError, as_machine_error
from iceaggr.progress import StepProgress
from iceaggr.signals import end_with_parent
from iceaggr.validation import read_model

# The commands of the steps, one by one, in the folder of a run.
#
# `iceaggr shard --folder F ...` starts the folder and remembers the settings in F/run.json, and
# each later step reads what the steps before it left there.


def shard(
    raw_uri: Uri,
    folder: Folder,
    config: Annotated[Path | None, typer.Option(help="Settings, YAML")] = None,
    work_uri: Annotated[str, typer.Option(help="Where shards go; empty = FOLDER/work")] = "",
    experiment_name: Annotated[str, typer.Option(help="MLflow experiment")] = "iceaggr",
) -> None:
    """Plan and write the shards of all raw files; what is already there is reused.

    The same command over the same folder goes on with what an interrupted one left to do.
    """
    from iceaggr.steps.plan_shards import run_plan_shards, run_shard_events
    from iceaggr.steps.run_folder import RunFolder

    settings = load_config(config) if config else ExperimentConfig()
    with RunFolder.create(folder, raw_uri, work_uri, experiment_name, settings).alone() as run:
        # they may be of another plan; what they name is found again by its content
        run.forget_units()
        context = run.context()
        for index, work_unit in enumerate(run_plan_shards(context, run.raw_uri)):
            run_shard_events(context, work_unit, run.unit_manifest(index))


def stats(folder: Folder) -> None:
    """Merge the sketches of the train split into normalisation and data card."""
    from iceaggr.steps.compute_statistics import run_compute_statistics
    from iceaggr.steps.run_folder import RunFolder

    with RunFolder.open(folder).alone() as run:
        run_compute_statistics(
            run.context(),
            run.unit_manifests(),
            manifest_path=run.manifest,
            normalization_path=run.normalization,
            data_card_path=run.data_card,
        )


def check(
    folder: Folder,
    full_table: Annotated[
        bool, typer.Option("--full-table", help="All learning rates, normalised and raw inputs")
    ] = False,
) -> None:
    """Train for a few dozen steps and fail if the loss does not fall."""
    from iceaggr.steps.run_folder import RunFolder
    from iceaggr.steps.train_model import run_check_learning

    with RunFolder.open(folder).alone() as run:
        run_check_learning(
            run.context(),
            run.manifest,
            run.normalization,
            run.learning_table,
            full_table=full_table,
        )


def train(
    folder: Folder,
    max_train_minutes: MaxTrainMinutes = 0.0,
    gpu_count: GpuCountOption = "configured",
    start_from: StartFrom = "configured",
) -> None:
    """Train the configured model; interrupted, it goes on from its last checkpoint."""
    from iceaggr.steps.run_folder import RunFolder
    from iceaggr.steps.train_request import run_train_here
    from iceaggr.steps.training_choices import TrainingChoices

    with RunFolder.open(folder).alone() as run:
        run_train_here(
            run.context(),
            run.manifest,
            run.normalization,
            model_path=run.model,
            choices=TrainingChoices(max_train_minutes, gpu_count, start_from),
        )


def evaluate(
    folder: Annotated[Path | None, FOLDER] = None,
    model: ScoredModel = "",
    raw_uri: ScoredEvents = "",
    predictions: PredictionFiles = None,
    report: ReportPage = None,
    is_reversed: Reversed = False,
    benchmark_set: BenchmarkSet = "",
    accept_doubtful: AcceptDoubtful = False,
    same_detector: SameDetector = False,
) -> None:
    """Score the model and the baselines on the test split and write the report.

    With --model and --raw-uri: on labelled raw events; of up to 50, a row for each is printed.
    With --predictions: the same report for a file of predictions, without model or events.
    """
    found = {"--folder": folder, "--model": model, "--raw-uri": raw_uri}
    named = [name for name, value in found.items() if value]
    named += ["--predictions"] * len(predictions or [])
    if named == ["--model", "--raw-uri"]:
        from iceaggr.steps.predict import run_evaluate_raw

        run_evaluate_raw(model, raw_uri.rstrip("/"), report, accept_doubtful, same_detector)
        return
    if predictions and named == ["--predictions"]:
        from iceaggr.steps.compare import run_evaluate_predictions

        run_evaluate_predictions(predictions[0], report, is_reversed, benchmark_set)
        return
    if folder is None or named != ["--folder"]:
        raise ConfigError(
            "not one thing to evaluate",
            where="iceaggr evaluate",
            found=", ".join(named) or "neither",
            expected="--folder FOLDER; --model and --raw-uri; or --predictions FILE once",
            remedy="`iceaggr compare FILE FILE` judges two files, event by event",
        )
    from iceaggr.steps.evaluate_model import run_evaluate_model
    from iceaggr.steps.run_folder import RunFolder

    with RunFolder.open(folder).alone() as run:
        run_evaluate_model(
            run.context(),
            run.manifest,
            run.model,
            run.raw_uri,
            evaluation_path=run.evaluation,
            report_path=run.report,
        )


def promote(
    folder: Annotated[Path | None, FOLDER] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Restore the previous champion instead")
    ] = False,
    model_name: Annotated[
        str, typer.Argument(help="With --rollback: name in the registry", show_default=False)
    ] = "",
) -> None:
    """Register the model and make it champion if it is better on the same events."""
    from iceaggr.steps.promote_model import run_promote_model
    from iceaggr.steps.run_folder import RunFolder

    if rollback:
        from iceaggr.tracking.registry import ModelRegistry

        of_run = RunFolder.open(folder).context().config.promotion if folder else PromotionConfig()
        print(f"champion is {ModelRegistry().rollback(model_name or of_run.model_name).uri} again")
        return
    if folder is None or model_name:
        raise ConfigError(
            "nothing to promote",
            where="iceaggr promote",
            found=f"a model's name, {model_name}" if model_name else None,
            expected="--folder FOLDER, or --rollback [MODEL_NAME]",
            remedy="Name the folder of a run, or ask for the rollback",
        )
    with RunFolder.open(folder).alone() as run:
        run_promote_model(
            run.context(),
            run.manifest,
            run.model,
            run.evaluation,
            summary_path=run.summary,
            verdict_path=run.verdict,
        )


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
    events: NumberOfEvents,
    events_per_file: EventsPerFile = 10_000,
    seed: SimulationSeed = 0,
    processes: Processes = 0,
    test: WithoutLabels = False,
    detector: DetectorOption = "icecube86",
    medium: MediumOption = "",
    preset: Preset = "",
    energies: Energies = None,
    spectral_index: SpectralIndex = None,
    flavour: FlavourOption = "all",
    layout: SimulatedLayout = "raw",
) -> None:
    """Simulate events in the layout of the public competition set, or of NuBench's sets."""
    from iceaggr.events.simulation import SimulationConfig, simulate
    from iceaggr.storage import open_store

    config = read_model(
        SimulationConfig,
        {
            "n_events": events,
            "n_events_per_file": events_per_file,
            "seed": seed,
            "n_processes": processes,
            "labels": not test,
            "detector": detector,
            "medium": medium,
            "flavour": flavour,
            "layout": layout,
            **({"preset": preset} if preset else {}),
            **dict(zip(("min_energy_gev", "max_energy_gev"), energies or (), strict=False)),
            **({} if spectral_index is None else {"spectral_index": spectral_index}),
        },
        lambda problem: ConfigError(
            "this cannot be simulated",
            where="iceaggr simulate",
            found=problem.found_in_field if problem.field else "options that exclude each other",
            expected=problem.expected,
            remedy="`iceaggr simulate --help` explains each option",
        ),
    )
    with StepProgress("simulate") as progress:
        summary = simulate(
            open_store(),
            out.rstrip("/"),
            config,
            on_progress=lambda done: progress.update(done, events, f"{done:,} events"),
        )
        progress.conclude(f"{events:,} events in {out}; light in {summary.medium_words}")


@app.command()
def check_simulation(
    events: Annotated[
        int, typer.Option(min=100, max=1_000_000, help="Events to simulate and measure")
    ] = 10_000,
    seed: SimulationSeed = 1,
    processes: Processes = 0,
    preset: Annotated[str, typer.Option(help="competition or easy")] = "competition",
    real_meta: Annotated[
        Path | None,
        typer.Option(help="Rows of the competition's train_meta.parquet, to compare with"),
    ] = None,
    raw_uri: Annotated[
        str, typer.Option(help="Measure these labelled raw events of IceCube instead")
    ] = "",
) -> None:
    """Compare simulated events with the public set; fail if a figure leaves its range.

    The table has, for each figure, the real value, the simulated one with
    its statistical error, and the range. Sources: docs/physics.md.
    """
    from iceaggr.events.simulation import SimulationConfig
    from iceaggr.steps.check_simulation import run_check_simulation

    settings = {"preset": preset, "n_events": events, "seed": seed, "n_processes": processes}
    config = read_model(
        SimulationConfig,
        settings,
        lambda problem: ConfigError(
            "this cannot be simulated",
            where="iceaggr check-simulation",
            found=problem.found_in_field,
            expected=problem.expected,
            remedy="Give another --preset",
        ),
    )
    if not run_check_simulation(config, real_meta, raw_uri.rstrip("/")):
        sys.exit(1)


@app.command()
def detectors() -> None:
    """List the built-in detectors: names that stand wherever a geometry does."""
    from iceaggr.built_in_detectors import detectors_table

    print(detectors_table())


app.command()(convert)
for _step in (shard, stats, check, train, evaluate, promote):
    app.command()(_step)


@app.command()
def predict(
    output: PredictionOutput,
    model: ModelUri = "",
    raw_uri: Uri = "",
    layout: Layout = PredictionLayout.iceaggr,
    folder: ScoredFolder = None,
    run: ScoredRun = "",
    unpredicted: UnpredictedEvents = None,
    accept_doubtful: AcceptDoubtful = False,
    same_detector: SameDetector = False,
    refine: Refine = False,
    refine_above: RefineAbove = None,
) -> None:
    """Predict the direction of every raw event, labelled or not.

    Files are held to what sharding asks of training data, and to the data
    that the model was trained on; nothing is written where one is refused.
    The last line counts the events without a valid pulse.
    """
    texts = {"--model": model, "--raw-uri": raw_uri, "--folder": folder, "--run": run}
    is_refined = refine or refine_above is not None
    named = [name for name, value in (texts | {"--refine": is_refined}).items() if value]
    if layout is PredictionLayout.nubench and named in (["--folder"], ["--run"]):
        from iceaggr.steps.compare import run_export

        run_export(folder, run, output)
        return
    if [name for name in named if name != "--refine"] != ["--model", "--raw-uri"]:
        raise ConfigError(
            "not one thing to predict",
            where="iceaggr predict",
            found=", ".join(named) or "neither",
            expected="--model and --raw-uri, or with --layout nubench --folder or --run alone",
            remedy="Name model and raw events, or a run whose test events are scored",
        )
    from iceaggr.steps.predict import run_predict

    run_predict(
        model,
        raw_uri.rstrip("/"),
        output,
        unpredicted or "",
        accept_doubtful,
        same_detector,
        layout.value,
        is_refined,
        refine_above,
    )


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="MLflow runs (names, ids, addresses) or files (.parquet); first the reference"
        ),
    ],
    predictions: Annotated[
        bool, typer.Option("--predictions", help="All are files, whatever their names end in")
    ] = False,
    page: Annotated[Path | None, typer.Option(help="HTML page to write")] = None,
    reversed_files: ReversedFiles = None,
) -> None:
    """Compare runs or files of predictions, paired on the events they share."""
    from iceaggr.steps.compare import run_compare

    run_compare(runs, page, predictions, reversed_files or ())


def add_checkout() -> None:
    """Make the benchmarks of the checkout importable. Raises: ConfigError where there is none."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "benchmarks" / "train.py").exists():
        raise ConfigError(
            "the benchmarks are not installed",
            where="iceaggr bench",
            found=f"no folder benchmarks in {checkout}",
            expected="a checkout of the project",
            remedy="Run it in a checkout: make setup && .venv/bin/iceaggr bench ...",
        )
    sys.path.insert(0, str(checkout))


@app.command()
def bench(
    what: Annotated[Benchmark, typer.Argument(help="What to measure")],
    config: Annotated[Path | None, typer.Option(help="Settings of the model, for train")] = None,
) -> None:
    """Measure speed and memory; the last line is one JSON object."""
    add_checkout()
    file = {"shard": "data_path", "loader": "data_path", "convert": "streaming"}.get(what, what)
    measure = getattr(import_module(f"benchmarks.{file}"), f"bench_{what}")
    print(json.dumps(measure(config) if what is Benchmark.train else measure(), sort_keys=True))


if __name__ == "__main__":
    from iceaggr.entry import begin, run

    begin()
    run(main)
