"""Data that are wrong as a whole: a file that loses too much, labels and times that cannot be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from iceaggr.detector import Detector, icecube86
from iceaggr.errors import RawDataError
from iceaggr.normalization import fit_normalization
from iceaggr.shards.data_card import data_card_html
from iceaggr.shards.plausibility import (
    crossing_ns,
    doubtful_charges,
    doubtful_times,
    refuse_mass_rejection,
    refuse_one_direction,
    refuse_times_of_another_unit,
)
from iceaggr.shards.sketches import Sketch
from iceaggr.shards.sketching import sketch_events
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
        match=r"not in nanoseconds .*time of 90 train events.*found .* of 2\.\d*, expected at least"
        r" 124 ns: light needs 6,200 ns.*not in microseconds",
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
