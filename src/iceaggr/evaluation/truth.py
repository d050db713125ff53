"""Simulated truth: the side files that only evaluation may read."""

from __future__ import annotations

import io

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from iceaggr.errors import RawDataError
from iceaggr.evaluation.event_table import TRUTH_COLUMNS
from iceaggr.interfaces import ObjectStore

TRUTH_FOLDER = "truth"


def read_truth(store: ObjectStore, raw_uri: str) -> pd.DataFrame | None:
    """Read `truth/batch_N.parquet` below a raw URI: event_id and those of TRUTH_COLUMNS present.

    Returns None where there is no such folder, as in real data.
    Raises: RawDataError if a file is not parquet or lacks event_id.
    """
    stored = store.list(f"{raw_uri.rstrip('/')}/{TRUTH_FOLDER}/")
    uris = [found.uri for found in stored if found.uri.endswith(".parquet")]
    if not uris:
        return None
    return pd.concat([_read_file(store, uri) for uri in uris], ignore_index=True)


def _read_file(store: ObjectStore, uri: str) -> pd.DataFrame:
    try:
        file = pq.ParquetFile(io.BytesIO(store.read_bytes(uri)))
    except pa.ArrowInvalid as error:
        raise RawDataError("truth file is not parquet", where=uri, found=str(error)) from None
    names = file.schema_arrow.names
    if "event_id" not in names:
        raise RawDataError("truth file lacks event_id", where=uri, found=names)
    known = [name for name in TRUTH_COLUMNS if name in names]
    return file.read(columns=["event_id", *known]).to_pandas()
