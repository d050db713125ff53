"""Simulated truth: the side files that only evaluation may read."""

from __future__ import annotations

import pandas as pd

from iceaggr.errors import RawDataError
from iceaggr.evaluation.event_table import TRUTH_COLUMNS
from iceaggr.events.schema import FLAG, INTEGER, NUMBER, TEXT, check_columns, open_parquet
from iceaggr.interfaces import ObjectStore

TRUTH_FOLDER = "truth"
_KINDS = dict(zip(TRUTH_COLUMNS, (NUMBER, TEXT, FLAG, NUMBER), strict=True))


def read_truth(store: ObjectStore, raw_uri: str) -> pd.DataFrame | None:
    """Read `truth/batch_N.parquet` below a raw URI: event_id and those of TRUTH_COLUMNS present.

    Returns None where there is no such folder, as in real data.
    Raises: RawDataError if a file is not parquet, lacks event_id or has a column of another kind.
    """
    stored = store.list(f"{raw_uri.rstrip('/')}/{TRUTH_FOLDER}/")
    uris = [found.uri for found in stored if found.uri.endswith(".parquet")]
    if not uris:
        return None
    return pd.concat([_read_file(store, uri) for uri in uris], ignore_index=True)


def _read_file(store: ObjectStore, uri: str) -> pd.DataFrame:
    with open_parquet(store, uri) as file:
        schema = file.schema_arrow
        known = {name: kind for name, kind in _KINDS.items() if name in schema.names}
        check_columns(schema, {"event_id": INTEGER, **known}, uri)
        table = file.read(columns=["event_id", *known])
        if table.column("event_id").null_count:
            raise RawDataError(
                "truth column event_id has missing values",
                where=uri,
                found=f"{table.column('event_id').null_count} nulls",
                expected="none",
                remedy="Write the truth file anew, or remove the folder",
            )
        # what pandas noted in the file about its own types may be damaged too
        return table.replace_schema_metadata(None).to_pandas()
