import numpy as np
import pandas as pd
import pytest

from iceaggr.detector import parse_geometry
from iceaggr.errors import DetectorError, RawDataError
from iceaggr.events import pulses
from iceaggr.events.cleaning import Account
from iceaggr.events.dom_events import concatenate
from iceaggr.events.reading import check_sensor_width, raw_columns, read_raw_events
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout
from tests.events.raw_tables import meta_frame, pulse_frame, write_raw


def read_raw_tables(folder, split):
    files = sorted((folder / split).iterdir())
    return pd.concat([pd.read_parquet(f) for f in files]), pd.read_parquet(
        folder / f"{split}_meta.parquet"
    )


@pytest.mark.parametrize("labels", [True, False])
def test_read_raw_events_gives_every_value_in_file_order(tmp_path, monkeypatch, labels):
    monkeypatch.setattr(pulses, "PULSES_PER_READ", 500)
    uri = write_raw_layout(tmp_path, n_files=3, n_events_per_file=20, labels=labels)
    account = Account()
    chunks = list(read_raw_events(open_store(), uri, account=account))
    assert len(chunks) > 3
    found, found_meta = raw_columns(concatenate(chunks))
    expected, meta = read_raw_tables(tmp_path, "train" if labels else "test")
    np.testing.assert_array_equal(found_meta["event_id"], meta["event_id"])
    if labels:
        np.testing.assert_array_equal(found_meta["azimuth"], meta["azimuth"])
    else:
        assert found_meta["azimuth"].isna().all()
    event = np.searchsorted(meta["event_id"], expected.index)
    order = np.lexsort((expected["sensor_id"], expected["time"], event))
    pd.testing.assert_frame_equal(found, expected.iloc[order], check_dtype=False)
    assert account.n_events_in == account.n_events_kept == 60
    assert account.n_pulses_in == account.n_pulses_kept == len(expected)


def test_read_raw_events_reports_what_it_rejects(tmp_path):
    counts = [2, 1, 3]
    frame = pulse_frame(counts, charge=[1, 1, np.nan, 1, 1, 0.0])
    uri = write_raw(tmp_path, frame, meta_frame(counts))
    account = Account()
    events = concatenate(list(read_raw_events(open_store(), uri, account=account)))
    assert events.event_id.tolist() == [100, 102]
    assert account.rejected_event_ids == [101]
    assert account.rejected_pulses == {"value_missing": 1, "charge_not_positive": 1}
    assert account.rejected_events == {"no_valid_pulses": 1}


def test_read_raw_events_does_not_reject_an_event_for_its_label(tmp_path):
    uri = write_raw(tmp_path, pulse_frame([2]), meta_frame([2], azimuth=[np.nan]))
    assert sum(chunk.n_events for chunk in read_raw_events(open_store(), uri)) == 1


def test_read_raw_events_refuses_a_file_without_meta_rows(tmp_path):
    uri = write_raw(tmp_path, pulse_frame([2]), meta_frame([2], batch_id=7))
    with pytest.raises(RawDataError, match=r"no rows in the meta file \[.*batch_1.parquet\]"):
        list(read_raw_events(open_store(), uri))


def test_check_sensor_width_refuses_ids_beyond_32_bits():
    detector = parse_geometry(f"sensor_id,x,y,z\n{2**31},0,0,0\n", where="test")
    with pytest.raises(DetectorError, match=r"beyond 32 bits \[here\]"):
        check_sensor_width(detector, "here")
