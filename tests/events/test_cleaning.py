import numpy as np
import pytest

from iceaggr.detector import icecube86, parse_geometry
from iceaggr.events.cleaning import EVENT_REASONS, PULSE_REASONS, Account, clean
from iceaggr.events.meta import EventTable
from iceaggr.events.pulses import PulseChunk, Pulses

NAN = float("nan")


def chunk_of(n_pulses, **columns):
    n = sum(n_pulses)
    plain = {
        "event_id": np.repeat(100 + np.arange(len(n_pulses)), n_pulses),
        "sensor_id": np.arange(n, dtype=np.int16),
        "time_ns": 10_000 + np.arange(n),
        "charge_pe": np.ones(n, np.float32),
        "auxiliary": np.zeros(n, bool),
        "is_missing": np.zeros(n, bool),
    }
    for name, values in columns.items():
        plain[name] = np.asarray(values, plain[name].dtype if name != "charge_pe" else np.float64)
    return PulseChunk(0, len(n_pulses), 0, Pulses(**plain))


def table_of(n_pulses, azimuth=None, zenith=None):
    n = len(n_pulses)
    return EventTable(
        event_id=100 + np.arange(n),
        n_pulses=np.array(n_pulses),
        azimuth=np.full(n, 1.0) if azimuth is None else np.array(azimuth, float),
        zenith=np.full(n, 1.0) if zenith is None else np.array(zenith, float),
    )


def clean_with(n_pulses, labels=None, detector=None, labelled=True, **columns):
    account = Account()
    chunk, table = chunk_of(n_pulses, **columns), table_of(n_pulses, **(labels or {}))
    cleaned = clean(chunk, table, detector or icecube86(), labelled, account)
    assert account.n_pulses_in == account.n_pulses_kept + sum(account.rejected_pulses.values())
    assert account.n_events_in == account.n_events_kept + sum(account.rejected_events.values())
    assert len(cleaned.pulses) == cleaned.n_pulses.sum() == account.n_pulses_kept
    return cleaned, account


def test_clean_keeps_everything_when_nothing_is_wrong():
    cleaned, account = clean_with([2, 3])
    assert cleaned.pulse_reason is None
    assert (account.n_events_kept, account.n_pulses_kept) == (2, 5)
    assert account.rejected_pulses == {}


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("charge_pe", NAN, "charge_not_finite"),
        ("charge_pe", np.inf, "charge_not_finite"),
        ("charge_pe", -np.inf, "charge_not_finite"),
        ("charge_pe", 0.0, "charge_not_positive"),
        ("charge_pe", -1.5, "charge_not_positive"),
        ("charge_pe", 1.1e6, "charge_out_of_range"),
        ("charge_pe", 0.9e-4, "charge_out_of_range"),
        ("charge_pe", 1e39, "charge_out_of_range"),
        ("sensor_id", 5160, "sensor_not_in_geometry"),
        ("sensor_id", -1, "sensor_not_in_geometry"),
        ("time_ns", -1, "time_negative"),
        ("time_ns", 10_000_001, "time_beyond_10_ms"),
        ("is_missing", True, "value_missing"),
    ],
)
def test_clean_rejects_one_bad_pulse_and_keeps_the_rest(column, value, reason):
    values = getattr(chunk_of([3, 2]).pulses, column).astype(object)
    values[1] = value
    cleaned, account = clean_with([3, 2], **{column: values})
    assert account.rejected_pulses == {reason: 1}
    assert account.rejected_events == {}
    assert cleaned.n_pulses.tolist() == [2, 2]
    assert cleaned.pulses.time_ns.tolist() == [10_000, 10_002, 10_003, 10_004]
    assert cleaned.pulse_reason.tolist() == [-1, PULSE_REASONS.index(reason), -1, -1, -1]


def test_clean_counts_a_pulse_once_when_several_things_are_wrong():
    _, account = clean_with([2], charge_pe=[NAN, 1], time_ns=[-5, 1], sensor_id=[-1, 2])
    assert account.rejected_pulses == {"time_negative": 1}


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"azimuth": [NAN, 1]}, "label_not_finite"),
        ({"zenith": [np.inf, 1]}, "label_not_finite"),
        ({"azimuth": [-0.1, 1]}, "label_out_of_range"),
        ({"azimuth": [6.3, 1]}, "label_out_of_range"),
        ({"zenith": [3.2, 1]}, "label_out_of_range"),
        ({"zenith": [-0.01, 1]}, "label_out_of_range"),
    ],
)
def test_clean_rejects_an_event_with_a_bad_label_and_its_pulses(labels, reason):
    cleaned, account = clean_with([3, 2], labels)
    assert account.rejected_events == {reason: 1}
    assert account.rejected_pulses == {"event_rejected": 3}
    assert account.rejected_event_ids == [100]
    assert cleaned.events.tolist() == [1]
    assert cleaned.event_reason.tolist() == [EVENT_REASONS.index(reason), -1]


def test_clean_accepts_angles_that_float32_rounds_up():
    labels = {"azimuth": [float(np.float32(2 * np.pi))], "zenith": [float(np.float32(np.pi))]}
    _, account = clean_with([1], labels)
    assert account.n_events_kept == 1


def test_clean_keeps_events_without_labels_when_none_are_expected():
    _, account = clean_with([3, 2], {"azimuth": [NAN, NAN], "zenith": [NAN, NAN]}, labelled=False)
    assert account.n_events_kept == 2


def test_clean_rejects_events_without_pulses():
    cleaned, account = clean_with([0, 2, 2], charge_pe=[NAN, 0, 1, 1])
    assert account.rejected_events == {"no_pulses": 1, "no_valid_pulses": 1}
    assert account.rejected_pulses == {"charge_not_finite": 1, "charge_not_positive": 1}
    assert cleaned.events.tolist() == [2]


def test_clean_finds_sensors_of_a_table_with_gaps():
    detector = parse_geometry("sensor_id,x,y,z\n-7,0,0,0\n30,0,0,10\n12,0,0,20\n", where="test")
    cleaned, account = clean_with([4], detector=detector, sensor_id=[30, -7, 13, 12])
    assert account.rejected_pulses == {"sensor_not_in_geometry": 1}
    assert cleaned.sensor_idx.tolist() == [2, 0, 1]
