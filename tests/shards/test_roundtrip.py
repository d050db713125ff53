"""Raw -> shard -> raw gives every value of every column again."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iceaggr.config import DataConfig
from iceaggr.events import pulses
from iceaggr.events.cleaning import MAX_CHARGE_PE, MAX_TIME_NS, MIN_CHARGE_PE
from iceaggr.events.reading import raw_columns
from tests.events.raw_tables import meta_frame, write_raw
from tests.shards.raw_shards import read_all, shard_all


def raw_events(n_pulses, event_id, sensor_id, time, charge, auxiliary):
    """Put columns into the raw layout; n_pulses and event_id are per event."""
    event = np.repeat(np.arange(len(n_pulses)), n_pulses)
    frame = pd.DataFrame(
        {
            "event_id": np.asarray(event_id)[event],
            "sensor_id": sensor_id,
            "time": time,
            "charge": charge,
            "auxiliary": auxiliary,
        }
    )
    return frame, meta_frame(list(n_pulses), event_id=np.asarray(event_id))


def assert_comes_back(frame, meta, **config):
    with tempfile.TemporaryDirectory() as name:
        uri = write_raw(Path(name) / "raw", frame, meta)
        manifest = shard_all(uri, Path(name) / "out", DataConfig(**config))
        found, found_meta = raw_columns(read_all(manifest))
    source = manifest.source_files[0]
    assert source.n_pulses_in == source.n_pulses_kept == len(frame)
    # shards hold events split by split; within an event by time, then sensor, then raw order
    rank = pd.Series(np.arange(len(found_meta)), index=found_meta["event_id"])
    order = np.lexsort((frame["sensor_id"], frame["time"], rank[frame["event_id"]]))
    expected = frame.iloc[order].set_index("event_id")
    pd.testing.assert_frame_equal(
        found, expected, check_dtype=False, check_exact=True, check_index_type=False
    )
    assert found["charge"].dtype == frame["charge"].dtype
    labels = ["event_id", "azimuth", "zenith"]
    pd.testing.assert_frame_equal(
        found_meta[labels].sort_values("event_id", ignore_index=True),
        meta[labels].sort_values("event_id", ignore_index=True),
        check_dtype=False,
        check_exact=True,
    )


@st.composite
def random_raw_events(draw):
    n_pulses = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    event_id = draw(
        st.lists(
            st.integers(-(2**63), 2**63 - 1),
            min_size=len(n_pulses),
            max_size=len(n_pulses),
            unique=True,
        )
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = sum(n_pulses)
    n_sensors, n_times = draw(st.sampled_from([1, 3, 5160])), draw(st.sampled_from([1, 20, 80_000]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    charge = np.exp(rng.uniform(-9, 13, n)).astype(dtype)
    time = rng.integers(0, n_times, n)
    if draw(st.booleans()):  # the usual order of a raw file: by time within the event
        event = np.repeat(np.arange(len(n_pulses)), n_pulses)
        time = time[np.lexsort((time, event))]
    sensor_id = rng.integers(5160 - n_sensors, 5160, n)
    return raw_events(n_pulses, event_id, sensor_id, time, charge, rng.random(n) < 0.5)


@settings(max_examples=25, deadline=None)
@given(tables=random_raw_events(), n_events_per_shard=st.sampled_from([1, 3, 2048]))
def test_random_events_come_back_exactly(tables, n_events_per_shard):
    assert_comes_back(*tables, n_events_per_shard=n_events_per_shard)


def test_an_event_of_one_pulse_comes_back():
    assert_comes_back(*raw_events([1], [7], [5159], [0], np.array([1.0], np.float32), [True]))


@pytest.mark.parametrize("n_rows_per_read", [1 << 13, 1 << 18])
def test_an_event_of_200000_pulses_comes_back(monkeypatch, n_rows_per_read):
    monkeypatch.setattr(pulses, "PULSES_PER_READ", n_rows_per_read)
    rng = np.random.default_rng(0)
    n_pulses = [50, 200_000, 50]
    n = sum(n_pulses)
    event = np.repeat(np.arange(3), n_pulses)
    time = rng.integers(9_000, 80_000, n)
    time = time[np.lexsort((time, event))]
    charge = rng.exponential(1, n).astype(np.float32) + np.float32(0.025)
    assert_comes_back(
        *raw_events(
            n_pulses, [1, 2, 3], rng.integers(0, 5160, n), time, charge, rng.random(n) < 0.3
        )
    )


def test_pulses_at_equal_times_in_one_dom_keep_their_order():
    n = 500
    charge = np.arange(1, n + 1, dtype=np.float32)
    assert_comes_back(*raw_events([n], [1], np.full(n, 9), np.full(n, 10_000), charge, [True] * n))


def test_all_doms_at_once_come_back():
    rng = np.random.default_rng(0)
    sensor_id = rng.permutation(np.repeat(np.arange(5160), 2))
    n = len(sensor_id)
    assert_comes_back(
        *raw_events(
            [n],
            [1],
            sensor_id,
            np.sort(rng.integers(0, 9_000, n)),
            rng.random(n) + 1e-3,
            [False] * n,
        )
    )


def test_extreme_values_come_back():
    for dtype in (np.float32, np.float64):
        charge = np.array([MIN_CHARGE_PE, MAX_CHARGE_PE, 0.1, MIN_CHARGE_PE], dtype)
        assert_comes_back(
            *raw_events(
                [3, 1],
                [-(2**63), 2**63 - 1],
                [0, 5159, 5159, 0],
                [0, MAX_TIME_NS, 0, MAX_TIME_NS],
                charge,
                [True, False, True, False],
            )
        )
