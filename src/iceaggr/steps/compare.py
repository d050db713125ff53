"""Paired comparison of tracked runs on the test events that they share."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from iceaggr.config import EvaluationConfig
from iceaggr.errors import ConfigError
from iceaggr.evaluation.comparison import Comparison, compare_runs
from iceaggr.tracking.run_files import fetch_run_file

EVENTS_FILE = "evaluation/events.parquet"


def run_compare(runs: list[str], page: Path | None) -> Comparison:
    """Compare the runs with the first one, print the tables, write the page.

    runs: ids or names of MLflow runs, two or more.  page: HTML file to write.
    Raises: ConfigError for fewer than two runs; TrackingError, EvaluationError.
    """
    if len(set(runs)) < 2:
        raise ConfigError("nothing to compare", found=runs, expected="two or more runs")
    if page and not page.absolute().parent.is_dir():
        raise ConfigError("folder does not exist", where=f"--page {page}")
    tables: dict[str, pd.DataFrame] = {}
    for run in runs:
        with TemporaryDirectory() as folder:
            name, path = fetch_run_file(run, EVENTS_FILE, Path(folder))
            # two runs may share a name, never an id
            label = name if name not in tables else f"{name} ({run})"
            tables[label] = pd.read_parquet(path)
    comparison = compare_runs(tables, EvaluationConfig())
    print(comparison.text(), flush=True)
    if page:
        page.write_text(comparison.html)
        print(f"page {page}", flush=True)
    return comparison
