from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from iceaggr.config import NormalizationConfig
from iceaggr.errors import NormalizationError
from iceaggr.models.normalizer import Normalizer, check_inputs
from iceaggr.normalization_document import Normalization
from tests.shards.sample_events import BATCH, FITTED


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


CONFIG = NormalizationConfig()


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
