from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from iceaggr.detector import icecube86, parse_geometry
from iceaggr.normalization import fit_normalization
from iceaggr.shards.drift import drift_table, newly_silent_doms, stability_index
from iceaggr.shards.sketching import empty_sketch, sketch_events
from tests.shards.dom_events_builder import random_dom_events

DETECTOR = icecube86()
EVENTS = random_dom_events(1500, seed=1)
BEFORE = sketch_events(EVENTS, DETECTOR)
SCALING = fit_normalization(BEFORE)


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_drift_flags_nothing_for_another_draw_of_the_same_data(seed: int) -> None:
    now = sketch_events(random_dom_events(200, seed=seed), DETECTOR)
    assert not [row for row in drift_table(now, BEFORE, SCALING) if row.flags]


def test_drift_is_zero_against_itself() -> None:
    for row in drift_table(BEFORE, BEFORE, SCALING):
        assert (row.shift, row.stability_index, row.distance, row.flags) == (0, 0, 0, ())
        assert row.std_ratio == 1


def test_drift_flags_the_feature_that_moved_and_no_other() -> None:
    louder = replace(EVENTS, charge_pe=EVENTS.charge_pe * np.float32(1.5))
    rows = drift_table(sketch_events(louder, DETECTOR), BEFORE, SCALING)
    flagged = {row.name: row for row in rows if row.flags}
    assert list(flagged) == ["log10_charge"]
    charge = flagged["log10_charge"]
    assert charge.flags == ("mean", "PSI", "KS")
    assert charge.shift == pytest.approx(np.log10(1.5) / SCALING.charge_pe.scale, rel=1e-4)


def test_drift_flags_a_change_of_shape_that_keeps_the_mean() -> None:
    centre = int(BEFORE.features["time_ns"].mean)
    wider = replace(EVENTS, time_ns=centre + 2 * (EVENTS.time_ns - centre))
    row = drift_table(sketch_events(wider, DETECTOR), BEFORE, SCALING)[0]
    assert row.name == "time_ns"
    assert abs(row.shift) < 0.01
    assert row.std_ratio == pytest.approx(2, rel=0.01)
    assert row.flags == ("PSI", "KS")


def test_drift_says_what_cannot_be_compared() -> None:
    string = "".join(f"{k},{k},9,{17 * k}\n" for k in range(60))
    other = parse_geometry(f"sensor_id,x,y,z\n{string}", "string.csv")
    now = sketch_events(random_dom_events(50, seed=1, detector=other, labelled=False), other)
    rows = {row.name: row for row in drift_table(now, BEFORE, SCALING)}
    assert rows["x_m"].flags == ("different bins",)
    assert rows["zenith"].flags == ("no values",)
    assert math.isnan(rows["zenith"].stability_index)
    assert newly_silent_doms(now, BEFORE) == []


def test_newly_silent_doms_are_those_expected_to_be_hit() -> None:
    now = replace(BEFORE, dom_hits=BEFORE.dom_hits.copy())
    silent = [10, 4000]
    now.dom_hits[silent] = 0
    enough = [row for row in silent if BEFORE.dom_hits[row] >= 20]
    assert enough
    assert newly_silent_doms(now, BEFORE) == enough
    assert newly_silent_doms(BEFORE, empty_sketch(DETECTOR)) == []


def test_stability_index_matches_its_definition_on_even_tenths() -> None:
    before = np.full(10, 1000.0)
    now = np.array([2000.0] + [1000.0] * 8 + [0.0])
    p, q = (now + 0.5) / (now + 0.5).sum(), (before + 0.5) / (before + 0.5).sum()
    assert stability_index(now, before) == pytest.approx(np.sum((p - q) * np.log(p / q)))
    # finer bins of the same two distributions fall into the same tenths
    assert stability_index(np.repeat(now / 4, 4), np.repeat(before / 4, 4)) == pytest.approx(
        stability_index(now, before)
    )
