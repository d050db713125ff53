"""What the terminal shows of a local run: one line per step, then one screen of results."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

from iceaggr.shards.manifest import reuse_words
from iceaggr.tracking.run_target import experiment_of_run, run_link, view_link

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

    def __exit__(self, *error: object) -> None:
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


# The last screen of a run: figures beside the baselines, verdict, where to look.


@dataclass(frozen=True)
class Addresses:
    """Where the services of a run are, and whether they outlive it."""

    tracking_uri: str
    stay_up: bool


def print_results(
    console: Console,
    summary: dict[str, Any],
    report: Path,
    log: Path,
    addresses: Addresses,
) -> None:
    """Print the screen of a local run from the summary that promote_model wrote."""
    _print_screen(
        console,
        summary,
        [*_pages(summary, addresses), ("report", str(report)), ("log", str(log))],
    )


def print_cluster_results(console: Console, summary: dict[str, Any], page: str) -> None:
    """Print the screen of a run on a cluster, whose MLflow has an address of its own there.

    page: of the run in Kubeflow's UI, '' if not known
    """
    places = [("MLflow", f"run id {summary['mlflow_run_id']}")]
    if page:
        places.append(("report", f"{page}  (evaluate-model)"))
    _print_screen(console, summary, places)


def _print_screen(console: Console, summary: dict[str, Any], places: list[tuple[str, str]]) -> None:
    # red is a decision that could not be made, yellow one against the model
    verdict = {"promoted": "green", "refused": "yellow"}.get(summary["promotion"], "red")
    console.print()
    console.print(_angle_table(summary))
    console.print()
    for label, text in [*_facts(summary), *places]:
        colour = verdict if label == "verdict" else ""
        # soft wrap keeps addresses and paths whole, so that they can be copied; brackets in them
        # are no markup
        console.print(Text.assemble(f"{label:<8} ", (text, colour)), soft_wrap=True)


def _angle_table(summary: dict[str, Any]) -> Table:
    table = Table(
        title=f"Opening angle in degrees, {summary['n_events_test']:,} held-out events",
        title_justify="left",
    )
    table.add_column("")
    for name in ("mean", "median", "68 %"):
        table.add_column(name, justify="right")
    for row in summary["table"]:
        table.add_row(
            row["title"],
            f"{row['mean_deg']:.2f} ± {row['mean_error_deg']:.2f}",
            f"{row['median_deg']:.2f} ± {row['median_error_deg']:.2f}",
            f"{row['p68_deg']:.2f} ± {row['p68_error_deg']:.2f}",
        )
    return table


def _pages(summary: dict[str, Any], addresses: Addresses) -> list[tuple[str, str]]:
    """Link to the run, and to all runs side by side while the server can be asked."""
    server, run_id = addresses.tracking_uri, summary["mlflow_run_id"]
    experiment = experiment_of_run(server, run_id)
    where = run_link(server, run_id, experiment)
    if not addresses.stay_up:
        where += "  (stopped; `make up` starts it again)"
    pages = [("MLflow", where)]
    if experiment:
        pages.append(("runs", f"{view_link(server, experiment)}  (test figures side by side)"))
    return pages


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    pulses = (
        f"{summary['pulses_in']:,} in = {summary['pulses_kept']:,} kept"
        f" + {summary['pulses_rejected']:,} rejected"
    )
    events = (
        f"{summary['n_events_train']:,} train, {summary['n_events_validation']:,} validation,"
        f" {summary['n_events_test']:,} test"
    )
    return [
        ("files", reuse_words(summary)),
        ("events", events),
        ("pulses", pulses),
        ("start", summary["started_from"]),
        ("verdict", summary["reason"]),
        ("model", summary["model_uri"]),
        ("run", f"{summary['run_name']}  (the name for `iceaggr compare`)"),
    ]
