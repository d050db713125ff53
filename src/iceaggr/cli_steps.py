"""The commands of the steps, one by one, in the folder of a run.

`iceaggr shard --folder F ...` starts the folder and remembers the settings in F/run.json, and each
later step reads what the steps before it left there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iceaggr.cli_options import FOLDER, Folder, Uri
from iceaggr.config import ExperimentConfig, PromotionConfig, load_config
from iceaggr.errors import ConfigError


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
    from iceaggr.steps.plan_shards import run_plan_shards
    from iceaggr.steps.run_folder import RunFolder
    from iceaggr.steps.shard_events import run_shard_events

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
    from iceaggr.steps.check_learning import run_check_learning
    from iceaggr.steps.run_folder import RunFolder

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
    max_train_minutes: Annotated[float, typer.Option(min=0.0, help="0 = as configured")] = 0.0,
    gpu_count: Annotated[
        str,
        typer.Option(help="GPUs, one process each; 0 = CPU, configured = as training.device says"),
    ] = "configured",
    start_from: Annotated[
        str, typer.Option(help="scratch, champion, or configured")
    ] = "configured",
) -> None:
    """Train the configured model; interrupted, it goes on from its last checkpoint."""
    from iceaggr.steps.run_folder import RunFolder
    from iceaggr.steps.train_here import run_train_here
    from iceaggr.steps.training_choices import TrainingChoices

    with RunFolder.open(folder).alone() as run:
        run_train_here(
            run.context(),
            (run.manifest, run.normalization),
            model_path=run.model,
            choices=TrainingChoices(max_train_minutes, gpu_count, start_from),
        )


def evaluate(folder: Folder) -> None:
    """Score the model and the baselines on the test split and write the report."""
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
