"""What the terminal shows of a local run: one line per step, then one screen of results."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

_MARKS = {
    "done": "[green]✓[/]",
    "failed": "[red]✗[/]",
    "start": "[cyan]▸[/]",
    "update": "[cyan]▸[/]",
}
_SECONDS_BETWEEN_LINES = 15.0


class RunDisplay:
    """Draws progress messages: live bars on a terminal, sparse plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = console.is_terminal
        self._bars = Progress(
            TextColumn(
                "{task.fields[mark]} {task.description}",
                table_column=Column(no_wrap=True, min_width=20),
            ),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[clock]:>6}", table_column=Column(no_wrap=True, min_width=6)),
            # what does not fit is cut here, never in the names of the steps
            TextColumn(
                "{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, ratio=1)
            ),
            console=console,
            expand=True,
        )
        self._rows: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}
        self._tasks: dict[str, dict[str, dict[str, Any]]] = {}

    def __enter__(self) -> RunDisplay:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._bars.stop()

    def show(self, message: dict[str, Any]) -> None:
        """Show one progress message; parallel tasks of a step share its line.

        Why a step failed is left to the error that ends the run, which says it whole.
        """
        if message["kind"] == "failed":
            message = {**message, "text": ""}
        tasks = self._tasks.setdefault(message["step"], {})
        before = tasks.get(message["task"], {})
        tasks[message["task"]] = {**before, **message}
        if self._live:
            self._draw(message["step"])
        else:
            self._print(message)

    def _draw(self, step: str) -> None:
        tasks = list(self._tasks[step].values())
        if step not in self._rows:
            self._rows[step] = self._bars.add_task(step, total=1.0, mark="", clock="", text="")
        kinds = {task["kind"] for task in tasks}
        kind = next((k for k in ("failed", "update", "start") if k in kinds), "done")
        done = sum(_share(task) for task in tasks) / len(tasks)
        seconds = max(task["seconds"] for task in tasks)
        # total=None makes the bar pulse: the step works but cannot say how far it is
        unknown = kind == "start"
        self._bars.update(
            self._rows[step],
            total=None if unknown else 1.0,
            completed=done,
            mark=_MARKS[kind],
            clock=clock(seconds),
            text=_summary_text(tasks),
        )

    def _print(self, message: dict[str, Any]) -> None:
        key = f"{message['step']}/{message['task']}"
        now = time.monotonic()
        frequent = now - self._printed.get(key, -1e9) < _SECONDS_BETWEEN_LINES
        if message["kind"] == "start" or (message["kind"] == "update" and frequent):
            self._printed.setdefault(key, now)
            return
        self._printed[key] = now
        share = f"{100 * _share(message):3.0f} %" if message["kind"] == "update" else ""
        mark = {"done": "done", "failed": "FAILED", "update": share}[message["kind"]]
        self.console.print(
            f"{message['step']:<20} {mark:<7} {clock(message['seconds']):>6}"
            f"  {message['text']}".rstrip(),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _share(message: dict[str, Any]) -> float:
    if message["kind"] == "done":
        return 1.0
    total = message.get("total", 0.0)
    return min(1.0, message.get("done", 0.0) / total) if total else 0.0


def _summary_text(tasks: list[dict[str, Any]]) -> str:
    if len(tasks) == 1:
        return tasks[0]["text"]
    finished = sum(task["kind"] == "done" for task in tasks)
    return f"{finished} of {len(tasks)} tasks done; {tasks[-1]['text']}".rstrip("; ")


def clock(seconds: float) -> str:
    """Write a duration as minutes and seconds, from one hour on with hours."""
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
