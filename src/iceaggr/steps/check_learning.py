"""Step 4: a few dozen training steps that must learn before an expensive run may start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from iceaggr.interfaces import Tracker
from iceaggr.progress import StepProgress
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import write_document
from iceaggr.steps.training_inputs import load_training_inputs
from iceaggr.training import (
    LearningRow,
    check_learning,
    learning_check_html,
    learning_check_table,
    learning_check_text,
)


def run_check_learning(
    context: RunContext,
    manifest_path: Path,
    normalization_path: Path,
    table_path: Path,
    *,
    full_table: bool = False,
) -> None:
    """Train for a few steps on the real shards with the configured rate.

    full_table: first try every learning rate, with normalised and with raw inputs.
    Raises: TrainingError when the loss is not finite or does not fall.
    """
    with (
        StepProgress("check_learning", run_id=context.run_id) as progress,
        context.tracking("check_learning") as tracker,
    ):
        inputs = load_training_inputs(context, manifest_path, normalization_path, tracker)
        rows = learning_check_table(inputs, _row_by_row(progress)) if full_table else []
        if rows:
            _keep(table_path, learning_check_html(rows, context.config.name), tracker)
            print(learning_check_text(rows), flush=True)
        checked = check_learning(inputs)
        _keep(table_path, learning_check_html([*rows, checked], context.config.name), tracker)
        progress.conclude(
            f"loss {checked.first_loss:.3f} -> {checked.last_loss:.3f} in"
            f" {context.config.learning_check.n_steps} steps: {checked.verdict}"
        )


def _row_by_row(progress: StepProgress) -> Callable[[LearningRow, int], None]:
    """Report each row of the table as soon as it is there."""
    done: list[LearningRow] = []

    def show(row: LearningRow, n_rows: int) -> None:
        done.append(row)
        words = (
            f"{row.inputs} inputs, rate {row.learning_rate:g}: loss {row.change:+.3f},"
            f" {row.verdict}"
        )
        progress.update(len(done), n_rows, words)

    return show


def _keep(path: Path, page: str, tracker: Tracker) -> None:
    write_document(path, page)
    tracker.log_text(page, "learning_check.html")
