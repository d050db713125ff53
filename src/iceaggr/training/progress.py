"""Shows training in a terminal: a bar, or one line per point where there is no terminal."""

from __future__ import annotations

import math
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from iceaggr.training.inputs import TrainingProgress


def progress_line(point: TrainingProgress) -> str:
    """Format a point of the training curves as one line of text."""
    validated = point.validation_opening_angle_deg
    validation = "not yet" if math.isnan(validated) else f"{validated:.2f} deg"
    return (
        f"step {point.step}/{point.n_steps_planned}  epoch {point.epoch + 1}/{point.n_epochs}  "
        f"loss {point.loss:.4f}  angle {point.opening_angle_deg:.2f} deg  "
        f"validation {validation}  rate {point.learning_rate:.2e}  "
        f"gradient {point.gradient_norm:.3g}  {point.events_per_s:.0f} events/s  "
        f"waiting {100 * point.data_wait_share:.0f} %"
    )


class TrainingPrinter:
    """A progress callback for `train`; use it as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:3.0f} %  {task.fields[words]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> TrainingPrinter:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, point: TrainingProgress) -> None:
        """Show a point."""
        if not self.console.is_terminal:
            self.console.print(progress_line(point), soft_wrap=True, highlight=False)
            return
        if self._task is None:
            self._task = self._bar.add_task("training", total=1.0, words="")
        self._bar.update(self._task, completed=point.share, words=progress_line(point))
