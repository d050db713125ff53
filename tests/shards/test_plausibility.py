"""Data that are wrong as a whole: a file that loses too much, labels and times that cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from iceaggr.detector import Detector, icecube86
from iceaggr.errors import RawDataError
from iceaggr.events.dom_events import DomEvents
from iceaggr.shards.data_card import data_card_html
from iceaggr.shards.plausibility import (
    MIN_EVENTS,
    crossing_ns,
    doubtful_charges,
    doubtful_times,
    files_unlike_the_others,
    refuse_implausible_files,
    refuse_mass_rejection,
    refuse_one_direction,
    refuse_times_of_another_unit,
)
from iceaggr.shards.sketches import Sketch
from iceaggr.shards.sketching import sketch_events
from iceaggr.shards.statistics import fit_normalization, merge_files, merge_splits
from tests.shards.dom_events_builder import random_dom_events
from tests.shards.shard_manifest_builder import manifest_of

DETECTOR = icecube86()
EVENTS = random_dom_events(90, seed=3)
TRAIN = sketch_events(EVENTS, DETECTOR)


def with_times(factor: float, after_ns: int = 0) -> Sketch:
    """The same events with all times, or those after one, multiplied."""
    times = np.where(EVENTS.time_ns < after_ns, 1, factor) * EVENTS.time_ns
    return sketch_events(replace(EVENTS, time_ns=times.astype(np.int64)), DETECTOR)


def test_file_that_loses_many_events_is_refused_however_few_pulses_they_have() -> None:
    manifest = manifest_of({"train": TRAIN}, rejected_events={"label_out_of_range": 10})
    refuse_mass_rejection(manifest, 0.1)  # 10 of 100
    with pytest.raises(
        RawDataError,
        match=r"too many events .*batch_1\.parquet.*10\.0% of 100 events: label_out_of_range 10, ",
    ):
        refuse_mass_rejection(manifest, 0.09)


def test_file_that_loses_many_pulses_is_refused_although_it_keeps_its_events() -> None:
    manifest = manifest_of(
        {"train": TRAIN}, rejected_pulses={"charge_not_positive": TRAIN.n_pulses}
    )
    with pytest.raises(RawDataError, match=r"too many pulses .*found 50\.0% of .*not_positive"):
        refuse_mass_rejection(manifest, 0.1)
    refuse_mass_rejection(manifest, 0.5)


def test_labels_that_all_point_one_way_are_refused() -> None:
    one = replace(EVENTS, zenith=np.full(90, 1.0), azimuth=np.full(90, 2.0))
    sketches: dict[str, Sketch] = {"train": sketch_events(one, DETECTOR)}
    refuse_one_direction(manifest_of({"train": TRAIN}), {"train": TRAIN})
    with pytest.raises(RawDataError, match=r"all labels point one way.*azimuth 2, zenith 1"):
        refuse_one_direction(manifest_of({"train": TRAIN}), sketches)


def test_crossing_is_the_way_from_corner_to_corner_at_the_speed_of_light() -> None:
    columns = [np.arange(2), np.full(2, -1), np.ones(2), np.ones(2, bool)]
    xyz_m = np.array([[0.0, 0.0, 0.0], [200.0, 300.0, 600.0]])
    detector = Detector(columns[0], xyz_m, *columns[1:])
    assert crossing_ns(detector) == pytest.approx(700 / 0.299792458)


def test_times_in_microseconds_are_refused() -> None:
    refuse_times_of_another_unit({"train": TRAIN}, DETECTOR)
    refuse_times_of_another_unit({"train": with_times(0.1)}, DETECTOR)
    refuse_times_of_another_unit({}, DETECTOR)
    with pytest.raises(
        RawDataError,
        match=r"not in nanoseconds .*time of 90 train events.*found .* of 2\.\d* over 90 events,"
        r" expected at least 124 ns: light needs 6,200 ns.*not in microseconds",
    ):
        refuse_times_of_another_unit({"train": with_times(0.001)}, DETECTOR)


def test_times_that_are_all_the_same_are_left_to_the_normalisation() -> None:
    constant = replace(EVENTS, time_ns=np.full(EVENTS.n_pulses, 10_001))  # its spread is rounding
    refuse_times_of_another_unit({"train": sketch_events(constant, DETECTOR)}, DETECTOR)


def test_times_that_spread_far_are_a_warning_on_the_card() -> None:
    assert doubtful_times(TRAIN, DETECTOR) == ""
    wide = with_times(30, after_ns=10_000)
    warning = doubtful_times(wide, DETECTOR)
    assert "times the 6,200 ns that light needs" in warning
    refuse_times_of_another_unit({"train": wide}, DETECTOR)
    pages = [
        data_card_html(manifest_of({"train": s}), {"train": s}, fit_normalization(s), DETECTOR)
        for s in (TRAIN, wide)
    ]
    assert [f"Check the units: {warning}" in page for page in pages] == [False, True]


@pytest.mark.parametrize(
    ("charge_pe", "told"),
    [
        (np.array([3.0, 27.0, 255.0]), "are whole numbers, 3 to 255 with median 27"),
        (np.array([12.5, 27.2, 80.1]), "are not those of single photons"),
        (EVENTS.charge_pe, ""),
        (np.ones(5), ""),
        (np.zeros(0), ""),
    ],
)
def test_charges_that_are_hardly_photo_electrons_are_told(charge_pe, told) -> None:
    found = doubtful_charges(charge_pe)
    assert told in found
    assert bool(told) == bool(found)


# One raw file of several that is wrong as a whole: refused by name, or told when only unlike.


URIS = [f"s3://raw/train/batch_{number}.parquet" for number in range(1, 5)]


def in_microseconds(events: DomEvents) -> dict[str, Any]:
    return {"time_ns": events.time_ns // 1000}


def at_one_time(events: DomEvents) -> dict[str, Any]:
    return {"time_ns": np.full(events.n_pulses, 10_000)}


def one_direction(events: DomEvents) -> dict[str, Any]:
    return {name: np.zeros(events.n_events) for name in ("azimuth", "zenith")}


def on_one_sensor(events: DomEvents) -> dict[str, Any]:
    """Each event keeps its first DOM, as if all its pulses were there."""
    pulses = events.event_pulse_offsets()
    return {
        "event_dom_offsets": np.arange(events.n_events + 1),
        "sensor_id": np.full(events.n_events, 17, np.int32),
        "dom_pulse_offsets": pulses,
    }


CHANGES = [in_microseconds, at_one_time, one_direction, on_one_sensor]


def files_with(change: Any = None, n_odd: int = 1, n_events: int = 60) -> dict[str, Sketch]:
    """Four raw files, of which the first n_odd of n_events are changed."""
    files = {}
    for number, uri in enumerate(URIS):
        is_odd = number < n_odd and change is not None
        events = random_dom_events(n_events if is_odd else 60, seed=number)
        events = replace(events, **change(events)) if is_odd else events
        files[uri] = sketch_events(events, DETECTOR)
    return files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_microseconds, r"not in nanoseconds \[\S*batch_1\.parquet time\].* least 124 ns"),
        (
            at_one_time,
            r"one time \[\S*batch_1\.parquet time\].*time 10000 in each of [\d,]+ pulses",
        ),
        (one_direction, r"one way \[\S*batch_1\.parquet az.*azimuth 0, zenith 0 in each of 60 ev"),
        (on_one_sensor, r"one sensor \[\S*batch_1\.parquet sensor_id\].*sensor_id 17 in each of"),
    ],
)
def test_one_wrong_file_of_four_is_refused_by_name_although_all_together_pass(
    change: Any, message: str
) -> None:
    files = files_with(change)
    together = merge_files([(uri, {"train": sketch}) for uri, sketch in files.items()])
    refuse_one_direction(manifest_of({"train": together["train"]}), together)
    refuse_times_of_another_unit(together, DETECTOR)
    with pytest.raises(RawDataError, match=message + ".*or move the file away and set data.allow"):
        refuse_implausible_files(files, DETECTOR)


def test_sound_files_are_not_refused() -> None:
    refuse_implausible_files(files_with(), DETECTOR)
    refuse_implausible_files({}, DETECTOR)
    assert files_unlike_the_others(files_with()) == []


@pytest.mark.parametrize("change", CHANGES)
def test_file_is_judged_from_its_thirtieth_event_on(change: Any) -> None:
    refuse_implausible_files(files_with(change, n_events=MIN_EVENTS - 1), DETECTOR)
    with pytest.raises(RawDataError, match=r"batch_1\.parquet"):
        refuse_implausible_files(files_with(change, n_events=MIN_EVENTS), DETECTOR)


def test_error_says_how_many_files_have_the_fault() -> None:
    with pytest.raises(RawDataError, match=r"batch_1\.parquet time, and 2 more of 4 files\]"):
        refuse_implausible_files(files_with(in_microseconds, n_odd=3), DETECTOR)


@pytest.mark.parametrize("change", [at_one_time, on_one_sensor])
def test_what_no_file_has_is_left_to_the_normalisation(change: Any) -> None:
    refuse_implausible_files(files_with(change, n_odd=4), DETECTOR)


def test_events_without_labels_have_no_direction_to_judge() -> None:
    events = random_dom_events(60, seed=1, labelled=False)
    refuse_implausible_files({URIS[0]: sketch_events(events, DETECTOR)}, DETECTOR)


def test_file_is_judged_over_all_its_splits() -> None:
    events = random_dom_events(20, seed=1)
    wrong = sketch_events(replace(events, **in_microseconds(events)), DETECTOR)
    splits = [(URIS[0], {"train": wrong, "test": wrong}), (URIS[1], {})]
    assert list(merge_splits(splits)) == [URIS[0]]
    with pytest.raises(RawDataError, match="over 40 events"):
        refuse_implausible_files(merge_splits(splits), DETECTOR)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("charge_pe", lambda events: events.charge_pe * 1000, "charge_pe has mean 1"),
        ("auxiliary", lambda events: np.ones(events.n_pulses, bool), "auxiliary has mean 1, in"),
    ],
)
def test_file_unlike_the_others_is_described_and_only_this_one(
    name: str, values: Any, words: str
) -> None:
    files = files_with(lambda events: {name: values(events)}, n_events=90)
    refuse_implausible_files(files, DETECTOR)
    [sentence] = files_unlike_the_others(files)
    assert sentence.startswith(f"{URIS[0]} (90 events): {words}")


def test_few_events_are_unlike_others_by_chance() -> None:
    charged = files_with(lambda events: {"charge_pe": events.charge_pe * 1000}, n_events=29)
    assert files_unlike_the_others(charged) == []
    # half the sample of one file has no weight against what chance does to so few events
    late = files_with(lambda events: {"zenith": 0.8 * events.zenith})
    assert files_unlike_the_others(late) == []
