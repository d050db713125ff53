"""The last screen of a run: figures beside the baselines, verdict, where to look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from iceaggr.steps.manifest_facts import reuse_words
from iceaggr.tracking.experiment_page import experiment_of_run, run_link, view_link
from launch.services import Addresses


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
    console.print()
    console.print(_angle_table(summary))
    console.print()
    for label, text in [*_facts(summary), *places]:
        colour = _verdict_colour(summary) if label == "verdict" else ""
        # soft wrap keeps addresses and paths whole, so that they can be copied; brackets in them
        # are no markup
        console.print(Text.assemble(f"{label:<8} ", (text, colour)), soft_wrap=True)


def _verdict_colour(summary: dict[str, Any]) -> str:
    """Red is a decision that could not be made, yellow one against the model."""
    return {"promoted": "green", "refused": "yellow"}.get(summary["promotion"], "red")


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
        where += "  (stopped now; `make up` brings it back)"
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
        ("run", f"{summary['run_name']}, as `iceaggr compare` knows it"),
    ]
