import pytest
from pydantic import ValidationError

from iceaggr.errors import RawDataError
from iceaggr.shards.planned import PlannedFile, PlannedObject, check_unchanged
from iceaggr.storage import open_store

STORE = open_store()


def test_check_unchanged_refuses_a_raw_file_that_is_gone_or_another(tmp_path):
    path = tmp_path / "batch_1.parquet"
    path.write_bytes(b"pulses")
    planned = PlannedObject(**vars(STORE.stat(path.as_uri())))
    check_unchanged(STORE, planned)
    path.write_bytes(b"pulses and more")
    with pytest.raises(RawDataError, match=r"changed after it was planned \[.*batch_1.parquet\]"):
        check_unchanged(STORE, planned)
    path.unlink()
    with pytest.raises(RawDataError, match=r"raw file is missing \[.*batch_1.parquet\]"):
        check_unchanged(STORE, planned)


def test_planned_file_uses_no_more_events_than_it_has():
    counts = {"n_events": 3, "n_events_used": 4}
    with pytest.raises(ValidationError, match="at most 3 events used"):
        PlannedFile(uri="file:///b", n_bytes=1, etag="t", batch_id=1, **counts)
