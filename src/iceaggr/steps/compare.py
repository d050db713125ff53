"""Paired comparison of tracked runs on the test events that they share."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from iceaggr.config import EvaluationConfig
from iceaggr.errors import ConfigError, EvaluationError
from iceaggr.evaluation.comparison import Comparison, compare_runs
from iceaggr.paths import EVENTS_FILE
from iceaggr.steps.documents import check_target_file, holds, write_document
from iceaggr.tracking.run import fetch_run_file


def run_compare(runs: list[str], page: Path | None) -> Comparison:
    """Compare the runs with the first one, print the tables, write the page.

    runs: names, ids or addresses of MLflow runs, two or more.  page: HTML file to write.
    Raises: ConfigError for fewer than two runs, or one named twice; TrackingError, EvaluationError.
    """
    if len(runs) < 2:
        raise ConfigError(
            "nothing to compare",
            where="iceaggr compare",
            found=", ".join(runs) or "no run",
            expected="two or more runs, the first one the reference",
            remedy="Name another run",
        )
    if page:
        check_target_file(page, "--page", holds("<h1>Paired comparison</h1>"))
    tables: dict[str, pd.DataFrame] = {}
    seen: set[str] = set()
    for run in runs:
        with TemporaryDirectory() as folder:
            file = fetch_run_file(run, EVENTS_FILE, Path(folder))
            if file.run_id in seen:
                raise ConfigError(
                    "the same run twice",
                    where=run,
                    found=file.run_name,
                    expected="different runs",
                    remedy="Name each run once",
                )
            seen.add(file.run_id)
            # two runs may share a name, never an id
            is_new = file.run_name not in tables
            label = file.run_name if is_new else f"{file.run_name} ({file.run_id[:8]})"
            tables[label] = read_event_table(file.path, file.run_name)
    comparison = compare_runs(tables, EvaluationConfig())
    if page:
        write_document(page, comparison.html)
    print(comparison.text(), flush=True)
    if page:
        print(f"page {page}", flush=True)
    return comparison


def read_event_table(path: Path, run_name: str) -> pd.DataFrame:
    """Read the events of an evaluation, and the checksums of its pages where it has them.

    Raises: EvaluationError if the file is damaged.
    """
    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise EvaluationError(
            "table of test events is damaged",
            where=f"run {run_name} {EVENTS_FILE}",
            found=" ".join(str(error).split())[:200],
            expected="the table that evaluation wrote",
            remedy="Compare again; if it stays so, evaluate the run again",
        ) from error
