from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from iceaggr.config import NormalizationConfig
from iceaggr.detector import parse_geometry
from iceaggr.errors import NormalizationError
from iceaggr.events.dom_events import take_range
from iceaggr.models.normalizer import Normalizer, check_inputs
from iceaggr.shards.sketching import sketch_events
from iceaggr.shards.statistics import fit_normalization
from tests.shards.dom_events_builder import random_dom_events
from tests.shards.sample_events import BATCH, DETECTOR, EVENTS, FITTED, batch_of

CONFIG = NormalizationConfig()


def event_weighted_mean(values: torch.Tensor, event_idx: torch.Tensor) -> torch.Tensor:
    sums = torch.zeros(BATCH.n_events, *values.shape[1:], dtype=torch.float64)
    sums.index_add_(0, event_idx, values.double())
    n_rows = torch.bincount(event_idx, minlength=BATCH.n_events)
    return (sums / n_rows.reshape(-1, *[1] * (values.dim() - 1))).mean(dim=0)


def test_fitted_inputs_have_mean_zero_and_unit_spread_per_event() -> None:
    inputs = Normalizer(FITTED)(BATCH)
    dom_event = BATCH.dom_event_idx()
    pulse_event = dom_event[BATCH.pulse_dom_idx()]
    for values in (inputs.time_norm, inputs.charge_norm):
        assert event_weighted_mean(values, pulse_event).abs() < 1e-4
        assert 0.3 < event_weighted_mean(values**2, pulse_event) <= 1.0001
    assert event_weighted_mean(inputs.sensor_norm**2, dom_event) == pytest.approx(1, abs=1e-3)
    assert event_weighted_mean(inputs.xyz_norm, dom_event).abs().max() < 1e-4
    spread = event_weighted_mean(inputs.xyz_norm**2, dom_event)
    assert spread.mean() == pytest.approx(1, abs=1e-3)
    assert set(inputs.auxiliary_norm.unique().tolist()) == {-1.0, 1.0}


def test_fitted_positions_keep_the_shape_of_the_detector() -> None:
    xyz_norm, xyz_m = Normalizer(FITTED)(BATCH).xyz_norm[:300].double(), BATCH.xyz_m[:300].double()
    expected = torch.cdist(xyz_m, xyz_m) / FITTED.x_m.scale
    torch.testing.assert_close(torch.cdist(xyz_norm, xyz_norm), expected, rtol=1e-5, atol=1e-5)


def test_fit_covers_a_heavy_tail_of_times() -> None:
    time = EVENTS.time_ns.copy()
    late = np.random.default_rng(1).random(len(time)) < 0.003
    time[late] += 60_000
    events = replace(EVENTS, time_ns=time)
    inputs = Normalizer(fit_normalization(sketch_events(events, DETECTOR)))(batch_of(events))
    assert (inputs.time_norm.abs() > 10).float().mean() < 1e-3
    check_inputs(inputs, batch_of(events), CONFIG)


def test_fit_lets_a_bright_event_fill_a_batch_alone() -> None:
    charge = EVENTS.charge_pe.copy()
    last = slice(EVENTS.event_pulse_offsets()[-2], None)
    charge[last] = 2762.0
    events = replace(EVENTS, charge_pe=charge)
    fitted = fit_normalization(sketch_events(events, DETECTOR))
    alone = batch_of(take_range(events, EVENTS.n_events - 1, EVENTS.n_events))
    inputs = Normalizer(fitted)(alone)
    assert 5 < inputs.charge_norm.max() < 10
    check_inputs(inputs, alone, CONFIG)


def test_fit_names_every_constant_feature() -> None:
    events = replace(
        EVENTS,
        charge_pe=np.ones_like(EVENTS.charge_pe),
        auxiliary=np.zeros_like(EVENTS.auxiliary),
    )
    sketch = sketch_events(events, DETECTOR)
    found = rf"charge_pe: all {events.n_pulses} values are 1; auxiliary: all .* are 0"
    with pytest.raises(NormalizationError, match=found):
        fit_normalization(sketch)
    with pytest.raises(NormalizationError, match=r"found auxiliary: all") as one_named:
        fit_normalization(sketch, ["charge_pe"])
    assert "charge_pe" not in str(one_named.value)
    inputs = Normalizer(fit_normalization(sketch, ["charge_pe", "auxiliary"]))(batch_of(events))
    assert not inputs.charge_norm.any()
    assert not inputs.auxiliary_norm.any()


def test_fit_takes_a_single_string_when_its_axes_are_named() -> None:
    string = "".join(f"{k},7,9,{17 * k}\n" for k in range(60))
    detector = parse_geometry(f"sensor_id,x,y,z\n{string}", "string.csv")
    sketch = sketch_events(random_dom_events(50, seed=1, detector=detector), detector)
    with pytest.raises(NormalizationError, match=r"x_m: all \d+ values are 7; y_m: all"):
        fit_normalization(sketch)
    assert fit_normalization(sketch, ["x_m", "y_m"]).x_m.centre == 7


def test_fit_refuses_an_unknown_constant_feature() -> None:
    with pytest.raises(NormalizationError, match=r"found \['charge'\], expected some of"):
        fit_normalization(sketch_events(EVENTS, DETECTOR), ["charge"])


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_fit_refuses_charges_without_a_logarithm(value: float) -> None:
    charge = EVENTS.charge_pe.copy()
    charge[17] = value
    sketch = sketch_events(replace(EVENTS, charge_pe=charge), DETECTOR)
    with pytest.raises(NormalizationError, match=rf"charge_pe: 1 of {len(charge)} values"):
        fit_normalization(sketch)
