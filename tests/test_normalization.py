from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import NormalizationConfig
from iceaggr.detector import icecube86, parse_geometry
from iceaggr.errors import NormalizationError
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.joining import take_range
from iceaggr.normalization import (
    INPUT_FEATURES,
    Normalization,
    Normalizer,
    check_inputs,
    fit_normalization,
    parse_normalization,
)
from iceaggr.shards.sketches import sketch_events
from tests.shards.dom_events_builder import random_dom_events

DETECTOR = icecube86()
CONFIG = NormalizationConfig()


def batch_of(events: DomEvents) -> EventBatch:
    rows = DETECTOR.sensor_idx(events.sensor_id)
    return EventBatch(
        event_id=torch.from_numpy(events.event_id),
        event_dom_offsets=torch.from_numpy(events.event_dom_offsets),
        sensor_idx=torch.from_numpy(rows),
        xyz_m=torch.from_numpy(DETECTOR.xyz_m[rows]).float(),
        efficiency=torch.from_numpy(DETECTOR.efficiency[rows]).float(),
        dom_pulse_offsets=torch.from_numpy(events.dom_pulse_offsets),
        time_ns=torch.from_numpy(events.time_ns).float(),
        charge_pe=torch.from_numpy(events.charge_pe).float(),
        auxiliary=torch.from_numpy(events.auxiliary),
    )


EVENTS = random_dom_events(400, seed=1, first_event_id=5000)
BATCH = batch_of(EVENTS)
FITTED = fit_normalization(sketch_events(EVENTS, DETECTOR))


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


def test_seed_preset_reproduces_its_constants() -> None:
    inputs = Normalizer(Normalization.seed())(BATCH)
    torch.testing.assert_close(inputs.time_norm, (BATCH.time_ns - 1e4) / 3e4)
    torch.testing.assert_close(inputs.charge_norm, torch.log10(BATCH.charge_pe) / 3)
    torch.testing.assert_close(inputs.xyz_norm, BATCH.xyz_m / 500)
    torch.testing.assert_close(inputs.auxiliary_norm, BATCH.auxiliary.float())
    torch.testing.assert_close(inputs.sensor_norm, BATCH.sensor_idx / 5160)


def test_raw_preset_changes_nothing() -> None:
    inputs = Normalizer(Normalization.raw())(BATCH)
    assert torch.equal(inputs.time_norm, BATCH.time_ns)
    assert torch.equal(inputs.charge_norm, BATCH.charge_pe)
    assert torch.equal(inputs.xyz_norm, BATCH.xyz_m)


def test_normalizer_tells_neighbouring_nanoseconds_apart_at_late_times() -> None:
    late = replace(BATCH, time_ns=84_000 + torch.arange(BATCH.n_pulses).float() % 500)
    time_norm = Normalizer(FITTED)(late).time_norm
    recovered = time_norm.double() * FITTED.time_ns.scale + FITTED.time_ns.centre
    assert (recovered - late.time_ns).abs().max() < 0.02


@pytest.mark.parametrize("saved", [Normalization.seed(), Normalization.raw(), FITTED])
@pytest.mark.parametrize("built", [Normalization.seed(), Normalization.raw()])
def test_normalizer_state_dict_brings_back_the_saved_normalisation(
    saved: Normalization, built: Normalization
) -> None:
    original, loaded = Normalizer(saved), Normalizer(built)
    assert not list(original.parameters())
    loaded.load_state_dict(original.state_dict())
    for name in ("time_norm", "charge_norm", "xyz_norm", "sensor_norm", "auxiliary_norm"):
        assert torch.equal(getattr(loaded(BATCH), name), getattr(original(BATCH), name)), name


def test_normalizer_refuses_to_run_after_a_cast() -> None:
    with pytest.raises(NormalizationError, match=r"found torch\.bfloat16, expected torch\.float32"):
        Normalizer(FITTED).bfloat16()(BATCH)


def test_normalizer_computes_in_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        inputs = Normalizer(FITTED)(BATCH)
    assert inputs.time_norm.dtype == torch.float32
    assert torch.equal(inputs.time_norm, Normalizer(FITTED)(BATCH).time_norm)


def test_normalization_json_round_trip_is_exact() -> None:
    assert parse_normalization(FITTED.to_json()) == FITTED


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ('"version": 1', '"version": 2', "found version: 2, expected 1"),
        ('"scale": 500.0', '"scale": 0.0', r"found x_m.scale: 0.0, expected more than 0.0"),
        ('"time_ns": {\n  "transform": "identity"', '"time_ns": {"transform": "log10"', "no log"),
        ('"preset"', '"presets"', "found preset: nothing, expected a value"),
        ("{", "", "expected JSON"),
    ],
)
def test_normalization_refuses_a_damaged_document(before: str, after: str, problem: str) -> None:
    text = Normalization.seed().to_json()
    assert before in text
    with pytest.raises(NormalizationError, match=rf"\[here\].*{problem}"):
        parse_normalization(text.replace(before, after, 1), "here")


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
    found = rf"charge_pe: all {events.n_pulses} values are 0; auxiliary: all .* are 0"
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


@pytest.mark.parametrize("normalization", [FITTED, Normalization.seed()])
def test_check_inputs_accepts_normalised_inputs(normalization: Normalization) -> None:
    check_inputs(Normalizer(normalization)(BATCH), BATCH, CONFIG)


def test_check_inputs_refuses_raw_inputs() -> None:
    inputs = Normalizer(Normalization.raw())(BATCH)
    with pytest.raises(NormalizationError, match=r"time_norm 100\.00% beyond 10") as refused:
        check_inputs(inputs, BATCH, CONFIG)
    message = str(refused.value)
    assert "[time_norm, xyz_norm, sensor_norm]" in message
    assert f"worst {BATCH.time_ns.max():g}" in message
    assert "in 400 events (5000, 5001, 5002, 5003, 5004 ...)" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("field", ["time_norm", "charge_norm", "xyz_norm", "sensor_norm"])
def test_check_inputs_refuses_a_single_value_that_is_not_finite(field: str, value: float) -> None:
    inputs = Normalizer(FITTED)(BATCH)
    values = getattr(inputs, field).clone()
    event = 123
    row = int(BATCH.event_dom_offsets[event])
    if field in ("time_norm", "charge_norm"):
        row = int(BATCH.dom_pulse_offsets[row])
    values.view(len(values), -1)[row, -1] = value
    with pytest.raises(NormalizationError, match=rf"\[{field}\].*1 not finite.*\({5000 + event}\)"):
        check_inputs(replace(inputs, **{field: values}), BATCH, CONFIG)


def test_check_inputs_counts_the_share_of_outliers_against_the_limit() -> None:
    inputs = Normalizer(FITTED)(BATCH)
    time_norm = inputs.time_norm.clone()
    n_outliers = BATCH.n_pulses // 100
    time_norm[:n_outliers] = 50.0
    check_inputs(replace(inputs, time_norm=time_norm), BATCH, CONFIG)
    time_norm[: n_outliers + 2] = -51.0
    with pytest.raises(NormalizationError, match=r"time_norm 1\.0\d% beyond 10.*worst -51"):
        check_inputs(replace(inputs, time_norm=time_norm), BATCH, CONFIG)


def test_check_inputs_refuses_charge_zero() -> None:
    charge = BATCH.charge_pe.clone()
    charge[0] = 0.0
    batch = replace(BATCH, charge_pe=charge)
    with pytest.raises(NormalizationError, match=r"charge_norm.*1 not finite, worst -inf"):
        check_inputs(Normalizer(FITTED)(batch), batch, CONFIG)


def test_every_input_feature_has_a_scaling() -> None:
    for name in INPUT_FEATURES:
        assert FITTED.scaling(name).scale > 0
