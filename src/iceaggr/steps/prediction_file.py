"""The file that `predict` writes: what cannot be written is refused before the first event."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from iceaggr.errors import ConfigError, naming
from iceaggr.evaluation.event_table import COLUMNS, PREDICTION_SCHEMA
from iceaggr.steps.documents import check_target_file, refuse_other_content
from iceaggr.storage.file_store import partial_file, replace_durably
from iceaggr.storage.uris import FILE_SCHEME, file_path

LEAVE_OUT = "leave-out"
UNPREDICTED = {"nan": (math.nan, math.nan), "zero": (0.0, 0.0), LEAVE_OUT: (math.nan, math.nan)}
"""Azimuth and zenith of an event without a valid pulse: none, straight down-going, or no row."""
UNPREDICTED_BY_FORMAT = {".parquet": "nan", ".csv": "zero"}
"""A competition's submission must name a direction for every event; it has that which the fits of
`evaluate` have where they fail."""


def check_output(output: Path, raw_uri: str) -> None:
    """Refuse a file that could not be written in the end, or that lies among the raw events.

    Raises: ConfigError; StorageError if the raw URI names no place.
    """
    if output.suffix not in UNPREDICTED_BY_FORMAT:
        raise ConfigError(
            "unknown format",
            where=f"--output {output}",
            found=repr(output.suffix),
            expected=".parquet, or .csv for a competition submission",
            remedy="Give the file one of these endings",
        )
    check_target_file(output, "--output", lambda _: True)
    if raw_uri.startswith(FILE_SCHEME):
        raw_folder = file_path(raw_uri).resolve()
        place = output.absolute().parent.resolve() / output.name
        if place.is_relative_to(raw_folder):
            raise _among_raw_events(output, f"{place} in {raw_folder}")


def _is_prediction(path: Path) -> bool:
    """Tell predictions, or a submission, from any other file."""
    try:
        if path.suffix == ".csv":
            with path.open("rb") as file:
                header = file.readline(1000).decode("utf-8", "replace")
            return header.replace('"', "").strip().split(",") == list(COLUMNS[:3])
        return list(pq.read_schema(path).names) == list(COLUMNS)
    except pa.ArrowException:
        return False


def refuse_raw_files(output: Path, uris: Iterable[str]) -> None:
    """Refuse an output that a link in the raw folder leads to, or that holds no predictions.

    Raises: ConfigError.
    """
    for uri in uris:
        with suppress(FileNotFoundError):  # of the output, mostly
            if uri.startswith(FILE_SCHEME) and output.samefile(file_path(uri)):
                raise _among_raw_events(output, f"the file of {uri}")
    refuse_other_content(output, "--output", _is_prediction)


def _among_raw_events(output: Path, found: str) -> ConfigError:
    return ConfigError(
        "predictions would be written among the raw events",
        where=f"--output {output}",
        found=found,
        expected="a file outside the raw folder",
        remedy="Raw events are never written to: give another place",
    )


def write_predictions(tables: Iterator[pa.Table], output: Path) -> int:
    """Stream predictions to a temporary name beside the file, which appears when it is complete.

    Returns the number of events.  Raises: OSError that names the file.
    """
    n_events = 0
    with partial_file(output) as partial:
        with _writer(partial, output) as writer:
            for table in tables:
                # not around the tables: a raw file that cannot be read is another one
                with naming(output):
                    writer.write_table(table.select(writer.schema.names))
                n_events += table.num_rows
        with naming(output):
            replace_durably(partial, output)
    return n_events


@contextmanager
def _writer(partial: Path, output: Path) -> Iterator[Any]:
    with naming(output):
        if output.suffix == ".csv":
            writer = _SubmissionWriter(partial)
        else:
            writer = pq.ParquetWriter(partial, PREDICTION_SCHEMA)
    try:
        yield writer
    except BaseException:
        with suppress(OSError, pa.ArrowException):  # what it could not write is told already
            writer.close()
        raise
    with naming(output):
        writer.close()


class _SubmissionWriter(pa.csv.CSVWriter):
    """Writes the columns that the public competition scores, without kappa."""

    schema = pa.schema([PREDICTION_SCHEMA.field(name) for name in COLUMNS[:3]])

    def __init__(self, path: Path) -> None:
        super().__init__(path, self.schema)
