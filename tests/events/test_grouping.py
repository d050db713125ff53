import numpy as np
import pytest

from iceaggr.detector import icecube86, parse_geometry
from iceaggr.events import dom_events, schema
from iceaggr.events.cleaning import Account, clean
from iceaggr.events.grouping import group_by_dom, sort_by_dom
from tests.events.test_cleaning import chunk_of, table_of


def grouped(n_pulses, order=None, detector=None, **columns):
    detector = detector or icecube86()
    table = table_of(n_pulses)
    cleaned = clean(chunk_of(n_pulses, **columns), table, detector, True, Account())
    return group_by_dom(cleaned, table, detector, order)


def test_group_by_dom_sorts_doms_and_keeps_time_order():
    events = grouped([4, 2], sensor_id=[9, 3, 9, 3, 5, 4], time_ns=[1, 2, 3, 4, 5, 6])
    assert events.event_dom_offsets.tolist() == [0, 2, 4]
    assert events.sensor_id.tolist() == [3, 9, 4, 5]
    assert events.dom_pulse_offsets.tolist() == [0, 2, 4, 5, 6]
    assert events.time_ns.tolist() == [2, 4, 1, 3, 6, 5]


def test_group_by_dom_sorts_times_that_are_not_sorted():
    events = grouped([5], sensor_id=[9, 3, 9, 3, 9], time_ns=[8, 7, 3, 4, 8], charge_pe=range(1, 6))
    assert events.time_ns.tolist() == [4, 7, 3, 8, 8]
    assert events.charge_pe.tolist() == [4, 2, 3, 1, 5]


def test_group_by_dom_keeps_the_raw_order_of_equal_times():
    n = 1000
    events = grouped(
        [n], sensor_id=np.full(n, 7), time_ns=np.full(n, 5), charge_pe=1 + np.arange(n)
    )
    assert events.n_doms == 1
    np.testing.assert_array_equal(events.charge_pe, 1 + np.arange(n))


def test_group_by_dom_orders_events_as_asked():
    events = grouped([1, 2, 3], order=np.array([2, 0, 1]))
    assert events.event_id.tolist() == [102, 100, 101]
    assert np.diff(events.event_pulse_offsets()).tolist() == [3, 1, 2]
    assert events.time_ns.tolist() == [10_003, 10_004, 10_005, 10_000, 10_001, 10_002]


def test_group_by_dom_gives_ids_of_a_table_with_gaps():
    detector = parse_geometry("sensor_id,x,y,z\n-7,0,0,0\n30,0,0,10\n12,0,0,20\n", where="test")
    events = grouped([3], detector=detector, sensor_id=[30, -7, 12])
    assert events.sensor_id.tolist() == [-7, 12, 30]


@pytest.mark.parametrize("seed", range(5))
def test_group_by_dom_equals_a_stable_sort_by_event_sensor_time(seed):
    rng = np.random.default_rng(seed)
    n_pulses = rng.integers(1, 80, 50)
    n = n_pulses.sum()
    sensor_id, time = rng.integers(0, 12, n), rng.integers(0, 30, n)
    charge = 1.0 + np.arange(n)
    events = grouped(n_pulses.tolist(), sensor_id=sensor_id, time_ns=time, charge_pe=charge)
    event = np.repeat(np.arange(50), n_pulses)
    expected = np.lexsort((time, sensor_id, event))
    np.testing.assert_array_equal(events.charge_pe, charge[expected])
    np.testing.assert_array_equal(events.time_ns, time[expected])
    dom_of_pulse = np.repeat(events.sensor_id, np.diff(events.dom_pulse_offsets))
    np.testing.assert_array_equal(dom_of_pulse, sensor_id[expected])


@pytest.mark.parametrize("n_rows", [1, 7, 1 << 20])
def test_sort_by_dom_copies_what_group_by_dom_gathers(monkeypatch, n_rows):
    monkeypatch.setattr(dom_events, "N_ROWS_PER_COPY", n_rows)
    rng = np.random.default_rng(1)
    n_pulses = rng.integers(1, 80, 50).tolist()
    columns = {"sensor_id": rng.integers(0, 12, sum(n_pulses))}
    table, detector = table_of(n_pulses), icecube86()
    cleaned = clean(chunk_of(n_pulses, **columns), table, detector, True, Account())
    found = sort_by_dom(cleaned, table, detector, rng.permutation(50))
    for name in schema.PULSE_NAMES:
        expected = getattr(found.gathered(), name)
        copied = np.empty(found.n_pulses, found.pulse_dtype(name))
        found.copy_pulses(name, out=copied)
        np.testing.assert_array_equal(copied, expected)
        assert copied.dtype == expected.dtype
